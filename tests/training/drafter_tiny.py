"""Runs of a tiny random target, for the tests of scripts/train_drafter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from scripts.drafter import stages
from scripts.drafter.config import Config
from scripts.drafter.stages import Run
from scripts.drafter.store import save_json

NEVER: Callable[..., None] = lambda *_: None  # noqa: E731 (a name for "report nothing")


def save_prompts(work: Path, number: int = 8) -> None:
    """Saves given and self-written prompts of a kind, and two held-out ones of another in each split."""
    rows = []
    for n in range(number):
        text = "abc d"[: 2 + n % 4]
        rows.append({"id": f"given-{n}", "kind": "chat", "split": "training", "text": text})
        own = {"id": f"own-{n}", "kind": "chat", "split": "training", "text": "a" * (n % 2), "is_self_written": True}
        rows.append(own)
    for split in ("validation", "evaluation"):
        rows += [{"id": f"{split}-{n}", "kind": "code", "split": split, "text": "fgh"[n:]} for n in (0, 1)]
    save_json(work / "prompts.json", rows)


def answered(config: Config, target: Path, work: Path, kind: str = stages.HEAD, total: int = 10**6) -> Run:
    """A run whose answers are made."""
    run = Run(config, work, target, kind)
    save_prompts(work)
    stages.answers(run, total, (0, 1), NEVER)
    return run


def taught(config: Config, target: Path, work: Path, kind: str = stages.HEAD) -> Run:
    """A run whose answers and states are made."""
    run = answered(config, target, work, kind)
    stages.teacher(run, NEVER)
    return run


def trained(config: Config, target: Path, work: Path, kind: str = stages.HEAD, total: int = 60) -> Run:
    """A run whose drafter is trained a little."""
    run = taught(config, target, work, kind)
    stages.training(run, total, 0, None, NEVER)
    return run
