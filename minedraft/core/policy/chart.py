"""A sequential test of acceptance: evidence, row by row, that drafts are useless. Pure.

The row of a request in a round says whether its first draft was accepted. Page's cumulative sum (Page 1954) adds the
logarithm of how much likelier the row is if one in `USELESS` first drafts is accepted than if a useful share is, and
never falls below 0. Rows of useful drafts reach `limit` by chance after e^limit rows on average, or later
(Lorden 1971), whatever came before them; rows without any accepted draft after about limit / -log(1 - useful).
"""

from __future__ import annotations

from math import log

USELESS = 0.03
"""Share of accepted first drafts that pays on no device: they add at most so many tokens, and cost more time."""

USEFUL = 0.10
"""Share from which drafts may pay."""

_MOST_USEFUL = 0.30
_NUM_KNOWN = 200  # rows after which a baseline counts
_FADE = 1 - 1 / 2000  # weight that the rows of a baseline keep with each new one


class AcceptanceChart:
    """The evidence of one series of rows.

    Args:
        limit: evidence that is enough.

    Attributes:
        evidence: 0 while rows look useful. num_rows, num_accepted: since the last `restart`.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.evidence = 0.0
        self.num_rows = 0
        self.num_accepted = 0

    @property
    def is_alarmed(self) -> bool:
        return self.evidence >= self._limit

    def add(self, is_accepted: bool, useful: float = USEFUL) -> None:
        """Take a row; `useful` is the acceptance of sound drafts."""
        self.num_rows += 1
        self.num_accepted += is_accepted
        change = log(USELESS / useful) if is_accepted else log((1 - USELESS) / (1 - useful))
        self.evidence = max(self.evidence + change, 0.0)

    def restart(self, *, is_suspicious: bool) -> None:
        """Begin anew; a suspicious series needs half the rows for another alarm, and must clear itself."""
        self.evidence = self._limit / 2 if is_suspicious else 0.0
        self.num_rows = self.num_accepted = 0


class Baseline:
    """The usual acceptance of first drafts, over all requests."""

    def __init__(self) -> None:
        self._rows = 0.0
        self._accepted = 0.0

    def add(self, is_accepted: bool) -> None:
        self._rows = self._rows * _FADE + 1
        self._accepted = self._accepted * _FADE + is_accepted

    @property
    def rate(self) -> float:
        return self._accepted / max(self._rows, 1.0)

    @property
    def useful(self) -> float:
        """Half the usual rate, within what may pay at all: a request far below the others can be told sooner."""
        return min(max(self.rate / 2, USEFUL), _MOST_USEFUL) if self._rows >= _NUM_KNOWN else USEFUL
