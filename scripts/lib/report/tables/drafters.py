"""The trained drafters, of the files of `scripts/train_drafter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Results

_FOLDER = "scripts/drafter/results"


def drafters_table(results: Results) -> str:
    """Return tokens a round of the draft model, of the one before it, and of the head, by kind of prompt."""
    model, head = results.load(f"{_FOLDER}/model.json"), results.load(f"{_FOLDER}/head.json")
    kinds = list(model["prompts"])
    lines = [
        ["draft model, greedy, k = 4", *_figures(model["acceptance"], "trained", 4, kinds)],
        ["the same in 8 bits, as it is packed", *_figures(model["acceptance"], "8 bits", 4, kinds)],
        ["the one before it", *_figures(model["shipped_before"], "trained", 4, kinds)],
        ["head, greedy, k = 3", *_figures(head["acceptance"], "trained", 3, kinds)],
        ["head and lookup, greedy, k = 3", *_figures(head["acceptance"], "trained + lookup", 3, kinds)],
    ]
    return to_table(["tokens a round", *kinds, "all", "all, sampled"], lines)


def _figures(acceptance: Mapping[str, Any], way: str, draft_len: int, kinds: list[str]) -> list[str]:
    greedy = [acceptance["greedy"][kind][way] for kind in [*kinds, "all"]]
    return [f"{part['tokens_per_round'][draft_len - 1]:.2f}" for part in [*greedy, acceptance["sampled"]["all"][way]]]
