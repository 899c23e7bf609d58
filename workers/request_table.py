"""The requests that a worker knows, and the check of a command's spans against them."""

from __future__ import annotations

from collections.abc import Iterable

from minedraft.errors import InvalidRequest
from minedraft.messages import DraftSpan, VerifySpan
from minedraft.types import SequenceSpec
from minedraft_workers.sampling.guides import Guides
from minedraft_workers.sequence import SequenceState


class RequestTable:
    """SequenceState by request id. A state's tokens are exactly those whose KV is valid.

    Args:
        guides: make what follows a request's grammar; None: grammars are not followed here.
    """

    def __init__(self, guides: Guides | None = None) -> None:
        self._guides = guides
        self._states: dict[int, SequenceState] = {}

    def __len__(self) -> int:
        return len(self._states)

    def find(self, span: DraftSpan | VerifySpan) -> SequenceState:
        """Return the state that a span continues; for a span with a spec, a new state that is not in the table yet.

        Raises:
            InvalidRequest: the request or its branch is unknown, the span keeps more tokens than are cached, or its
                grammar cannot be used.
        """
        if span.spec is not None:
            return self._new(span, span.spec)
        state = self._states.get(span.request_id)
        if state is None:
            raise _refusal(span, "request_id", span.request_id, "unknown, and the span has no spec")
        branch = span.branch if isinstance(span, DraftSpan) else 0
        if branch > len(state.branches):
            raise _refusal(span, "branch", branch, f"request {span.request_id} has {len(state.branches)} beside itself")
        if span.prefix_len > (num_cached := state.length_of(branch)):
            limit = f"{num_cached} tokens of request {span.request_id} are cached"
            raise _refusal(span, "prefix_len", span.prefix_len, limit)
        return state

    def _new(self, span: DraftSpan | VerifySpan, spec: SequenceSpec) -> SequenceState:
        state = SequenceState(span.request_id, spec)
        if self._guides is not None and spec.sampling.grammar is not None:
            try:
                state.guide = self._guides.make(spec)
            except InvalidRequest as error:
                error.request_id = span.request_id
                raise
        return state

    def keep(self, states: Iterable[SequenceState]) -> None:
        for state in states:
            self._states[state.request_id] = state

    def forget(self, request_id: int) -> None:
        self._states.pop(request_id, None)

    def clear(self) -> None:
        self._states.clear()


def _refusal(span: DraftSpan | VerifySpan, field: str, value: object, limit: str) -> InvalidRequest:
    error = InvalidRequest(field, value, limit)
    error.request_id = span.request_id
    return error
