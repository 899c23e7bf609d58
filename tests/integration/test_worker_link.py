"""The link to a worker in this process, whose device thread the tests hold at a gate."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from minedraft.blocks import BlocksExhausted
from minedraft.errors import ConfigError, ProtocolError, StaleRound
from minedraft.types import (
    Batch,
    Role,
)
from minedraft.worker_client import GrpcDrafter, GrpcVerifier
from tests.integration.served_worker import Served, command, served


async def test_a_handshake_says_who_answers_and_every_one_starts_a_new_epoch(worker: Served) -> None:
    epochs = set()
    for _ in range(3):
        async with await GrpcVerifier.connect(worker.address) as link:
            assert link.info.role is Role.VERIFIER
            assert replace(link.info, epoch=0) == worker.actor.info
            epochs.add(link.info.epoch)
    assert len(epochs) == 3
    assert 0 not in epochs


async def test_the_other_role_s_address_is_refused_without_a_new_epoch(worker: Served) -> None:
    with pytest.raises(ConfigError, match=r"drafter address is .* no drafter answers there but a verifier"):
        await GrpcDrafter.connect(worker.address)
    assert worker.actor.executed == []


async def test_a_repeated_round_gets_the_stored_reply_and_is_executed_once(
    worker: Served, verifier: GrpcVerifier
) -> None:
    first = await verifier.verify(command(verifier, 1))
    assert await verifier.verify(command(verifier, 1)) == first
    assert worker.actor.executed == ["reset", "verify 1"]


async def test_a_repeat_during_the_first_run_waits_for_it(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    calls = [asyncio.create_task(verifier.verify(command(verifier, 1))) for _ in range(2)]
    await worker.entered()
    worker.actor.gate.set()
    first, second = await asyncio.gather(*calls)
    assert first == second
    assert worker.actor.executed == ["reset", "verify 1"]


async def test_a_repeat_gets_the_reply_of_a_run_whose_caller_went_away(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    worker.actor.gate.set()
    assert (await verifier.verify(command(verifier, 1))).round.number == 1
    assert worker.actor.executed == ["reset", "verify 1"]
    assert not verifier.lost.is_set()


async def test_an_older_round_is_stale_and_nothing_is_executed(worker: Served, verifier: GrpcVerifier) -> None:
    await verifier.verify(command(verifier, 5))
    with pytest.raises(StaleRound, match="at round 5, not 4"):
        await verifier.verify(command(verifier, 4))
    assert verifier.num_stale == 1
    await verifier.verify(command(verifier, 4, Batch.B))  # each batch counts for itself
    assert worker.actor.executed == ["reset", "verify 5", "verify 4"]


async def test_a_command_of_another_epoch_is_stale(worker: Served, verifier: GrpcVerifier) -> None:
    async with await GrpcVerifier.connect(worker.address) as newer:
        with pytest.raises(StaleRound, match="epoch"):
            await verifier.verify(command(verifier, 1))
        with pytest.raises(StaleRound, match="epoch"):
            await verifier.release([1])
        assert (await newer.verify(command(newer, 1))).round.epoch == newer.info.epoch
    assert verifier.num_stale == 2


async def test_handshake_and_health_answer_during_a_forward(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    async with grpc.aio.insecure_channel(worker.address.target) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=5)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    async with await GrpcVerifier.connect(worker.address, connect_timeout_s=5) as newer:
        assert newer.info.epoch != verifier.info.epoch
        assert worker.actor.executed == ["reset"]
        worker.actor.gate.set()
        await call
        await newer.verify(command(newer, 1))
    assert worker.actor.executed == ["reset", "verify 1", "reset", "verify 1"]


async def test_a_new_epoch_drops_what_is_queued(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    running = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    queued = asyncio.create_task(verifier.verify(command(verifier, 1, Batch.B)))
    await worker.taken_in(2)
    async with await GrpcVerifier.connect(worker.address):
        with pytest.raises(StaleRound):
            await queued
        worker.actor.gate.set()
        await running
    assert worker.actor.executed == ["reset", "verify 1", "reset"]


async def test_the_reply_says_how_long_it_waited_and_worked(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    first = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    second = asyncio.create_task(verifier.verify(command(verifier, 1, Batch.B)))
    await worker.taken_in(2)
    worker.actor.gate.set()
    timings = [(await call).timing for call in (first, second)]
    assert timings[0].busy_ns > timings[1].queue_ns > 0
    assert timings[1].busy_ns > 0
    assert timings[1].idle_ns < timings[1].queue_ns, "the thread took the next command by itself"


async def test_a_full_mailbox_refuses_at_once(tmp_path: Path) -> None:
    async with (
        served(Role.VERIFIER, tmp_path, mailbox_size=2) as worker,
        await GrpcVerifier.connect(worker.address) as link,
    ):
        worker.actor.gate.clear()
        first = asyncio.create_task(link.verify(command(link, 1)))
        await worker.entered()
        second = asyncio.create_task(link.verify(command(link, 1, Batch.B)))
        await worker.taken_in(2)
        with pytest.raises(ProtocolError, match="2 commands are in the mailbox, the limit is 2"):
            await link.release([1])
        worker.actor.gate.set()
        await asyncio.gather(first, second)


async def test_a_bad_command_is_refused_by_name_and_not_executed(worker: Served, verifier: GrpcVerifier) -> None:
    with pytest.raises(ProtocolError, match=r"verifier at unix:.* refused a command: tokens of request 1 is 50000"):
        await verifier.verify(command(verifier, 1, tokens=(50_000,)))
    assert worker.actor.executed == ["reset"]
    await verifier.verify(command(verifier, 1))


async def test_a_command_that_does_not_fit_the_kv_is_refused_and_the_worker_lives(
    worker: Served, verifier: GrpcVerifier
) -> None:
    worker.actor.failure = BlocksExhausted(1, 5, 2)
    with pytest.raises(ProtocolError, match="needs 5 more KV blocks, 2 are free"):
        await verifier.verify(command(verifier, 1))
    worker.actor.failure = None
    await verifier.verify(command(verifier, 2))


@pytest.mark.parametrize(
    "spoil",
    [
        {"tokens": (6, 50_000)},
        {"accepted_len": 3, "tokens": (6, 7, 8, 9)},
        {"tokens": (7, 7)},
        {"prefix_len": 4},
        {"request_id": 2},
        {"error": "HACKED"},
    ],
)
async def test_a_wrong_reply_is_refused_before_anything_uses_it(
    worker: Served, verifier: GrpcVerifier, spoil: dict[str, object]
) -> None:
    worker.actor.spoil = spoil
    with pytest.raises(ProtocolError, match="verifier's reply"):
        await verifier.verify(command(verifier, 1))
