"""Stage `compare`: draft models of several sizes, trained alike, and the tokens/s that each would give.

Every size starts by the same rule (`cuts`) and is trained for the same number of the same tokens. With a drafter to
start from there is a second row for each size, whose layers start from that drafter's, a row for that drafter trained
on, and one for it as it is.

A larger one accepts more and costs more, so what is compared is the work of a whole round: tokens a round at the k
that pays best, over the time of k draft steps and one verify, both measured with the executor that serves. With one
batch they follow each other; with two batches in flight the slower side sets the pace.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from minedraft.bench.report import machine_facts
from minedraft_workers.execution.executor import Executor, ForwardSpan
from scripts.drafter.config import EvaluationConfig
from scripts.drafter.data.generate import load_executor
from scripts.drafter.data.teacher import make_states
from scripts.drafter.evaluating.measure import MODES, points_by_kind, validation_point
from scripts.drafter.model.cuts import cut_of, take_layers
from scripts.drafter.model.export import export_model
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.stages import MODEL, Run, load_start
from scripts.drafter.store import load_json, save_json
from scripts.drafter.training.trainer import Budget, Trainer

REPEATS = 15
FIT_SHARDS = 2  # of the answers, whose states the closed-form start is fitted to
# What a row's layers start from; the last: a drafter that is trained on as it is.
OF_TARGET, OF_DRAFTER, OF_ITSELF = "target", "drafter", "itself"
Row = dict[str, Any]
Report = Callable[[str, float, list[float]], None]  # a row's name, the used share of its budget, its losses


def compare(run: Run, results: Path, budget: Budget, source: Path | None, report: Report) -> list[str]:
    """Trains and evaluates each size of the configuration, then times all; a row that is in the table is only timed.

    Args:
        budget: of each training.
        source: a drafter's folder of the configured cut, whose layers a second row of each size starts from.
    """
    path, config = results / "students.json", run.config
    table: list[Row] = load_json(path, "compare")["rows"] if path.exists() else []
    num_layers = run.parts.num_layers
    sizes = config.compare.layers
    cuts = [cut_of(number, config.compare.kept, num_layers) for number in sizes]
    kept = {prefix for prefix, _ in cuts} | ({run.new_drafter().layers[0]} if source else set())
    make_states(run.model, run.answers, sorted({*kept, num_layers} - {0}), lambda _: None)
    ends = {layer for _, trained in cuts for layer in trained[1:]}
    make_states(run.model, run.answers, sorted({*kept, *ends, num_layers} - {0}), lambda _: None, FIT_SHARDS)
    wanted = [(OF_TARGET, cut) for cut in cuts]
    if source:
        wanted += [*((OF_DRAFTER, cut) for cut in cuts), (OF_ITSELF, config.model.layers(num_layers))]
    for start, cut in wanted:
        if not any(row["start"] == start and row["trained"] == cut[1] for row in table):
            table.append(_trained_row(run, cut, start, budget, source, report))
            _save(path, run, table)
    if source is not None and not any(row["start"] is None for row in table):
        table.append(_source_row(run, source))
    _time_rows(run, table, source)
    _save(path, run, table)
    return [line(row) for row in table]


def _trained_row(
    run: Run, cut: tuple[int, list[int]], start: str, budget: Budget, source: Path | None, report: Report
) -> Row:
    config = run.config
    settings = config.compare
    training = replace(config.training[MODEL], tokens_per_batch=settings.tokens_per_batch)
    if start != OF_ITSELF:
        training = replace(training, learning_rate=settings.learning_rate)
    drafter = ModelDrafter(run.parts, config.model, training, cut)
    number = drafter.prefix + len(drafter.trained)
    folder = _folder(run, number, start)
    trainer = Trainer(training, config.seed, drafter.parameters(), drafter.loss_of, run.corpus.examples, folder)
    if not trainer.resume():
        if source is not None and start != OF_TARGET:
            take_layers(drafter, _source_drafter(run, source))
        if start != OF_ITSELF:  # its layers follow on each other as they are
            drafter.start(run.corpus, config.seed)
    held_out = run.corpus.held_out("validation")
    trainer.run(
        budget,
        lambda: validation_point(drafter, held_out, (4,), config.seed),
        lambda _, used, losses: report(f"{number} layers of the {start}", used, losses),
    )
    export_model(drafter, run.target, "", folder / "drafter")
    progress = trainer.progress
    return {
        **_shape(drafter, start),
        "trained_tokens": progress.num_tokens,
        "steps": progress.num_steps,
        "seconds": round(progress.seconds),
        "curve": progress.curve,
        "evaluation": evaluate(drafter, run),
    }


def _source_row(run: Run, source: Path) -> Row:
    drafter = _source_drafter(run, source)
    return {**_shape(drafter, None), "evaluation": evaluate(drafter, run)}


def _source_drafter(run: Run, source: Path) -> ModelDrafter:
    drafter = ModelDrafter(run.parts, run.config.model, run.config.training[MODEL])
    load_start(drafter, source)
    return drafter


def _shape(drafter: ModelDrafter, start: str | None) -> Row:
    return {
        "layers": drafter.prefix + len(drafter.trained),
        "start": start,
        "prefix": drafter.prefix,
        "trained": drafter.trained,
        "trained_parameters": sum(parameter.numel() for parameter in drafter.parameters().values()),
    }


def evaluate(drafter: ModelDrafter, run: Run) -> dict[str, Any]:
    """Returns {kind or "all": {mode: {"agreement": of the first draft, "tokens_per_round": [k = 1 ..]}}} on prompts
    that no training read."""
    ks = tuple(range(1, run.config.evaluation.max_k + 1))
    points = points_by_kind(drafter, run.corpus.held_out("evaluation"), ks, run.config.seed)
    return {
        kind: {
            mode: {
                "agreement": point[f"{mode}_acceptance"],
                "tokens_per_round": [round(point[f"{mode}_k{k}"], 3) for k in ks],
            }
            for mode in MODES
            if f"{mode}_acceptance" in point
        }
        for kind, point in points.items()
    }


def _folder(run: Run, num_layers: int, start: str) -> Path:
    return run.work / "compare" / f"{num_layers}-of-{start}"


def _time_rows(run: Run, table: list[Row], source: Path | None) -> None:
    """Times every row anew, so that all stand beside each other as the machine is now."""
    config = run.config.evaluation
    ks = range(1, config.max_k + 1)
    verify_ms = time_verify(run.target, config)
    for row in table:
        folder = _folder(run, row["layers"], row["start"]) / "drafter" if row["start"] else source
        if folder is None:
            continue
        draft_ms = time_draft(folder, config)
        rounds = row["evaluation"]["all"]["greedy"]["tokens_per_round"]
        row |= {
            "t_draft_ms": round(draft_ms, 2),
            "t_verify_ms": [round(verify_ms[k], 2) for k in ks],
            **speeds(rounds, draft_ms, [verify_ms[k] for k in ks], config.timing_requests),
        }


def _save(path: Path, run: Run, table: list[Row]) -> None:
    examples = run.corpus.examples()
    save_json(
        path,
        {
            "machine": machine_facts(),
            "answers": {"sequences": len(examples), "tokens": sum(int(one.owned.sum()) for one in examples)},
            "requests": run.config.evaluation.timing_requests,
            "rows": table,
        },
    )


def speeds(rounds: list[float], draft_ms: float, verify_ms: list[float], requests: int) -> dict[str, Any]:
    """Returns the k that pays best and its tokens/s, with one batch and with two in flight."""
    steps = [(k + 1) * draft_ms for k in range(len(rounds))]
    each = list(zip(rounds, steps, verify_ms, strict=True))
    one = [1000 * requests * got / (step + verify) for got, step, verify in each]
    two = [1000 * requests * got / max(step, verify) for got, step, verify in each]
    return {
        "sequential": {"k": one.index(max(one)) + 1, "tokens_per_s": round(max(one), 1)},
        "overlapped": {"k": two.index(max(two)) + 1, "tokens_per_s": round(max(two), 1)},
    }


def time_verify(target: Path, config: EvaluationConfig) -> dict[int, float]:
    """Returns the milliseconds of a verify of all requests for each k."""
    executor = load_executor(target, config.timing_requests, config.timing_context + 2 * config.max_k)
    return {k: _time_ms(executor, k + 1, config) for k in range(1, config.max_k + 1)}


def time_draft(folder: Path, config: EvaluationConfig) -> float:
    """Returns the milliseconds of one draft step of all requests."""
    return _time_ms(load_executor(folder, config.timing_requests, config.timing_context + 8), 1, config)


def _time_ms(executor: Executor, num_new: int, config: EvaluationConfig) -> float:
    context = config.timing_context
    for request in range(config.timing_requests):
        executor.forward(
            [ForwardSpan(request, 0, [(7 * j + request) % executor.vocab_size for j in range(context)], 0)]
        )
    spans = [
        ForwardSpan(request, context, list(range(1, num_new + 1)), num_new) for request in range(config.timing_requests)
    ]
    times = []
    for _ in range(REPEATS):
        # The thread's own time: on one core it is the wall's, and other programs of a busy machine do not count.
        began = time.thread_time()
        executor.forward(spans)
        times.append((time.thread_time() - began) * 1000)
    executor.release_all()
    return statistics.median(times)


def line(row: Row) -> str:
    """One draft model as a line of a table."""
    one, two, greedy = row["sequential"], row["overlapped"], row["evaluation"]["all"]["greedy"]
    return (
        f"| {row['prefix']} kept, {len(row['trained'])} trained | {row['layers']} | {greedy['agreement']:.3f} "
        f"| {greedy['tokens_per_round'][3]:.2f} | {row['t_draft_ms']:.1f} | {row['t_verify_ms'][3]:.1f} "
        f"| {one['tokens_per_s']:.0f} (k = {one['k']}) | {two['tokens_per_s']:.0f} (k = {two['k']}) |"
    )
