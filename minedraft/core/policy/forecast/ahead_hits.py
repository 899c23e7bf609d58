"""How often drafts that were prepared during a verify are of use. Pure."""

from __future__ import annotations

_GUESSED = 0.7  # expected share of right guesses of one token while nothing was tried
_WEIGHT = 8.0  # of what is expected, in runs
_FADE = 1 - 1 / 200  # weight that older ones keep with each new one
_SETTLED = 12  # rounds after which the part of the requests that have drafts hardly changes


class AheadHits:
    """Learns from runs ahead, by how many drafts of the request were verified meanwhile.

    A branch is right if the drafts are judged as it supposes, and the token after them is the one that it guessed. That
    branch in which d drafts are accepted is right with probability g^(d + 1), where g is that of one token; n branches
    miss as often as sqrt(n) such ones would. This is a fit to what was measured, with which one number of drafts tells
    something of another; g is the acceptance of drafts until there were runs.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[int, int], tuple[float, float]] = {}  # by drafts and branches: used, and all
        self._judged = self._accepted = 0.0  # drafts

    def judge(self, num_drafts: int, accepted_len: int) -> None:
        """Take the verdict on a request's drafts."""
        num_judged = min(accepted_len + 1, num_drafts)
        fade = _FADE**num_judged
        self._judged = fade * self._judged + num_judged
        self._accepted = fade * self._accepted + accepted_len

    def add(self, num_drafts: int, num_branches: int, came_true: bool) -> None:
        """Take the run of one request: whether one of its branches came true."""
        used, num_runs = self._runs.get((num_drafts, num_branches), (0.0, 0.0))
        self._runs[num_drafts, num_branches] = _FADE * used + came_true, _FADE * num_runs + 1

    def rate(self, num_drafts: int, num_branches: int) -> float:
        """Return the probability that one of a request's branches comes true."""
        key = num_drafts, num_branches
        guessed = (self._accepted + _WEIGHT * _GUESSED) / (self._judged + _WEIGHT)
        nearest = min(
            self._runs, key=lambda other: (abs(other[0] - num_drafts), abs(other[1] - num_branches)), default=key
        )
        if nearest != key:
            guessed = _guess_rate(self._mean(nearest, guessed), *nearest)
        return self._mean(key, guessed)

    def settle(self, depth: int, num_branches: int, num_requests: int) -> tuple[float, float]:
        """Return the part of the requests of a batch that have drafts in a round, and the probability that the drafter
        is asked before it: only if no branch of any request came true, and then for all of them."""
        with_drafts, without = self.rate(depth, num_branches), self.rate(0, num_branches)
        share, is_asked = 1.0, 0.0
        for _ in range(_SETTLED):
            ready = share * with_drafts + (1 - share) * without
            is_asked = (1 - ready) ** num_requests
            share = ready + is_asked
        return share, is_asked

    def _mean(self, key: tuple[int, int], guessed: float) -> float:
        used, num_runs = self._runs.get(key, (0.0, 0.0))
        return (used + _WEIGHT * _hit_rate(guessed, *key)) / (num_runs + _WEIGHT)


def _hit_rate(guessed: float, num_drafts: int, num_branches: int) -> float:
    missed: float = (1 - guessed ** (num_drafts + 1)) ** num_branches**0.5
    return 1 - missed


def _guess_rate(hit_rate: float, num_drafts: int, num_branches: int) -> float:
    """Return the inverse of `_hit_rate`."""
    one: float = 1 - (1 - hit_rate) ** (1 / num_branches**0.5)
    guessed: float = one ** (1 / (num_drafts + 1))
    return guessed
