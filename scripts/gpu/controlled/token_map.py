"""The successor maps of the controlled pair, and what follows from them: answers, acceptance, rounds.

The target continues every token t with f(t); f is one cycle through all ids, so an answer repeats only after
the whole vocabulary. The draft model continues t with f'(t), a permutation that equals f on a share alpha of
the ids, chosen at random. A draft is accepted exactly if f' equals f on the token before it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_TARGET_SEED, _DRAFT_SEED = 1, 2


@dataclass(frozen=True, slots=True)
class Counts:
    """The account of one answer: rounds that sampled, drafts verified, drafts accepted."""

    rounds: int
    drafted: int
    accepted: int


@dataclass(frozen=True, slots=True)
class TokenMap:
    """f and f', each int64 [number of ids]: entry t is the token that follows t."""

    target: np.ndarray
    draft: np.ndarray

    @classmethod
    def make(cls, num_ids: int, alpha: float) -> TokenMap:
        """Return the maps; the same arguments always give the same maps.

        Args:
            alpha: share of the ids on which f' equals f, rounded to whole ids.

        Raises:
            ValueError: alpha is outside [0, 1], or leaves exactly one id to differ: two permutations differ
                on two ids or more.
        """
        num_wrong = num_ids - round(alpha * num_ids)
        if not 0 <= alpha <= 1 or num_wrong == 1:
            raise ValueError(f"alpha {alpha} of {num_ids} ids: must be in [0, 1] and not leave exactly one id wrong")
        # RandomState: numpy promises that its streams never change.
        cycle = np.random.RandomState(_TARGET_SEED).permutation(num_ids)
        target = np.empty(num_ids, dtype=np.int64)
        target[cycle] = np.roll(cycle, -1)
        wrong = np.random.RandomState(_DRAFT_SEED).permutation(num_ids)[:num_wrong]
        draft = target.copy()
        draft[wrong] = target[np.roll(wrong, 1)]
        return cls(target, draft)

    def answer(self, last: int, num_tokens: int) -> list[int]:
        """Return the target's `num_tokens` tokens after a prompt that ends with `last`."""
        return _follow(self.target, last, num_tokens)

    def drafts(self, last: int, num_tokens: int) -> list[int]:
        """Return the draft model's `num_tokens` tokens after `last`."""
        return _follow(self.draft, last, num_tokens)

    def accepted_len(self, last: int, draft_len: int) -> int:
        """Return how many of `draft_len` drafts after `last` the target accepts."""
        pairs = zip(self.answer(last, draft_len), self.drafts(last, draft_len), strict=True)
        return next((i for i, (ours, theirs) in enumerate(pairs) if ours != theirs), draft_len)

    def acceptance(self, lasts: Iterable[int], draft_len: int) -> list[float]:
        """Return for each draft position the share of `lasts` after which the drafts up to it are accepted."""
        lens = np.array([self.accepted_len(last, draft_len) for last in lasts])
        return [float((lens > i).mean()) for i in range(draft_len)]

    def count(self, last: int, num_tokens: int, draft_len: int) -> Counts:
        """Return the account of an answer of `num_tokens` tokens, for a prompt of three tokens or more.

        The first round has no drafts, because the drafter caches the prompt meanwhile; in a later one the
        drafts leave room for the token that the target adds.
        """
        rounds, drafted, accepted, remaining = 1, 0, 0, num_tokens - 1
        last = int(self.target[last])
        while remaining:
            asked = min(draft_len, remaining - 1)
            taken = self.accepted_len(last, asked)
            last = self.answer(last, taken + 1)[-1]
            rounds, drafted, accepted, remaining = rounds + 1, drafted + asked, accepted + taken, remaining - taken - 1
        return Counts(rounds, drafted, accepted)


def _follow(successors: np.ndarray, last: int, num_tokens: int) -> list[int]:
    tokens = []
    for _ in range(num_tokens):
        last = int(successors[last])
        tokens.append(last)
    return tokens
