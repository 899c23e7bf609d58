"""Clients that go away."""

from __future__ import annotations

import asyncio

import pytest

from minedraft import AsyncClient
from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from scripts.lib.chaos.crowd import HERE
from tests.faults.conftest import Service
from tests.faults.load import ask_all, settled
from tests.support.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

NUM_STREAMS = 16


def test_a_client_that_is_killed_with_16_streams_leaves_nothing(service: Service) -> None:
    stack = service.get()
    before = stack.held()
    crowd = WatchedProcess(
        child_command("scripts.lib.chaos.crowd", stack.address, str(NUM_STREAMS)), environment=child_environment()
    )
    with crowd:
        until(lambda: HERE in crowd.tail, 30, f"streams: {crowd.tail}")
        crowd.signal(9)
        assert asyncio.run(ask_all(stack.address)) == service.truth
    asyncio.run(settle(stack.address))
    # The service closes its end of a connection a moment after a client has closed its own, the asking one's too.
    until(lambda: stack.held().num_files <= before.num_files, 30, f"no more files than the {before.num_files} before")
    after = stack.held()
    assert (after.run_files, after.shm_files) == (before.run_files, before.shm_files)


async def settle(address: str) -> None:
    async with AsyncClient(address) as client:
        status = await settled(client)
        assert status.errors.get("ABORTED", 0) >= NUM_STREAMS
