"""The link to a worker in this process, whose device thread the tests hold at a gate."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from minedraft_workers.runtime import Work, WorkerRuntime
from minedraft_workers.server import start
from minedraft_workers.servicer import drafter_handler, verifier_handler

from minedraft.address import Address
from minedraft.blocks import BlocksExhausted
from minedraft.errors import ConfigError, ProtocolError, StaleRound, WorkerLost
from minedraft.rpc.channel import MAX_WORKER_MESSAGE_BYTES
from minedraft.rpc.codec_verify import verify_command_to_pb
from minedraft.types import (
    Batch,
    DraftCommand,
    DraftSpan,
    Proposal,
    Role,
    RoundId,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
)
from minedraft.v1 import worker_pb2
from minedraft.worker_client import GrpcDrafter, GrpcVerifier
from tests.fakes.null_worker import NullActor


class GatedActor(NullActor):
    """Waits at a gate inside every command, and remembers what it has executed.

    `failure` is raised behind the gate; `spoil` changes the verdicts before they are sent.
    """

    def __init__(self, role: Role) -> None:
        super().__init__(role)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.executed: list[str] = []
        self.failure: Exception | None = None
        self.spoil: dict[str, object] = {}

    def _pass(self, what: str) -> None:
        self.entered.set()
        self.gate.wait()
        self.executed.append(what)
        if self.failure is not None:
            raise self.failure

    def draft(self, command: DraftCommand) -> Work[Proposal]:
        self._pass(f"draft {command.round.number}")
        return super().draft(command)

    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        self._pass(f"verify {command.round.number}")
        verdicts = super().verify(command).rows
        return Work(tuple(replace(verdict, **self.spoil) for verdict in verdicts))  # type: ignore[arg-type]

    def reset(self) -> None:
        self.executed.append("reset")


class Served:
    """A worker in this process. `server` can be stopped to play its death."""

    def __init__(self, actor: GatedActor, runtime: WorkerRuntime, server: grpc.aio.Server, address: Address) -> None:
        self.actor, self.runtime, self.server, self.address = actor, runtime, server, address

    async def entered(self) -> None:
        """Returns when the device thread is at the gate."""
        await asyncio.to_thread(self.actor.entered.wait)
        self.actor.entered.clear()

    async def taken_in(self, num_commands: int) -> None:
        """Returns when so many commands are in the mailbox or in the device thread."""
        while self.runtime.num_open < num_commands:  # noqa: ASYNC110 - the product has no event for tests
            await asyncio.sleep(0)


@asynccontextmanager
async def served(role: Role, folder: Path, mailbox_size: int = 32) -> AsyncIterator[Served]:
    actor = GatedActor(role)
    runtime = WorkerRuntime(actor, mailbox_size)
    handler = drafter_handler(actor, runtime) if role is Role.DRAFTER else verifier_handler(actor, runtime)
    address = Address(path=folder / f"{role.value}.sock")
    server, _ = await start(handler, address)
    try:
        yield Served(actor, runtime, server, address)
    finally:
        actor.gate.set()
        await server.stop(0)
        assert runtime.stop(5)


@pytest_asyncio.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Served]:
    async with served(Role.VERIFIER, tmp_path) as worker:
        yield worker


@pytest_asyncio.fixture
async def verifier(worker: Served) -> AsyncIterator[GrpcVerifier]:
    async with await GrpcVerifier.connect(worker.address) as link:
        yield link


def command(link: GrpcVerifier, number: int, batch: Batch = Batch.A, **changes: object) -> VerifyCommand:
    span = replace(VerifySpan(1, 4, (5,), drafts=(6, 7)), **changes)  # type: ignore[arg-type]
    return VerifyCommand(RoundId(link.info.epoch, batch, number), (span,))


async def test_a_handshake_says_who_answers_and_every_one_starts_a_new_epoch(worker: Served) -> None:
    epochs = set()
    for _ in range(3):
        async with await GrpcVerifier.connect(worker.address) as link:
            assert link.info.role is Role.VERIFIER
            assert replace(link.info, epoch=0) == worker.actor.info
            epochs.add(link.info.epoch)
    assert len(epochs) == 3
    assert 0 not in epochs


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


async def test_a_worker_that_hangs_is_lost_at_the_deadline_with_all_its_calls(worker: Served) -> None:
    async with await GrpcVerifier.connect(worker.address, command_timeout_s=0.2) as link:
        worker.actor.gate.clear()
        calls = [link.verify(command(link, 1, batch)) for batch in Batch]
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, WorkerLost)
            assert "no reply within 0.2 s" in str(error)


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
    with pytest.raises(WorkerLost, match=r"does not answer within 0\.2 s"):
        await GrpcVerifier.connect(f"unix:{tmp_path}/nobody.sock", connect_timeout_s=0.2)


async def test_the_other_role_s_address_is_a_configuration_error(worker: Served) -> None:
    with pytest.raises(ConfigError, match="drafter address is"):
        await GrpcDrafter.connect(worker.address)


async def test_another_protocol_version_is_a_configuration_error(
    worker: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minedraft_workers.servicer.PROTOCOL_VERSION", 2)
    with pytest.raises(ConfigError, match="protocol version 1 was asked for, this worker speaks 2"):
        await GrpcVerifier.connect(worker.address)
    monkeypatch.undo()
    worker.runtime.info = replace(worker.runtime.info, protocol_version=2)
    with pytest.raises(ConfigError, match="speaks protocol version 1, the worker 2"):
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
    before = verifier.wire_bytes
    assert before > 0, "the handshake counts"
    sent = command(verifier, 1)
    reply = await verifier.verify(sent)
    assert verifier.wire_bytes - before >= verify_command_to_pb(sent).ByteSize()
    assert isinstance(reply, VerifyReply)


async def test_a_message_over_the_cap_is_refused_before_it_is_sent(worker: Served, verifier: GrpcVerifier) -> None:
    num_ids = MAX_WORKER_MESSAGE_BYTES // 10 + 1
    with pytest.raises(ProtocolError, match=f"the limit is {MAX_WORKER_MESSAGE_BYTES}"):
        await verifier.release([(1 << 64) - 1] * num_ids)
    await verifier.verify(command(verifier, 1))


@pytest.mark.parametrize("data", [b"\xff" * 100, bytes(MAX_WORKER_MESSAGE_BYTES + 1)], ids=["garbage", "too large"])
async def test_bytes_that_are_no_command_end_their_own_stream_only(
    worker: Served, verifier: GrpcVerifier, data: bytes
) -> None:
    options = [("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(worker.address.target, options=options) as channel:
        stream = channel.stream_stream("/minedraft.v1.Verifier/Run")()
        await stream.write(data)
        assert await stream.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED)
    await verifier.verify(command(verifier, 1))
    assert worker.actor.executed == ["reset", "verify 1"]


async def test_a_worker_that_sends_bytes_that_are_no_reply_is_lost(
    worker: Served, verifier: GrpcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minedraft_workers.servicer.envelope_to_bytes", lambda _: b"\xff" * 100)
    with pytest.raises(WorkerLost, match="no message"):
        await verifier.verify(command(verifier, 1))


async def test_a_reply_that_nobody_waits_for_is_counted_and_dropped(
    worker: Served, verifier: GrpcVerifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(message: worker_pb2.Reply) -> bytes:
        late = worker_pb2.Reply(call=999)
        return message.SerializeToString() + (late.SerializeToString() if message.call == 1 else b"")

    monkeypatch.setattr("minedraft_workers.servicer.envelope_to_bytes", twice)
    call = asyncio.create_task(verifier.verify(command(verifier, 1)))
    while verifier.num_stale == 0:  # noqa: ASYNC110 - the product has no event for tests
        await asyncio.sleep(0)
    call.cancel()
    await verifier.verify(command(verifier, 2))
    assert not verifier.lost.is_set()


async def test_a_command_for_the_other_role_is_refused(worker: Served, verifier: GrpcVerifier) -> None:
    async with grpc.aio.insecure_channel(worker.address.target) as channel:
        stream = channel.stream_stream(
            "/minedraft.v1.Verifier/Run", response_deserializer=worker_pb2.Reply.FromString
        )()
        await stream.write(worker_pb2.Command(call=5, draft=worker_pb2.DraftRequest()).SerializeToString())
        reply = await stream.read()
        assert (reply.call, reply.refusal.reason) == (5, "PROTOCOL")
        assert "a draft command is not for this worker" in reply.refusal.message
