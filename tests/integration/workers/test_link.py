"""The link to a worker in this process, whose device thread the tests hold at a gate."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from minedraft.core.blocks import BlocksExhausted
from minedraft.errors import ConfigError, LossCause, ProtocolError, StaleRound, WorkerLost
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.types import Batch, Role
from tests.support.served_worker import Served, command, open_stream, raw_channel, served, shake_hands
from tests.support.stepping import until


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
    with pytest.raises(ConfigError, match=r"drafter address is .* a verifier .* answers there, not a drafter"):
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
    assert verifier.stats.num_stale == 1
    await verifier.verify(command(verifier, 4, Batch.B))  # each batch counts for itself
    assert worker.actor.executed == ["reset", "verify 5", "verify 4"]


async def test_a_command_of_another_epoch_is_stale(worker: Served, verifier: GrpcVerifier) -> None:
    verifier.info = replace(verifier.info, epoch=verifier.info.epoch - 1)
    with pytest.raises(StaleRound, match="epoch"):
        await verifier.verify(command(verifier, 1))
    with pytest.raises(StaleRound, match="epoch"):
        await verifier.release([1])
    assert verifier.stats.num_stale == 2
    assert worker.actor.executed == ["reset"]


async def test_a_second_scheduler_is_told_who_has_the_worker_and_the_first_goes_on(
    worker: Served, verifier: GrpcVerifier
) -> None:
    await verifier.verify(command(verifier, 1))
    with pytest.raises(ConfigError, match=rf"in use by the scheduler with process id {os.getpid()} on "):
        await GrpcVerifier.connect(worker.address, connect_timeout_s=0.1)
    await verifier.verify(command(verifier, 2))
    assert worker.actor.executed == ["reset", "verify 1", "verify 2"]


async def test_a_scheduler_that_waits_gets_the_worker_when_the_first_one_goes(
    worker: Served, caplog: pytest.LogCaptureFixture
) -> None:
    first = await GrpcVerifier.connect(worker.address)
    await until(lambda: worker.runtime.tenancy.tenants)  # before that, a later handshake would win
    second = asyncio.create_task(GrpcVerifier.connect(worker.address))
    await until(lambda: "handshake refused: in use by" in caplog.text)
    await first.close()
    async with await second as link:
        await link.verify(command(link, 1))
        assert link.info.epoch != first.info.epoch


async def test_of_two_handshakes_the_later_one_has_the_worker_and_the_other_hears_who(
    worker: Served,
) -> None:
    async with raw_channel(worker) as channel:
        early = await shake_hands(channel)
        async with await GrpcVerifier.connect(worker.address) as link:
            await link.verify(command(link, 1))
            with pytest.raises(grpc.aio.AioRpcError, match=f"in use by the scheduler with process id {os.getpid()}"):
                await open_stream(channel, early.epoch).read()
        await until(lambda: not worker.runtime.tenancy.tenants)
        with pytest.raises(grpc.aio.AioRpcError, match=f"process id {os.getpid()} .* has taken this worker"):
            await open_stream(channel, early.epoch).read()


async def test_health_and_the_refusal_of_a_handshake_come_during_a_forward(
    worker: Served, verifier: GrpcVerifier
) -> None:
    worker.actor.gate.clear()
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    async with grpc.aio.insecure_channel(worker.address.target) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=""), timeout=60)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(ConfigError, match="in use"):
        await GrpcVerifier.connect(worker.address, connect_timeout_s=0.1)
    worker.actor.gate.set()
    await call


async def test_a_new_epoch_drops_what_is_queued(worker: Served) -> None:
    worker.actor.gate.clear()
    async with await GrpcVerifier.connect(worker.address) as old:
        calls = [asyncio.create_task(old.verify(command(old, 1)))]
        await worker.entered()
        calls.append(asyncio.create_task(old.verify(command(old, 1, Batch.B))))
        await worker.taken_in(2)
    connecting = asyncio.create_task(GrpcVerifier.connect(worker.address))
    session = worker.runtime.sessions[0]
    await until(lambda: session.epoch > old.info.epoch + 1)  # the end of the old stream began an epoch too
    assert not connecting.done(), "whoever is answered has a device that works"
    worker.actor.gate.set()
    async with await connecting as link:
        await link.verify(command(link, 2))
    assert worker.actor.executed == ["reset", "verify 1", "reset", "verify 2"]
    assert all(isinstance(error, WorkerLost) for error in await asyncio.gather(*calls, return_exceptions=True))


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
    with pytest.raises(
        ProtocolError, match=r"verifier at unix:.* refused a command: tokens of request 1 is 50000"
    ) as caught:
        await verifier.verify(command(verifier, 1, tokens=(50_000,)))
    assert caught.value.request_id == 1
    assert worker.actor.executed == ["reset"]
    await verifier.verify(command(verifier, 1))


async def test_a_command_that_cannot_even_be_written_costs_only_itself(worker: Served, verifier: GrpcVerifier) -> None:
    with pytest.raises(ProtocolError, match="a VerifyCommand cannot be sent"):
        await verifier.verify(command(verifier, 1, tokens=(-1,)))
    await verifier.verify(command(verifier, 2))


async def test_a_command_that_takes_long_is_said_once_and_waited_for(
    worker: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minedraft.rpc.link_watch._SLOW_COMMAND_S", 0.01)
    monkeypatch.setattr("minedraft.rpc.link_watch.LOOK_S", 0.01)
    async with await GrpcVerifier.connect(worker.address) as verifier:
        worker.actor.gate.clear()
        call = asyncio.create_task(verifier.verify(command(verifier, 1)))
        await until(lambda: "still waiting" in caplog.text)
        worker.actor.gate.set()
        await call
    assert caplog.text.count("still waiting") == 1


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
        {"committed_len": 4},
        {"request_id": 2},
        {"error": "HACKED"},
    ],
)
async def test_a_wrong_reply_ends_its_link_before_anything_uses_it_and_another_link_starts_anew(
    worker: Served, verifier: GrpcVerifier, spoil: dict[str, object]
) -> None:
    worker.actor.spoil = spoil
    with pytest.raises(WorkerLost, match="verifier's reply") as caught:
        await verifier.verify(command(verifier, 1))
    assert caught.value.cause is LossCause.PROTOCOL
    assert verifier.lost.is_set()
    await verifier.close()
    worker.actor.spoil = {}
    async with await GrpcVerifier.connect(worker.address) as link:
        await link.verify(command(link, 1))
