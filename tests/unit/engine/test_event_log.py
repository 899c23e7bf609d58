"""One line for each fault, with the id that the client knows its request by."""

from __future__ import annotations

import logging

import pytest

from minedraft.core import events
from minedraft.engine.event_log import EventLog
from minedraft.types import Batch, FinishReason, Role


def told(caplog: pytest.LogCaptureFixture, *happened: events.Event) -> list[tuple[str, str, str]]:
    """Return level, request id and text of the lines."""
    caplog.set_level(logging.DEBUG, "minedraft")
    log = EventLog()
    for event in happened:
        log.observe(event)
    return [(record.levelname, record.request_id, record.getMessage()) for record in caplog.records]


def test_the_life_of_a_request_is_told_by_its_clients_id(caplog: pytest.LogCaptureFixture) -> None:
    assert told(
        caplog,
        events.RequestQueued(7, 3, "job-1"),
        events.RequestSeated(7, Batch.B),
        events.CommandFailed(Role.VERIFIER, Batch.B, 4, "too long", "PROTOCOL", 7),
        events.RequestEnded(7, 5, None, "NUMERIC"),
        events.RequestQueued(8, 3, "job-2"),
        events.RequestEnded(8, 2, FinishReason.STOP),
        events.RequestQueued(9, 3, "job-3"),
        events.RequestEnded(9, 2, None, "WORKER_LOST"),  # the lost worker has a line of its own
    ) == [
        ("DEBUG", "job-1", "queued as number 7: 3 prompt tokens"),
        ("DEBUG", "job-1", "has a seat in batch B"),
        ("WARNING", "job-1", "verifier: round 4 of batch B failed: too long"),
        ("WARNING", "job-1", "ended with NUMERIC after 5 tokens"),
        ("DEBUG", "job-2", "queued as number 8: 3 prompt tokens"),
        ("DEBUG", "job-2", "ended: stop, 2 tokens"),
        ("DEBUG", "job-3", "queued as number 9: 3 prompt tokens"),
        ("DEBUG", "job-3", "ended: WORKER_LOST, 2 tokens"),
    ]


def test_a_failed_carrier_is_told_by_the_owner_of_the_links(caplog: pytest.LogCaptureFixture) -> None:
    failed = events.CommandFailed(Role.DRAFTER, Batch.A, 4, "shm is full", "CHANNEL_FAILED")
    assert told(caplog, failed) == []
    release = events.CommandFailed(Role.DRAFTER, None, 0, "no", "PROTOCOL")
    assert told(caplog, release) == [("WARNING", "", "drafter: a release failed: no")]
