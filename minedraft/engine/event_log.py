"""What happens as log lines: one for each fault, with its cause, and at level DEBUG the life of each request.

A line about a request has the id that its client knows it by.
"""

from __future__ import annotations

import logging
from typing import Any

from minedraft.core import events
from minedraft.errors import ChannelFailed, InternalError, NumericError

logger = logging.getLogger("minedraft.pipeline")

# Other errors end a request because of something else, which has a line of its own: a lost worker, a deadline, a drain.
_OWN_FAULTS = (NumericError.reason, InternalError.reason)


class EventLog:
    """Writes the log of one pipeline."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}  # of live requests

    def observe(self, event: events.Event) -> None:
        """Write a line for an event that needs somebody's attention, or ends what did."""
        match event:
            case events.RequestQueued() | events.RequestSeated() | events.RequestPreempted() | events.RequestEnded():
                self._follow(event)
            case events.CommandFailed() if event.reason != ChannelFailed.reason:  # of which the links' owner warns
                what = "a release" if event.batch is None else f"round {event.number} of batch {event.batch.name}"
                logger.warning(
                    "%s: %s failed: %s", event.role.value, what, event.cause, extra=self._about(event.request_id)
                )
            case events.ProposalsDropped():
                what = f"round {event.number} of batch {event.batch.name}"
                logger.warning("%d proposals were dropped: they do not continue %s", event.num_proposals, what)
            case events.PolicyReplaced():
                logger.error("a policy failed, the fixed one decides now: %s", event.cause)
            case events.DraftingSuspended():
                self._tell_suspended(event)
            case events.DraftingResumed() if event.request_id is None:
                what = (
                    "tried again" if event.is_trial else "resumed: drafts are accepted, or the drafter is another one"
                )
                logger.warning("drafting is %s for the service", what)
            case events.ModeChanged():
                sizes = f"m {event.max_batch_size}, k {event.draft_len}"
                logger.debug("mode %s with %s: %s", event.mode.value, sizes, event.why)

    def _follow(
        self, event: events.RequestQueued | events.RequestSeated | events.RequestPreempted | events.RequestEnded
    ) -> None:
        if isinstance(event, events.RequestQueued):
            self._names[event.request_id] = event.name
        about = self._about(event.request_id)
        match event:
            case events.RequestQueued():
                logger.debug("queued as number %d: %d prompt tokens", event.request_id, event.prompt_len, extra=about)
            case events.RequestSeated():
                logger.debug("has a seat in batch %s", event.batch.name, extra=about)
            case events.RequestPreempted():
                logger.debug("preempted: an older request needs its memory", extra=about)
            case events.RequestEnded():
                self._names.pop(event.request_id, None)
                if event.error in _OWN_FAULTS:
                    logger.warning("ended with %s after %d tokens", event.error, event.output_len, extra=about)
                else:
                    why = event.error or (event.reason.value if event.reason is not None else "")
                    logger.debug("ended: %s, %d tokens", why, event.output_len, extra=about)

    def _tell_suspended(self, event: events.DraftingSuspended) -> None:
        again = f"{event.again_after_s:.0f} s" if event.again_after_s else f"{event.again_after_tokens} tokens"
        logger.warning(
            "drafting is suspended for %s: %s (first draft accepted in %d of the last %d rows); next try after %s",
            "the service" if event.request_id is None else f"request {event.request_id}",
            event.cause,
            event.num_accepted,
            event.num_rows,
            again,
            extra=self._about(event.request_id),
        )

    def _about(self, request_id: int | None) -> dict[str, Any]:
        name = "" if request_id is None else self._names.get(request_id) or str(request_id)
        return {"request_id": name}
