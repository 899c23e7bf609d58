"""The state of a scheduler, derived from its events."""

from __future__ import annotations

from minedraft.core import events
from minedraft.types import Batch


class Told:
    """The requests that wait, are paused, have a seat or have ended. No event may contradict an earlier one."""

    def __init__(self) -> None:
        self.seats: dict[int, Batch] = {}
        self.waiting: set[int] = set()
        self.paused: set[int] = set()
        self.ended: dict[int, events.RequestEnded] = {}
        self.in_flight: set[int] = set()
        self.num_tokens = 0

    def observe(self, event: events.Event) -> None:
        match event:
            case events.RequestQueued():
                self.waiting.add(event.request_id)
            case events.RequestSeated():
                self.waiting.remove(event.request_id)
                self.seats[event.request_id] = event.batch
            case events.RequestMoved():
                assert self.seats[event.request_id] is event.batch.other
                self.seats[event.request_id] = event.batch
            case events.RequestPreempted():
                del self.seats[event.request_id]
                self.waiting.add(event.request_id)
            case events.RequestPaused():
                self.seats.pop(event.request_id, None)
                self.waiting.discard(event.request_id)
                self.paused.add(event.request_id)
            case events.RequestResumed():
                self.paused.remove(event.request_id)
                self.waiting.add(event.request_id)
            case events.RequestEnded():
                assert event.request_id not in self.ended
                self.seats.pop(event.request_id, None)
                self.waiting.discard(event.request_id)
                self.paused.discard(event.request_id)
                self.ended[event.request_id] = event
            case events.RoundPlanned():
                self.in_flight.add(event.number)
            case events.RoundCommitted():
                self.in_flight.remove(event.number)
                self.num_tokens += event.num_output_tokens
                assert all(0 <= accepted <= drafts for drafts, accepted in event.accepted)
            case events.RoundAbandoned():
                self.in_flight.remove(event.number)
