"""The events that an operator should read, as log lines."""

from __future__ import annotations

import logging

from minedraft.core import events

logger = logging.getLogger("minedraft.pipeline")


def log_event(event: events.Event) -> None:
    """Write a line for an event that needs somebody's attention, or ends what did."""
    match event:
        case events.PolicyReplaced():
            logger.error("a policy failed, the fixed one decides now: %s", event.cause)
        case events.DraftingSuspended():
            again = f"{event.again_after_s:.0f} s" if event.again_after_s else f"{event.again_after_tokens} tokens"
            logger.warning(
                "drafting is suspended for %s: %s (first draft accepted in %d of the last %d rows); next try after %s",
                "the service" if event.request_id is None else f"request {event.request_id}",
                event.cause,
                event.num_accepted,
                event.num_rows,
                again,
            )
        case events.DraftingResumed() if event.request_id is None:
            what = "tried again" if event.is_trial else "resumed: drafts are accepted, or the drafter is another one"
            logger.warning("drafting is %s for the service", what)
