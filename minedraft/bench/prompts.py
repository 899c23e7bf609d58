"""The prompts of a benchmark: what one is, those of the package, and how a run takes some of many."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from minedraft.bench.datasets.files import ANY_LAYOUT, read_dataset
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.prompts import Prompt


def load_prompts(path: Path | None, layout: str = ANY_LAYOUT) -> list[BenchPrompt]:
    """Return the prompts of a file, or the 24 that come with the package.

    Raises:
        ConfigError: see `read_dataset`.
    """
    return read_dataset(path or Path(str(files("minedraft") / "assets" / "prompts.json")), layout)


def choose_prompts(prompts: Sequence[BenchPrompt], num: int, seed: int | None) -> list[BenchPrompt]:
    """Return `num` prompts: shuffled by the seed, or, without one, in their order; again from the start if there are
    too few."""
    order = list(prompts)
    if seed is not None:
        random.Random(seed).shuffle(order)
    return [order[i % len(order)] for i in range(num)]


def as_prompt(prompt: BenchPrompt, *, has_template: bool) -> Prompt:
    """Return what a client sends: messages for the model's chat template, or the text alone."""
    if not has_template:
        return prompt.text
    messages: Sequence[Mapping[str, str]] = prompt.messages or [{"role": "user", "content": prompt.text}]
    return messages
