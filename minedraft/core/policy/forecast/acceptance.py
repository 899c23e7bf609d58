"""How likely drafts are accepted: by position over all requests, and how one request differs from that. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt

from minedraft.core.request import Request
from minedraft.sampling_params import MAX_DRAFT_LEN

_EXPECTED = 0.7  # acceptance of a first draft while none was verified
_EXPECTED_WEIGHT = 4.0  # in verified drafts
_DEVIATION = 0.45  # standard deviation of whether one draft is accepted
_NUM_TRUSTED = 96  # first drafts from which a rate is taken as it is
_FADE_ALL = 1 - 1 / 200  # weight that older drafts of all requests keep with each new one at their position
_FADE_UNTRIED = 1 - 1 / 800  # the same for each request and round that did not come to a position
_FADE_ONE = 1 - 1 / 40  # the same within one request
_REQUEST_WEIGHT = 5.0  # accepted drafts after which a request's own rate counts as much as that of all
_MOST = 0.98  # nothing is certain


@dataclass(slots=True)
class _RequestRate:
    """One request: accepted drafts, those expected from the rate of all, and its counts when last looked at."""

    expected: float = _REQUEST_WEIGHT
    accepted: float = _REQUEST_WEIGHT
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0


class AcceptanceRates:
    """Learns from verified drafts.

    Attributes:
        num_verified: drafts that taught it something so far.
    """

    def __init__(self) -> None:
        self.begin_anew()

    def begin_anew(self) -> None:
        """Forget everything."""
        self.num_verified = 0
        self._tried = [0.0] * MAX_DRAFT_LEN  # by position: drafts that the target has judged
        self._accepted = [0.0] * MAX_DRAFT_LEN
        self._requests: dict[int, _RequestRate] = {}
        self._rates: list[float] | None = None  # of all positions, until something changes

    def add(self, num_drafts: int, accepted_len: int) -> None:
        """Take the result of one request's round."""
        self._rates = None
        num_judged = min(accepted_len + 1, num_drafts, MAX_DRAFT_LEN)
        for position in range(MAX_DRAFT_LEN if num_judged else 0):
            fade = _FADE_ALL if position < num_judged else _FADE_UNTRIED
            self._tried[position] *= fade
            self._accepted[position] *= fade
        for position in range(num_judged):
            self._tried[position] += 1
            self._accepted[position] += position < accepted_len
        self.num_verified += num_judged

    def rates(self, max_draft_len: int, bonus: float = 0.0) -> list[float]:
        """Return the probability that draft 1, 2 ... is accepted once those before it are, over all requests.

        Args:
            bonus: added to each, for an optimist.
        """
        if self._rates is None:
            self._rates, prior = [], _EXPECTED
            for accepted, tried in zip(self._accepted, self._tried, strict=True):
                prior = (accepted + _EXPECTED_WEIGHT * prior) / (tried + _EXPECTED_WEIGHT)
                self._rates.append(prior)
        return [min(rate + bonus, _MOST) for rate in self._rates[:max_draft_len]]

    @property
    def doubt(self) -> float:
        """How much higher the acceptance may well be than `rates` say; 0 once many drafts were verified."""
        return max(_DEVIATION * (1 / sqrt(self._tried[0] + _EXPECTED_WEIGHT) - 1 / sqrt(_NUM_TRUSTED)), 0.0)

    def look_at(self, request: Request) -> None:
        """Learn from what has happened to a request since the last look."""
        rate = self._requests.get(request.id)
        if rate is None:
            rate = self._requests[request.id] = _RequestRate(
                num_rounds=request.num_rounds, num_drafted=request.num_drafted, num_accepted=request.num_accepted
            )
        num_drafts = request.num_drafted - rate.num_drafted
        if request.num_rounds - rate.num_rounds == 1 and num_drafts:
            accepted_len = request.num_accepted - rate.num_accepted
            for expected in self.rates(min(accepted_len + 1, num_drafts)):
                rate.expected = rate.expected * _FADE_ONE + expected + (1 - _FADE_ONE) * _REQUEST_WEIGHT
                rate.accepted = rate.accepted * _FADE_ONE + (1 - _FADE_ONE) * _REQUEST_WEIGHT
            rate.accepted += accepted_len
        rate.num_rounds, rate.num_drafted = request.num_rounds, request.num_drafted
        rate.num_accepted = request.num_accepted

    def forget(self, request_id: int) -> None:
        """Drop what is known of a request that has ended."""
        self._requests.pop(request_id, None)

    def ratio(self, request_id: int) -> float:
        """Return how much likelier the drafts of a request are accepted than those of all."""
        rate = self._requests.get(request_id)
        return 1.0 if rate is None else rate.accepted / rate.expected

    def survival(self, request_id: int, rates: Sequence[float]) -> list[float]:
        """Return the probability that the first 1, 2 ... drafts of a request are all accepted, given `rates`."""
        return chain([min(rate, _MOST) for rate in rates], self.ratio(request_id))


def chain(rates: Iterable[float], ratio: float = 1.0) -> list[float]:
    """Return the products of the first 1, 2 ... rates, each multiplied by `ratio` and at most `_MOST`."""
    products: list[float] = []
    product = 1.0
    for rate in rates:
        product *= min(rate * ratio, _MOST)
        products.append(product)
    return products
