"""Stages `compare`, `evaluation`, `quantised` and `export`: their files and tables."""

import copy
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from minedraft.bench.report import machine_facts
from minedraft.models.shipped_drafter import assemble_drafter
from scripts.drafter import stages
from scripts.drafter.config import Config
from scripts.drafter.evaluation import Answer, Drafter, load_answers, measure, save_plot, timing
from scripts.drafter.export import TRAINED_NAME, export_asset, trained_tensors, untrained_cut
from scripts.drafter.llama import load_target
from scripts.drafter.prompts import KINDS
from scripts.drafter.store import DrafterError, load_json, load_tensors, save_json, write_atomically
from scripts.drafter.student import Student, num_trained_parameters
from scripts.drafter.training import Data, Trainer, load_student

CARD = """\
---
license: apache-2.0
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
---
# Drafter of {name}

A pruned, distilled copy of the target that proposes tokens for speculative decoding with it. By itself it is a poor
language model; with the target verifying, the output is the target's own.

- Layers 0 to {prefix_last} of the target as they are, then {num_trained} trained layers that started from its layers
  {trained}; embeddings, output rows and tokenizer are the target's.
- It drafts {vocabulary:,} token ids (draft_vocab.safetensors, int32, sorted): those the target wrote most often while
  the training data was made.
- Stored here: the trained layers and the final norm (trained_layers.safetensors). A matrix is kept as int8 codes
  NAME [rows, columns] and float16 scales NAME.scales, one for every four rows; a weight is its code times its row's
  scale. Norms are kept in bf16. Tokens a round before and after: scripts/drafter/results/quantised.json.
- `minedraft models` checks every file's sha256, adds the rest from the target's folder and writes the whole in bf16.

## How it was trained

By `scripts/train_drafter` (seed {seed}; every constant in scripts/drafter/config.toml), on CPU. Data: only the target's
own answers, half greedy and half sampled, to prompts from chatterbot-corpus (BSD), WritingBench (inspect-evals, MIT),
BFCL (Apache-2.0), HumanEval 0 to 99 (MIT) and Python's help topics (PSF), and to prompts that the target wrote itself.
BIG-bench's WikiLingua rows are used for evaluation only, as it asks.

Start, in closed form: each trained layer's down projection was refitted by least squares on {fit_tokens:,} tokens, so
that the cut's residual stream follows the target's. Then {trained_tokens:,} tokens of training in {steps:,} steps: KL
to the target's distribution over the draft vocabulary, rebuilt from its recorded last hidden states, and the squared
error of those states.

## Figures

{num_prompts} prompts never trained on ({counts}), answers of up to {answer_tokens} tokens, greedy and sampled at
{temperature}. All positions and every k: scripts/drafter/results/evaluation.json.

{figures}

Students weighed (equal short budgets, greedy, validation prompts, k = 4; the last column is what the pipeline makes
while drafting is hidden behind verification, or the other way round):

| layers of the target | layers | trained | at start | acceptance | tokens a round | t_draft / t_verify | tokens/s |
|---|---|---|---|---|---|---|---|
{students}

## Licence

Apache-2.0, as the target it was cut from (SmolLM2-135M-Instruct, Hugging Face TB). The trained layers are changed
files in the sense of the licence.
"""
RESULT_NAME, PLOT_NAME, TABLE_NAME = "evaluation.json", "evaluation.png", "students.json"
QUANTISED_NAME = "quantised.json"
MAX_SHIPPED_BYTES = 32_000_000
MAX_STORED_ERROR = 0.05  # of a tensor's norm


def compare(config: Config, work: Path, target: Path, results: Path, tokens: int) -> list[str]:
    """Trains short versions of several students with equal budgets; a student already in the table is skipped."""
    model = load_target(target, config.target)
    rows = model.lm_head.weight[stages.draft_ids(work)].clone()
    path = results / TABLE_NAME
    table: list[dict[str, Any]] = load_json(path, "compare") if path.exists() else []
    total = tokens or config.compare.tokens
    for prefix, trained in config.compare.students:
        if any(row["prefix"] == prefix and row["trained"] == trained for row in table):
            continue
        own = stages.with_student(config, prefix, trained)
        own = replace(
            own,
            student=replace(own.student, fit_tokens=config.compare.fit_tokens),
            training=replace(own.training, validate_minutes=1e9, checkpoint_minutes=1e9),
        )
        began = time.monotonic()
        student, data = stages.start_student(own, work, model)
        folder = work / "compare" / f"{prefix}-{'-'.join(map(str, trained))}"
        trainer = Trainer(own, student, data, rows, folder)
        trainer.run(total, stages.validation_of(own, work, model, student, data), lambda _, __, ___: None)
        start, end = trainer.progress.curve[0], trainer.progress.curve[-1]
        table.append(
            {
                "prefix": prefix,
                "trained": trained,
                "layers": prefix + len(trained),
                "trained_parameters": num_trained_parameters(student),
                "trained_tokens": trainer.progress.num_tokens,
                "seconds": round(time.monotonic() - began),
                "acceptance_at_start": round(start["greedy_acceptance"], 3),
                "acceptance": round(end["greedy_acceptance"], 3),
                "tokens_per_round": round(end["greedy_tokens_per_round"], 3),
            }
        )
        save_json(path, table)
        shutil.rmtree(folder)  # the optimiser's state of a student that is not trained further
    for row in table:  # one after the other at the end, so that all are timed on the same quiet or busy machine
        cut = untrained_cut(model, [*range(row["prefix"]), *row["trained"]])
        row |= timing(model, cut, stages.draft_ids(work), config.evaluation)
        # What the pipeline makes while both batches are in flight: a round ends when the slower side does.
        slower_ms = max(row["t_draft_ms"], row["t_verify_ms"])
        row["tokens_per_second"] = round(1000 * row["requests"] * row["tokens_per_round"] / slower_ms, 1)
        save_json(path, table)
    return [student_line(row) for row in table]


def student_line(row: dict[str, Any]) -> str:
    """One student as a line of a table."""
    trained = ",".join(map(str, row["trained"]))
    return (
        f"| 0..{row['prefix'] - 1} kept; {trained} trained | {row['layers']} | {row['trained_parameters'] / 1e6:.1f}M "
        f"| {row['acceptance_at_start']:.3f} | {row['acceptance']:.3f} | {row['tokens_per_round']:.2f} "
        f"| {row['ratio']:.2f} | {row['tokens_per_second']:.0f} |"
    ).replace("0..-1 kept; ", "")


def evaluation(
    config: Config, work: Path, target: Path, results: Path, report: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Measures the exported drafter as transformers loads it; writes JSON and a plot."""
    model = load_target(target, config.target)
    ids = stages.draft_ids(work)
    trained = _assembled(config, work, target, _trained_student(config, work, model))
    cut = untrained_cut(model, [*range(config.student.prefix), *config.student.trained])
    drafters = {
        "trained": _drafter(config, trained, ids),
        "untrained cut": Drafter(cut, Student(model, config.student.trained), ids),
    }
    header, answers = _answers(config, work, model)
    progress = load_json(work / "training" / "progress.json", "training")
    table_path = results / TABLE_NAME
    result = {
        "target": config.target.name,
        "student": asdict(config.student),
        **_counts(answers),
        "trained_tokens": progress["num_tokens"],
        "steps": progress["num_steps"],
        "timing": timing(model, trained, ids, config.evaluation),
        "acceptance": measure(answers, drafters, header, model.lm_head.weight, config, report),
        "curve": progress["curve"],
        "students": load_json(table_path, "compare") if table_path.exists() else [],
    }
    save_json(results / RESULT_NAME, result)
    write_atomically(results / PLOT_NAME, lambda path: save_plot(result, path))
    return figures(result)


def quantised(
    config: Config, work: Path, target: Path, results: Path, report: Callable[[int], None] = lambda _: None
) -> list[str]:
    """Measures what storing in 8 bits costs: the exported drafter beside the same weights in bf16; writes JSON."""
    model = load_target(target, config.target)
    ids = stages.draft_ids(work)
    student = _trained_student(config, work, model)
    after = _assembled(config, work, target, student)
    before = copy.deepcopy(after)
    weights = trained_tensors(student, config.student.prefix)
    loaded = before.load_state_dict({name: tensor.bfloat16() for name, tensor in weights.items()}, strict=False)
    assert not loaded.unexpected_keys
    drafters = {"bf16": _drafter(config, before, ids), "8 bits": _drafter(config, after, ids)}
    header, answers = _answers(config, work, model)
    measured = measure(answers, drafters, header, model.lm_head.weight, config, report)
    rounds = {
        mode: {kind: {name: rows[name]["tokens_per_round"] for name in drafters} for kind, rows in kinds.items()}
        for mode, kinds in measured.items()
    }
    result = {
        "machine": machine_facts(),
        "target": config.target.name,
        **_counts(answers),
        "weight_bytes": {
            "bf16": 2 * num_trained_parameters(student),
            "8 bits": (work / "asset" / TRAINED_NAME).stat().st_size,
        },
        "tokens_per_round": rounds,
    }
    save_json(results / QUANTISED_NAME, result)
    return _quantised_lines(rounds, config.evaluation.timing_k)


def export(config: Config, work: Path, target: Path, results: Path, output: Path) -> list[str]:
    """Writes the shipped folder with its card."""
    result = load_json(results / RESULT_NAME, "evaluation")
    if (results / TABLE_NAME).exists():  # it may be newer than the evaluation
        result["students"] = load_json(results / TABLE_NAME, "compare")
    sizes = _export(config, work, target, card(config, result), output)
    total = sum(sizes.values())
    if total > MAX_SHIPPED_BYTES:
        raise DrafterError(f"{output} holds {total:,} bytes, the limit is {MAX_SHIPPED_BYTES:,}: train fewer layers")
    return [*(f"{size / 1e6:8.2f} MB  {name}" for name, size in sizes.items()), f"{total / 1e6:8.2f} MB in all"]


def figures(result: dict[str, Any]) -> list[str]:
    """The main figures, as lines of a table."""
    k = result["timing"]["k"]
    names = ("trained", "trained + lookup", "prompt lookup", "untrained cut")
    lines = [
        f"Tokens a round at k = {k}:",
        "",
        "| prompts | mode | " + " | ".join(names) + " | first draft accepted |",
        "|---" * (len(names) + 3) + "|",
    ]
    for mode, kinds in result["acceptance"].items():
        for kind, rows in kinds.items():
            values = " | ".join(f"{rows[name]['tokens_per_round'][k - 1]:.2f}" for name in names)
            lines.append(f"| {kind} | {mode} | {values} | {rows['trained']['accepted_at'][0]:.2f} |")
    times = result["timing"]
    lines += [
        "",
        f"t_draft (k = {times['k']}, {times['requests']} requests) {times['t_draft_ms']} ms, t_verify "
        f"{times['t_verify_ms']} ms: {times['ratio']:.2f} ({times['executor']}).",
    ]
    return lines


def card(config: Config, result: dict[str, Any]) -> str:
    """The model card."""
    student = config.student
    counts = ", ".join(f"{number} {kind}" for kind, number in result["prompts"].items())
    return CARD.format(
        name=config.target.name,
        prefix_last=student.prefix - 1,
        num_trained=len(student.trained),
        trained=", ".join(map(str, student.trained)),
        vocabulary=config.draft_vocabulary.size,
        seed=config.seed,
        fit_tokens=student.fit_tokens,
        trained_tokens=result["trained_tokens"],
        steps=result["steps"],
        num_prompts=sum(result["prompts"].values()),
        counts=counts,
        answer_tokens=config.evaluation.answer_tokens,
        temperature=config.evaluation.temperature,
        figures="\n".join(figures(result)),
        students="\n".join(student_line(row) for row in result["students"]),
    )


def _quantised_lines(rounds: dict[str, Any], k: int) -> list[str]:
    lines = [f"Tokens a round at k = {k}:", "", "| prompts | mode | bf16 | 8 bits | change |", "|---" * 5 + "|"]
    for mode, kinds in rounds.items():
        for kind, values in kinds.items():
            before, after = values["bf16"][k - 1], values["8 bits"][k - 1]
            change = after / before - 1 if before else 0.0
            lines.append(f"| {kind} | {mode} | {before:.3f} | {after:.3f} | {change:+.2%} |")
    return lines


def _counts(answers: list[Answer]) -> dict[str, Any]:
    # Every prompt has a greedy and a sampled answer.
    return {
        "prompts": {kind: sum(1 for one in answers if one.kind == kind) // 2 for kind in KINDS},
        "answer_tokens": sum(len(one.tokens) - one.start for one in answers),
    }


def _answers(config: Config, work: Path, model: LlamaForCausalLM) -> tuple[torch.Tensor, list[Answer]]:
    """The states of the header that all answers share, and the answers to the evaluation prompts."""
    data = Data(work / "answers", config.student.prefix, config, model.model.embed_tokens.weight)
    return data.header, load_answers(work / "answers", config)


def _drafter(config: Config, model: LlamaForCausalLM, ids: torch.Tensor) -> Drafter:
    return Drafter(model, _layers(config, model), ids)


def _layers(config: Config, model: LlamaForCausalLM) -> Student:
    """The trained layers of a whole drafter."""
    return Student(model, list(range(config.student.prefix, config.student.num_layers)))


def _assembled(config: Config, work: Path, target: Path, student: Student) -> LlamaForCausalLM:
    """Returns the trained drafter as users get it: exported, assembled, loaded.

    Raises:
        DrafterError: its weights differ from the student's by more than 8 bits explain.
    """
    export_asset(config, student, stages.draft_ids(work), target, "", work / "asset")
    assemble_drafter(work / "asset", target, work / "drafter")
    model = LlamaForCausalLM.from_pretrained(work / "drafter", dtype=torch.float32, local_files_only=True)
    loaded = _layers(config, model)
    for (name, trained), found in zip(student.named_parameters(), loaded.parameters(), strict=True):
        error = float((found - trained).detach().norm() / trained.detach().norm())
        if error > MAX_STORED_ERROR:
            raise DrafterError(
                f"{name} of the assembled drafter differs by {error:.1%} from the trained one, "
                f"at most {MAX_STORED_ERROR:.0%} is storage in 8 bits: export and assembly disagree"
            )
    return model


def _export(config: Config, work: Path, target: Path, text: str, output: Path) -> dict[str, int]:
    student = _trained_student(config, work, load_target(target, config.target))
    return export_asset(config, student, stages.draft_ids(work), target, text, output)


def _trained_student(config: Config, work: Path, model: LlamaForCausalLM) -> Student:
    student = Student(model, config.student.trained)
    path = work / "training" / "checkpoint.safetensors"
    if not path.exists():
        raise DrafterError(f"{path} is missing: run the stage `training` first")
    load_student(student, load_tensors(path), path)
    return student
