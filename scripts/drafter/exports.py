"""Stages `evaluation` and `export`: their files, tables and cards."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from minedraft.bench.report import machine_facts
from minedraft.models.catalogue import list_models
from scripts.drafter import stages
from scripts.drafter.data.prompts import load_prompts
from scripts.drafter.evaluating.cards import card, figures
from scripts.drafter.evaluating.plot import save_plot
from scripts.drafter.head.export import export_head, ship_head
from scripts.drafter.head.objective import HeadDrafter
from scripts.drafter.model.export import export_model, ship_model
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.stages import Run
from scripts.drafter.store import DrafterError, load_json, save_json, write_atomically

STAGES = ("prompts", "answers", "teacher", "training", "evaluation", "export")
MAX_SHIPPED_BYTES = {stages.HEAD: 20_000_000, stages.MODEL: 27_000_000}
PACKAGES = (
    "half greedy and half sampled, to prompts from chatterbot-corpus (BSD), WritingBench (inspect-evals, MIT),\n"
    "BFCL (Apache-2.0), HumanEval 0 to 99 (MIT) and Python's help topics (PSF), and to prompts that the target wrote\n"
    "itself. BIG-bench's WikiLingua rows are used for evaluation only, as it asks"
)
OWN_FILE = "half greedy and half sampled, to a file's prompts and to prompts that the target wrote itself"
APACHE = (
    "Apache-2.0, as the target it is derived from. The trained tensors are changed files in the sense of the licence."
)


def evaluation(run: Run, results: Path | None, report: Callable[[int], None]) -> list[str]:
    """Measures the trained drafter; writes JSON and a plot to `results`, if given; returns the main figures."""
    result = stages.evaluation(run, report)
    if results is not None:
        save_json(results / f"{run.kind}.json", {"machine": machine_facts(), **result})
        write_atomically(results / f"{run.kind}.png", lambda path: save_plot(result, path))
    return figures(result)


def export(run: Run, output: Path, *, is_shipped: bool) -> list[str]:
    """Writes the drafter's folder with its card; returns its files with their sizes.

    Raises:
        DrafterError: there is no evaluation, or a folder to ship is too large.
    """
    result = load_json(run.training / "evaluation.json", "evaluation")
    drafter = run.trained_drafter()
    kinds = {prompt.kind for prompt in load_prompts(run.work / "prompts.json")}
    data = OWN_FILE if "given" in kinds else PACKAGES
    text = card(result, describe(drafter), data, *licence_of(run))
    if isinstance(drafter, HeadDrafter):
        write = ship_head if is_shipped else export_head
        write(drafter, run.target, text, output)
    else:
        (ship_model if is_shipped else export_model)(drafter, run.target, text, output)
    sizes = {path.name: path.stat().st_size for path in sorted(output.iterdir())}
    total, limit = sum(sizes.values()), MAX_SHIPPED_BYTES[run.kind]
    if is_shipped and total > limit:
        raise DrafterError(f"{output} holds {total:,} bytes, the limit is {limit:,}: train fewer layers")
    return [*(f"{size / 1e6:8.2f} MB  {name}" for name, size in sizes.items()), f"{total / 1e6:8.2f} MB in all"]


def describe(drafter: HeadDrafter | ModelDrafter) -> str:
    """What a drafter is made of, for its card."""
    if isinstance(drafter, HeadDrafter):
        shape = drafter.head.shape
        return (
            f"EAGLE-3's layout with {shape.num_layers} layers and {shape.num_kv_heads} key-value heads each; features "
            f"of the target's layers {', '.join(map(str, shape.features))}.\n"
            "Embeddings and output rows are the target's."
        )
    trained = ", ".join(map(str, drafter.trained))
    return (
        f"The first {drafter.prefix} layers of the target as they are, then {len(drafter.trained)} trained layers\n"
        f"that started from its layers {trained}; embeddings, output rows and tokenizer are the target's."
    )


def licence_of(run: Run) -> tuple[str, str]:
    """The licence's name for a card and its text: that of a known target, else a pointer to the target's own."""
    known = {entry.name: entry.licence for entry in list_models()}
    if known.get(run.target.name, "").startswith("Apache-2.0"):
        return "apache-2.0", APACHE
    values = json.loads((run.target / "config.json").read_text(encoding="utf-8"))
    named = values.get("license") or "other"
    return str(named), "A derivative of the target: the target's licence holds for it."
