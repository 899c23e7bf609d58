"""Stage `compare`: short trainings of several cuts of the target, and the tokens/s that each would give.

A cut that accepts more costs more, so what is compared is the work of a whole round: tokens a round at the k that
pays best, over the time of k draft steps and one verify, both measured with the executor that serves. With one batch
they follow each other; with two batches in flight the slower side sets the pace.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from minedraft.bench.report import machine_facts
from minedraft_workers.execution.executor import Executor, ForwardSpan
from scripts.drafter.config import EvaluationConfig
from scripts.drafter.data.generate import load_executor
from scripts.drafter.data.teacher import make_states
from scripts.drafter.evaluating.measure import validation_point
from scripts.drafter.model.export import export_model
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.stages import MODEL, Run
from scripts.drafter.store import load_json, save_json
from scripts.drafter.training.trainer import Budget, Trainer

REPEATS = 15


def compare(run: Run, results: Path, minutes: float) -> list[str]:
    """Trains and times each cut of the configuration; one that is in the table already is skipped.

    Args:
        minutes: of each training's own time after which it ends before the configured tokens; 0: no limit.
    """
    path, config = results / "students.json", run.config
    table: list[dict[str, Any]] = load_json(path, "compare") if path.exists() else []
    ks = tuple(range(1, config.evaluation.max_k + 1))
    verify_ms = time_verify(run.target, config.evaluation)
    num_layers = run.parts.num_layers
    training = replace(config.training[MODEL], learning_rate=config.compare.learning_rate)
    budget = Budget(config.compare.tokens, minutes * 60 if minutes else math.inf)
    cuts = [[round(share * num_layers) for share in shares] for shares in config.compare.cuts]
    wanted = {layer for trained in cuts for layer in trained} | {num_layers}
    make_states(run.model, run.answers, sorted(wanted - {0}), lambda _: None)
    for trained in cuts:
        if any(row["trained"] == trained for row in table):
            continue
        cut = (trained[0], trained)
        drafter = ModelDrafter(run.parts, config.model, training, cut)
        folder = run.work / "compare" / "-".join(map(str, trained))
        trainer = Trainer(training, config.seed, drafter.parameters(), drafter.loss_of, run.corpus.examples, folder)
        if not trainer.resume():
            drafter.start(run.corpus, config.seed)
        trainer.run(budget, dict, lambda *_: None)
        unseen = validation_point(drafter, run.corpus.held_out("evaluation"), ks, config.seed)
        point = validation_point(drafter, run.corpus.held_out("validation"), ks, config.seed)
        export_model(drafter, run.target, "", folder / "drafter")
        draft_ms = time_draft(folder / "drafter", config.evaluation)
        rounds = [point[f"greedy_k{k}"] for k in ks]
        table.append(
            {
                "machine": machine_facts(),
                "prefix": trained[0],
                "trained": trained,
                "layers": trained[0] + len(trained),
                "trained_parameters": sum(parameter.numel() for parameter in drafter.parameters().values()),
                "trained_tokens": trainer.progress.num_tokens,
                "seconds": round(trainer.progress.seconds),
                "acceptance": point["greedy_acceptance"],
                "tokens_per_round": rounds,
                "evaluation": {mode: [unseen[f"{mode}_k{k}"] for k in ks] for mode in ("greedy", "sampled")},
                "requests": config.evaluation.timing_requests,
                "t_draft_ms": round(draft_ms, 2),
                "t_verify_ms": [round(verify_ms[k], 2) for k in ks],
                **speeds(rounds, draft_ms, [verify_ms[k] for k in ks], config.evaluation.timing_requests),
            }
        )
        save_json(path, table)
    return [line(row) for row in table]


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


def line(row: dict[str, Any]) -> str:
    """One cut as a line of a table."""
    one, two = row["sequential"], row["overlapped"]
    return (
        f"| {row['prefix']} kept, {len(row['trained'])} trained | {row['layers']} | {row['acceptance']:.3f} "
        f"| {row['tokens_per_round'][3]:.2f} | {row['t_draft_ms']:.1f} | {row['t_verify_ms'][3]:.1f} "
        f"| {one['tokens_per_s']:.0f} (k = {one['k']}) | {two['tokens_per_s']:.0f} (k = {two['k']}) |"
    )
