"""Laws of how likely a draft is accepted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

AcceptanceLaw = Callable[[int, int, float], float]
"""The probability that a draft is accepted, given its request's kind (its first prompt token), how many accepted drafts
go before it in its round, and its place: a number in [0, 1) that is drawn once for each position of a request. What a
drafter knows of its drafts is this probability."""

EASY, HARD = 0.95, 0.25


def same(rate: float) -> AcceptanceLaw:
    """Return the law of drafts that are all as likely."""
    return lambda kind, num_before, place: rate


def by_kind(rates: Sequence[float]) -> AcceptanceLaw:
    """Return the law of texts of several kinds."""
    return lambda kind, num_before, place: rates[kind % len(rates)]


def easy_and_hard(rate: float) -> AcceptanceLaw:
    """Return the law of positions that are easy, where drafts are accepted with probability EASY, or hard (HARD), in
    such shares that `rate` is the mean. Beyond these bounds all are alike.

    Language is so: most drafts are nearly certain, few are guesses, and drafters know which. A policy that chooses
    among drafts lives on that.
    """
    if not HARD < rate < EASY:
        return same(rate)
    share = (rate - HARD) / (EASY - HARD)
    return lambda kind, num_before, place: EASY if place < share else HARD


def chance_at(seed: int, request_id: int, position: int, purpose: int = 0) -> float:
    """Return a number in [0, 1) that depends on its arguments alone (the finaliser of SplitMix64)."""
    mask = (1 << 64) - 1
    value = seed * 0x9E3779B97F4A7C15 + request_id * 0xD1B54A32D192ED03 + position * 0x8CB92BA72F3D8DD7
    value = (value + purpose * 0xA0761D6478BD642F + 1) & mask
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & mask
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & mask
    return ((value ^ (value >> 31)) >> 11) / (1 << 53)
