"""Which drafts of a whole batch to verify: more are drafted than the verifier is given, and the best prefixes go on.

TETRIS (Wu et al. 2025, arXiv 2502.15197) ranks all drafts of a batch by the probability of the prefix that ends with
them, and takes as many as the verifier has room for. Which probabilities may be used decides whether the output is
still the target's under REJECTION:

* It is, if draft j is taken or left by quantities that do not depend on draft j itself or on later ones of its
  request: the drafts before it, the distribution q_j that it was drawn from, other requests, and what is known from
  earlier rounds. A prefix is built draft by draft, the best next one first, so each is taken before it is looked at.
  Then it is as if it were drawn only afterwards, and each output token has the target's law given all before it. The
  drafter draws with fresh numbers in every round, so an earlier round tells nothing of the drafts of this one.
* It is not, if the probability of draft j itself counts, as in the paper: with q = (0.9, 0.1), p = (0.5, 0.5), and
  drafts of the first token alone taken, the output has the first token with probability 0.55.

GREEDY and COUPLED outputs are the target's own choices and depend on no draft; for them both ways are exact.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer, DraftPolicy
from minedraft.core.request import Request

_UNKNOWN_SCORE = 0.6  # of drafts from a source that gives none: about the share that stands


class TetrisPolicy:
    """Asks for more drafts than another policy wants, and has the best ones of the batch verified, as many as that
    policy wants in all.

    Args:
        inner: decides how many drafts are worth verifying.
        extra_drafts: drafts of each request beyond them.
        capacity: drafts to verify in a round; 0: as many as `inner` wants for the requests of the round.
    """

    def __init__(self, inner: DraftPolicy, extra_drafts: int, capacity: int = 0) -> None:
        self._inner = inner
        self._extra_drafts = extra_drafts
        self._capacity = capacity
        self._wanted: dict[int, int] = {}  # by request, what the inner policy wants in its present round

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        most = max(max_draft_len - self._extra_drafts, min(1, max_draft_len))
        wanted = self._wanted[request.id] = self._inner.draft_len(request, batch_size, most)
        return min(wanted + self._extra_drafts, max_draft_len) if wanted else 0

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        lens = self._inner.select(offers)
        capacity = self._capacity or sum([self._wanted.get(offer.request_id, 0) for offer in offers])
        return best_prefixes([_scores(offer, most) for offer, most in zip(offers, lens, strict=True)], capacity)

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RequestEnded():
                self._wanted.pop(event.request_id, None)
        self._inner.observe(event, now_s)


def best_prefixes(scores: Sequence[Sequence[float]], capacity: int) -> list[int]:
    """Return how many drafts of each request to take, `capacity` in all if there are so many.

    Args:
        scores: for each request, the probabilities from 0 to 1 that its drafts are accepted, each if those before it
            are. Drafts are taken one by one, the one whose prefix has the largest product first, and of equal ones
            that of the first request. The score of a draft is not read before all drafts before it are taken.
    """
    taken = [0] * len(scores)
    frontier = [(-of_request[0], index) for index, of_request in enumerate(scores) if of_request]
    heapq.heapify(frontier)
    for _ in range(capacity):
        if not frontier:
            break
        product, index = frontier[0]
        taken[index] += 1
        if taken[index] < len(scores[index]):
            heapq.heapreplace(frontier, (product * scores[index][taken[index]], index))
        else:
            heapq.heappop(frontier)
    return taken


def _scores(offer: DraftOffer, most: int) -> Sequence[float]:
    return (offer.scores or (_UNKNOWN_SCORE,) * offer.num_drafts)[:most]
