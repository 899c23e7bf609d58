"""What went wrong since the start: an observer that counts faults by their cause and keeps the last ones."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

from minedraft.core import events
from minedraft.errors import Draining

_MAX_KEPT = 16
_MAX_TEXT_CHARS = 200


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault. at_s: on the scheduler's monotonic clock. text: what the log says of it."""

    at_s: float
    cause: str
    text: str


class FaultLog:
    """Counts of faults, and the last ones.

    The causes are a closed vocabulary: drafter_ or verifier_ and how it was lost (dead, failed, hung_silent ...) or
    that it refused a command (refused); drafter_numeric for a command with NaN or Inf in the draft model's logits;
    stale_proposals, policy_failed, drafting_suspended; and request_ and an error's reason in small letters for a
    request that ended with it.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.recent: deque[Fault] = deque(maxlen=_MAX_KEPT)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        if (found := fault_of(event)) is not None:
            cause, text = found
            self.counts[cause] += 1
            self.recent.append(Fault(now_s, cause, text[:_MAX_TEXT_CHARS]))


def fault_of(event: events.Event) -> tuple[str, str] | None:
    """Return the cause of the fault that an event tells of, and a text about it; None if it tells of none."""
    describe = _FAULTS.get(type(event))
    return describe(event) if describe is not None else None


def _describe_end(event: events.RequestEnded) -> tuple[str, str] | None:
    if event.error in ("", Draining.reason):
        return None
    return f"request_{event.error.lower()}", f"request {event.request_id} ended with {event.error}"


_FAULTS: dict[type, Callable[..., tuple[str, str] | None]] = {
    events.WorkerLeft: lambda event: (f"{event.role.value}_{event.kind.value}", event.cause),
    events.CommandFailed: lambda event: (f"{event.role.value}_refused", event.cause),
    events.DraftsNotFinite: lambda event: ("drafter_numeric", f"{event.num_rows} rows in round {event.number}"),
    events.ProposalsDropped: lambda event: ("stale_proposals", f"{event.num_proposals} in round {event.number}"),
    events.PolicyReplaced: lambda event: ("policy_failed", event.cause),
    events.DraftingSuspended: lambda event: ("drafting_suspended", event.cause),
    events.RequestEnded: _describe_end,
}
