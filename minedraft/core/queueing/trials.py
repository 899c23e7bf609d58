"""Who is to blame for the loss of a verifier: a request that kills it is found, and ends without its neighbours. Pure.

A round that kills the verifier blames all its requests alike. Each of them is recomputed as often as it may be, the
last time on trial: alone, with no other round in flight. Whoever survives that is acquitted, so only a request that was
alone in a deadly round ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.core.request import Request
from minedraft.core.rounds import PlannedSpan, RoundPlan


class Trials:
    """The rounds that a verifier may be computing, and the requests that are on trial because one was lost with them.

    A request that kills the verifier in each round that it is in ends with death number `max_replays` + 1; c of them
    with `max_replays` + c to c * (`max_replays` + 1) deaths, as they are blamed for the same deaths or not.
    """

    def __init__(self) -> None:
        self._sent: dict[int, RoundPlan] = {}
        self._suspects: dict[int, Request] = {}

    def send(self, plan: RoundPlan) -> None:
        """Take a round that the verifier may compute from now on."""
        self._sent[plan.number] = plan

    def end(self, plan: RoundPlan) -> None:
        """Forget a round that has ended."""
        self._sent.pop(plan.number, None)

    def forget(self, request_id: int) -> None:
        """Forget a request that has ended."""
        self._suspects.pop(request_id, None)

    def blame(self, max_replays: int) -> None:
        """Blame the requests of the rounds that were lost with the verifier. One that may be recomputed only once more
        is put on trial, until it is past all that these rounds may have computed of it."""
        reached: dict[int, int] = {}
        blamed: dict[int, Request] = {}
        for plan in self._sent.values():
            for span in plan.spans:
                blamed[span.request.id] = span.request
                num_more = max(span.draft_len, span.num_steps - 1)
                reached[span.request.id] = max(reached.get(span.request.id, 0), span.committed_len + num_more)
        self._sent.clear()
        for request_id, request in blamed.items():
            request.num_replays += 1
            if request.num_replays == max_replays:
                request.trial_len = reached[request_id]
                self._suspects[request_id] = request

    def on_trial(self) -> Sequence[Request]:
        """Return the seated requests on trial, the youngest first: what is new is most likely the cause."""
        seated = [request for request in self._suspects.values() if request.batch is not None]
        return sorted(seated, key=lambda request: request.seniority, reverse=True)

    def survive(self, span: PlannedSpan) -> None:
        """Acquit the request of a span that was executed, if it is past what it was blamed for. It is not back where it
        began: the next loss that it is blamed for puts it on trial again."""
        request = span.request
        if request.trial_len and span.sample and span.committed_len >= request.trial_len:
            request.trial_len = 0
            request.num_replays -= 1
            self.forget(request.id)
