"""Which scores leave the output law alone, by enumeration: all drafts of two requests of a batch, the choice among
them, and every way in which acceptance can go."""

from __future__ import annotations

import itertools
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence

import pytest

from minedraft.core.policy.tetris import best_prefixes
from minedraft.types import ScoreKind
from minedraft_workers.sampling.acceptance import accept_prob

VOCAB = 3
NUM_DRAFTS = 2
Law = dict[tuple[int, ...], float]
Drafts = tuple[int, ...]


class Pair:
    """One request's target and drafter: a distribution for each context."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def p(self, context: Drafts) -> list[float]:
        return self._distribution("p", context)

    def q(self, context: Drafts) -> list[float]:
        return self._distribution("q", context)

    def proposals(self) -> Iterator[tuple[Drafts, float]]:
        for drafts in itertools.product(range(VOCAB), repeat=NUM_DRAFTS):
            prob = 1.0
            for index, draft in enumerate(drafts):
                prob *= self.q(drafts[:index])[draft]
            yield drafts, prob

    def scores(self, kind: ScoreKind, drafts: Drafts) -> list[float]:
        rows = [self.q(drafts[:index]) for index in range(len(drafts))]
        return [max(q) if kind is ScoreKind.PEAK else q[draft] for q, draft in zip(rows, drafts, strict=True)]

    def verified(self, drafts: Drafts) -> Law:
        """The law of the first NUM_DRAFTS tokens after these drafts were verified. The target alone adds what a
        round lacks: later rounds are draws of their own."""
        law: Law = defaultdict(float)
        alive = 1.0
        for index, draft in enumerate(drafts):
            p, q = self.p(drafts[:index]), self.q(drafts[:index])
            accept = accept_prob(p[draft], q[draft])
            rest = [max(a - b, 0.0) for a, b in zip(p, q, strict=True)]
            for token, weight in enumerate(rest):
                if weight:
                    self._complete(law, (*drafts[:index], token), alive * (1 - accept) * weight / sum(rest))
            alive *= accept
        self._complete(law, drafts, alive)
        return law

    def alone(self) -> Law:
        return self.verified(())

    def _complete(self, law: Law, tokens: Drafts, prob: float) -> None:
        if len(tokens) == NUM_DRAFTS:
            law[tokens] += prob
            return
        for token, share in enumerate(self.p(tokens)):
            self._complete(law, (*tokens, token), prob * share)

    def _distribution(self, name: str, context: Drafts) -> list[float]:
        weights = random.Random(f"{self._seed} {name} {context}")
        row = [weights.random() ** 3 + 0.01 for _ in range(VOCAB)]
        return [weight / sum(row) for weight in row]


def joint_law(pairs: Sequence[Pair], kind: ScoreKind, capacity: int) -> Law:
    """The law of both requests' tokens, one after the other."""
    law: Law = defaultdict(float)
    for (drafts_a, prob_a), (drafts_b, prob_b) in itertools.product(pairs[0].proposals(), pairs[1].proposals()):
        scores = [pairs[0].scores(kind, drafts_a), pairs[1].scores(kind, drafts_b)]
        num_a, num_b = best_prefixes(scores, capacity)
        law_a, law_b = pairs[0].verified(drafts_a[:num_a]), pairs[1].verified(drafts_b[:num_b])
        for (a, share_a), (b, share_b) in itertools.product(law_a.items(), law_b.items()):
            law[a + b] += prob_a * prob_b * share_a * share_b
    return law


def distance(law: Law, pairs: Sequence[Pair]) -> float:
    """The largest difference to two targets that each decode alone, independently of each other."""
    alone = itertools.product(pairs[0].alone().items(), pairs[1].alone().items())
    return max(abs(law.get(a + b, 0.0) - share_a * share_b) for (a, share_a), (b, share_b) in alone)


@pytest.mark.parametrize("capacity", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(3))
def test_scores_of_positions_leave_the_law_of_all_requests_together_alone(seed: int, capacity: int) -> None:
    pairs = Pair(2 * seed), Pair(2 * seed + 1)
    law = joint_law(pairs, ScoreKind.PEAK, capacity)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert distance(law, pairs) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_scores_of_the_drawn_tokens_do_not(seed: int) -> None:
    pairs = Pair(2 * seed), Pair(2 * seed + 1)
    assert distance(joint_law(pairs, ScoreKind.DRAWN, 2), pairs) > 1e-3


@pytest.mark.parametrize(("kind", "expected"), [(ScoreKind.DRAWN, 0.55), (ScoreKind.PEAK, 0.5)])
def test_the_paper_s_rule_favours_what_the_drafter_favours(kind: ScoreKind, expected: float) -> None:
    """q = (0.9, 0.1), p = (0.5, 0.5), and room for one draft, which a draft of another request wants too."""
    q, p, of_other = (0.9, 0.1), (0.5, 0.5), 0.5
    first = 0.0
    for draft in (0, 1):
        score = max(q) if kind is ScoreKind.PEAK else q[draft]
        is_verified = best_prefixes([[score], [of_other]], 1)[0] == 1
        accept = accept_prob(p[draft], q[draft])
        if not is_verified:
            share = p[0]
        elif draft == 0:
            share = accept  # what replaces it is the other token: only there p > q
        else:
            share = 1.0 - accept
        first += q[draft] * share
    assert first == pytest.approx(expected, abs=1e-12)
