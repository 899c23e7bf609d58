"""Acceptance and rounds of drafters on answers that no training read, beside prompt lookup."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch

from scripts.drafter.config import EvaluationConfig
from scripts.drafter.data.corpus import Example, in_order
from scripts.drafter.evaluating.acceptance import Flags, Rounds, draw_flags, walk_proposals, walk_rounds
from scripts.drafter.training.drafter import TrainedDrafter

MODES = ("greedy", "sampled")
SAMPLED_DRAWS = 8  # accept or reject draws of each sampled answer
GROUP = 8  # answers that run together
LOOKUP = "prompt lookup"


class Totals:
    """Rounds by mode, kind of prompt, drafter and k."""

    def __init__(self, max_k: int) -> None:
        self.max_k = max_k
        self._rounds: dict[tuple[str, str, str, int], Rounds] = {}

    def add(self, example: Example, name: str, k: int, rounds: Rounds) -> None:
        """Adds an answer's rounds to its kind and to all kinds."""
        for kind in (example.kind, "all"):
            key = (mode_of(example), kind, name, k)
            self._rounds[key] = self._rounds[key] + rounds if key in self._rounds else rounds

    def table(self) -> dict[str, Any]:
        """Returns {mode: {kind: {drafter: summary}}} of what was added, as plain values."""
        table: dict[str, Any] = {}
        for mode, kind, name, _ in sorted(self._rounds):
            found = [self._rounds.get((mode, kind, name, k)) for k in range(1, self.max_k + 1)]
            by_k = [rounds for rounds in found if rounds is not None]
            table.setdefault(mode, {}).setdefault(kind, {})[name] = _summary(by_k)
        return table


def mode_of(example: Example) -> str:
    """Returns whether an answer is greedy or sampled."""
    return MODES[example.temperature > 0]


def measure(
    examples: Iterable[Example],
    drafters: dict[str, TrainedDrafter],
    config: EvaluationConfig,
    seed: int,
    report: Callable[[int], None],
) -> dict[str, Any]:
    """Measures every drafter, prompt lookup, and the first drafter with lookup ("NAME + lookup").

    Returns:
        {mode: {kind or "all": {drafter: {"tokens_per_round": [k = 1 ..], "accepted_at": [position 1 ..],
        "accepted_given_reached": [...], "rounds": n}}}}.
    """
    totals, num_done = Totals(config.max_k), 0
    first = next(iter(drafters))
    for examples_of_group in in_order(list(examples), GROUP):
        found = {name: drafter.acceptance(examples_of_group, config.max_k) for name, drafter in drafters.items()}
        for number, example in enumerate(examples_of_group):
            draws = {
                name: draw_flags(by_name[number], SAMPLED_DRAWS if example.temperature else 1, seed + num_done)
                for name, by_name in found.items()
            }
            _walk(totals, example, draws, first, config)
            num_done += 1
            report(num_done)
    return totals.table()


def _walk(
    totals: Totals, example: Example, draws: dict[str, list[Flags]], first: str, config: EvaluationConfig
) -> None:
    tokens, start, ngram = example.tokens.tolist(), example.answer_start, config.lookup_max_ngram
    for k in range(1, config.max_k + 1):
        totals.add(example, LOOKUP, k, walk_proposals(tokens, start, k, ngram, None))
        for name, flags in draws.items():
            for one in flags:
                totals.add(example, name, k, walk_rounds(one, k))
        for one in draws[first]:
            totals.add(example, f"{first} + lookup", k, walk_proposals(tokens, start, k, ngram, one))


def validation_point(
    drafter: TrainedDrafter, examples: list[Example], ks: tuple[int, ...], seed: int
) -> dict[str, float]:
    """Returns tokens a round for each k and the first draft's acceptance, greedy and sampled."""
    return points_by_kind(drafter, examples, ks, seed)["all"]


def points_by_kind(
    drafter: TrainedDrafter, examples: list[Example], ks: tuple[int, ...], seed: int
) -> dict[str, dict[str, float]]:
    """Returns what `validation_point` does for each kind of prompts, and for "all"."""
    rounds: dict[str, dict[tuple[str, int], Rounds]] = {}
    hits: dict[str, dict[str, list[torch.Tensor]]] = {}
    for group in in_order(examples, GROUP):
        for example, probabilities in zip(group, drafter.acceptance(group, max(ks)), strict=True):
            mode = mode_of(example)
            walked = [
                (k, walk_rounds(flags, k))
                for flags in draw_flags(probabilities, 4 if example.temperature else 1, seed)
                for k in ks
            ]
            for kind in (example.kind, "all"):
                hits.setdefault(kind, {}).setdefault(mode, []).append(probabilities[0])
                sums = rounds.setdefault(kind, {})
                for k, one in walked:
                    sums[mode, k] = sums[mode, k] + one if (mode, k) in sums else one
    return {
        kind: {f"{mode}_acceptance": round(float(torch.cat(found).mean()), 4) for mode, found in hits[kind].items()}
        | {f"{mode}_k{k}": round(found.tokens_per_round, 4) for (mode, k), found in sums.items()}
        for kind, sums in rounds.items()
    }


def _summary(by_k: list[Rounds]) -> dict[str, Any]:
    longest = by_k[-1]
    reached = [longest.num_rounds, *longest.reached]
    return {
        "tokens_per_round": [round(rounds.tokens_per_round, 3) for rounds in by_k],
        "accepted_at": [round(count / max(1, longest.num_rounds), 3) for count in longest.reached],
        "accepted_given_reached": [round(after / before, 3) if before else 0.0 for before, after in pairwise(reached)],
        "rounds": longest.num_rounds,
    }
