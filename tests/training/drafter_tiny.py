"""Answers of a tiny random target, for the tests of scripts/train_drafter."""

from __future__ import annotations

from pathlib import Path

from scripts.drafter import stages
from scripts.drafter.answers import make_answers
from scripts.drafter.config import Config
from scripts.drafter.llama import load_target
from scripts.drafter.prompts import Prompt


def make_prompts(number: int = 8) -> list[Prompt]:
    given = [Prompt(f"given-{n}", "chat", "training", "abc d"[: 2 + n % 4]) for n in range(number)]
    own = [Prompt(f"own-{n}", "chat", "training", "a" * (n % 2), is_self_written=True) for n in range(number)]
    held_out = [
        Prompt(f"{split}-{n}", "code", split, "fgh"[n:]) for split in ("validation", "evaluation") for n in (0, 1)
    ]
    return held_out + [prompt for pair in zip(given, own, strict=True) for prompt in pair]


def answer(config: Config, target: Path, work: Path, total: int = 10**6, prompts: int = 8) -> None:
    model = load_target(target, config.target)
    tokenizer = stages.load_tokenizer(target)
    make_answers(config, model, tokenizer, make_prompts(prompts), work / "answers", total, lambda *_: None)


def prepare(config: Config, target: Path, work: Path) -> None:
    answer(config, target, work)
    stages.student(config, work, target)
