"""A link's end: failures, loss, deadlines, and bytes that break the protocol."""

from __future__ import annotations

import asyncio
import re
import threading
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from minedraft.errors import ConfigError, ProtocolError, WorkerLost
from minedraft.messages import DraftCommand, DraftSpan, Proposal, VerifyReply
from minedraft.rpc.channel import EPOCH_KEY, MAX_WORKER_MESSAGE_BYTES
from minedraft.rpc.codec.verify import verify_command_to_pb
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.types import PROTOCOL_VERSION, Batch, Role, RoundId
from minedraft.v1 import worker_pb2
from minedraft_workers.pulse import PULSE
from tests.support.served_worker import Served, command, open_stream, raw_channel, served, shake_hands


async def test_an_unexpected_failure_in_the_device_thread_ends_the_worker(
    worker: Served, verifier: GrpcVerifier
) -> None:
    worker.actor.gate.clear()
    worker.actor.failure = RuntimeError("device-side assert")
    running = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    queued = asyncio.create_task(verifier.verify(command(verifier, 1, Batch.B)))
    await worker.taken_in(2)
    worker.actor.gate.set()
    for call in (running, queued):
        with pytest.raises(WorkerLost, match=r"verifier at unix:.*device-side assert"):
            await call
    await worker.runtime.crashed.wait()
    assert worker.actor.executed == ["reset", "verify 1"]


async def test_a_dropped_connection_fails_every_pending_and_later_call(worker: Served, verifier: GrpcVerifier) -> None:
    worker.actor.gate.clear()
    calls = [asyncio.create_task(verifier.verify(command(verifier, 1, batch))) for batch in Batch]
    await worker.entered()
    await worker.server.stop(0)
    async with asyncio.timeout(1):
        for call in calls:
            with pytest.raises(WorkerLost, match="verifier at unix:"):
                await call
        await verifier.lost.wait()
        with pytest.raises(WorkerLost, match="verifier at unix:"):
            await verifier.verify(command(verifier, 2))
        with pytest.raises(WorkerLost, match="verifier at unix:"):
            await verifier.release([1])


async def test_an_idle_link_notices_the_loss_by_itself(worker: Served, verifier: GrpcVerifier) -> None:
    await worker.server.stop(0)
    async with asyncio.timeout(1):
        await verifier.lost.wait()
    assert re.match("verifier at unix:.* is lost: .", str(verifier.lost_error))


async def test_a_device_thread_that_neither_answers_nor_computes_ends_the_worker(
    worker: Served, verifier: GrpcVerifier
) -> None:
    worker.actor.gate.clear()
    calls = [asyncio.create_task(verifier.verify(command(verifier, 1, batch))) for batch in Batch]
    await worker.entered()
    await worker.taken_in(2)
    await worker.runtime.watch(hang_s=0.1)
    assert worker.runtime.crashed.is_set()
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, WorkerLost)
        assert "the device hangs" in str(error)


async def test_a_device_thread_that_spins_ends_the_worker(worker: Served, verifier: GrpcVerifier) -> None:
    done = threading.Event()
    worker.actor.work = lambda: [None for _ in iter(done.is_set, True)]
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    assert not worker.runtime.progress.is_idle
    await worker.runtime.watch(hang_s=0.1)
    done.set()
    with pytest.raises(WorkerLost, match="no progress"):
        await call


async def test_a_device_thread_that_computes_for_long_is_left_alone(worker: Served, verifier: GrpcVerifier) -> None:
    done = threading.Event()
    worker.actor.work = lambda: [PULSE.beat() for _ in iter(done.is_set, True)]
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.4):
            await worker.runtime.watch(hang_s=0.1)
    done.set()
    await call
    assert not worker.runtime.crashed.is_set()


async def test_a_process_that_was_stopped_inside_a_forward_is_not_taken_to_hang(
    worker: Served, verifier: GrpcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker.actor.gate.clear()
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    await worker.entered()
    now_s = 1000.0
    monkeypatch.setattr("minedraft_workers.rounds.device_thread.time.monotonic", lambda: now_s)
    device = worker.runtime._device
    assert not device.end_if_hung(120.0, 30.0)
    now_s += 3600.0  # stopped for an hour, and continued
    assert not device.end_if_hung(120.0, 30.0)
    now_s += 15.0
    assert not device.end_if_hung(120.0, 30.0)
    monkeypatch.undo()
    worker.actor.gate.set()
    await call


async def test_an_idle_device_thread_is_left_alone(worker: Served, verifier: GrpcVerifier) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await worker.runtime.watch(hang_s=0.02)
    await verifier.verify(command(verifier, 1))


async def test_closing_the_link_fails_what_waits_on_it(worker: Served) -> None:
    link = await GrpcVerifier.connect(worker.address)
    worker.actor.gate.clear()
    call = asyncio.create_task(link.verify(command(link, 1)))
    await worker.entered()
    await link.close()
    with pytest.raises(WorkerLost, match="closed here"):
        await call
    await link.close()


async def test_nobody_there_is_an_error_within_the_time_given(tmp_path: Path) -> None:
    with pytest.raises(WorkerLost, match=r"did not answer within 0\.2 s"):
        await GrpcVerifier.connect(f"unix:{tmp_path}/nobody.sock", connect_timeout_s=0.2)


async def test_the_other_role_s_address_is_a_configuration_error(worker: Served) -> None:
    with pytest.raises(ConfigError, match="drafter address is"):
        await GrpcDrafter.connect(worker.address)


async def test_another_protocol_version_is_a_configuration_error(
    worker: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minedraft_workers.servicer.PROTOCOL_VERSION", 99)
    with pytest.raises(ConfigError, match=f"the scheduler speaks protocol version {PROTOCOL_VERSION}, this worker 99"):
        await GrpcVerifier.connect(worker.address)
    monkeypatch.undo()
    worker.actor.info = replace(worker.actor.info, protocol_version=99)
    with pytest.raises(ConfigError, match=f"speaks protocol version {PROTOCOL_VERSION}, the worker 99"):
        await GrpcVerifier.connect(worker.address)


async def test_draft_and_prefill_have_rounds_of_their_own(tmp_path: Path) -> None:
    async with served(Role.DRAFTER, tmp_path) as worker, await GrpcDrafter.connect(worker.address) as link:
        round_id = RoundId(link.info.epoch, Batch.A, 1)
        reply = await link.draft(DraftCommand(round_id, (DraftSpan(1, 4, (5,), 3),)))
        assert reply.proposals == (Proposal(1, 5, (1, 2, 3)),)
        reply = await link.prefill(DraftCommand(round_id, (DraftSpan(2, 4, (5, 6), 0),)))
        assert reply.proposals == ()
        assert worker.actor.executed == ["reset", "draft 1", "draft 1"]


async def test_bytes_are_counted_both_ways(verifier: GrpcVerifier) -> None:
    before = verifier.stats.wire_bytes
    assert before > 0, "the handshake counts"
    sent = command(verifier, 1)
    reply = await verifier.verify(sent)
    assert verifier.stats.wire_bytes - before >= verify_command_to_pb(sent).ByteSize()
    assert isinstance(reply, VerifyReply)


async def test_a_message_over_the_cap_is_refused_before_it_is_sent(worker: Served, verifier: GrpcVerifier) -> None:
    num_ids = MAX_WORKER_MESSAGE_BYTES // 10 + 1
    with pytest.raises(ProtocolError, match=f"the limit is {MAX_WORKER_MESSAGE_BYTES}"):
        await verifier.release([(1 << 64) - 1] * num_ids)
    await verifier.verify(command(verifier, 1))


@pytest.mark.parametrize("data", [b"\xff" * 100, bytes(MAX_WORKER_MESSAGE_BYTES + 1)], ids=["garbage", "too large"])
async def test_bytes_that_are_no_command_end_their_stream_and_not_the_worker(worker: Served, data: bytes) -> None:
    async with raw_channel(worker) as channel:
        epoch = (await shake_hands(channel)).epoch
        # One batch with the status: a write of its own may find the call ended, which looks like an internal error.
        call = channel.unary_unary("/minedraft.v1.Verifier/Run")(data, metadata=((EPOCH_KEY, str(epoch)),))
        assert await call.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    async with await GrpcVerifier.connect(worker.address) as verifier:
        await verifier.verify(command(verifier, 1))
    # One reset for each of both schedulers; the first one's end asks for another, which the second one may overtake.
    assert worker.actor.executed in (["reset", "reset", "verify 1"], ["reset", "reset", "reset", "verify 1"])


async def test_a_worker_that_sends_bytes_that_are_no_reply_is_lost(
    worker: Served, verifier: GrpcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minedraft_workers.servicer.envelope_to_bytes", lambda _: b"\xff" * 100)
    with pytest.raises(WorkerLost, match="not a message"):
        await verifier.verify(command(verifier, 1))


async def test_a_reply_that_nobody_waits_for_is_counted_and_dropped(
    worker: Served, verifier: GrpcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(message: worker_pb2.Reply) -> bytes:
        late = worker_pb2.Reply(call=999)
        return message.SerializeToString() + (late.SerializeToString() if message.call == 1 else b"")

    monkeypatch.setattr("minedraft_workers.servicer.envelope_to_bytes", twice)
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    while verifier.stats.num_stale == 0:  # noqa: ASYNC110 - the product has no event for tests
        await asyncio.sleep(0)
    call.cancel()
    await verifier.verify(command(verifier, 2))
    assert not verifier.lost.is_set()


async def test_a_command_for_the_other_role_is_refused(worker: Served) -> None:
    async with raw_channel(worker) as channel:
        stream = open_stream(channel, (await shake_hands(channel)).epoch)
        await stream.write(worker_pb2.Command(call=5, draft=worker_pb2.DraftRequest()).SerializeToString())
        reply = worker_pb2.Reply.FromString(await stream.read())
        assert (reply.call, reply.refusal.reason) == (5, "PROTOCOL")
        assert "a draft command is not for this worker" in reply.refusal.message


async def test_a_stream_without_a_handshake_is_refused(worker: Served) -> None:
    async with raw_channel(worker) as channel:
        for metadata in ((), (("minedraft-epoch", "x"),), (("minedraft-epoch", "7"),)):
            stream = channel.stream_stream("/minedraft.v1.Verifier/Run")(metadata=metadata)
            with pytest.raises(grpc.aio.AioRpcError, match="no scheduler has taken this worker"):
                await stream.read()
