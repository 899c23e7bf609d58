"""A worker's parts on a CUDA device: clock, thread, memory. Not run on hardware by the people who wrote it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from pathlib import Path

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import MemoryExhausted
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.sampling_params import SamplingParams
from minedraft.settings.loading import load_worker_settings
from minedraft.settings.worker import WorkerSettings
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.clock import clock_for
from minedraft_workers.composition import Plan, prepare_actor
from minedraft_workers.device import enter_thread, pin
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.rounds.actors import Executed
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.verifier import VerifierActor
from tests.support.in_process import load_actor
from tests.support.tiny_models import make_tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CARD = Device.parse("cuda:0")
SPEC = SequenceSpec(SamplingParams(), 3, 0, Acceptance.GREEDY)


def load_worker(role: Role, folder: Path, **settings: object) -> DrafterActor | VerifierActor:
    """Return the actor of a worker on the card."""
    flags = {"role": role.value, "model": make_tiny_model(folder), "listen": "unix:/unused", "device": str(CARD)}
    checked: WorkerSettings = load_worker_settings({**flags, "num_blocks": 64, "dtype": "float32", **settings})
    pin(CARD)
    return load_actor(Plan.make(checked))


def fill(hoard: list[torch.Tensor]) -> None:
    """Take all the memory that this process may have, in pieces of 128 KB."""
    with contextlib.suppress(torch.OutOfMemoryError):
        while True:
            hoard.append(torch.empty(1 << 15, device="cuda"))


def test_a_clock_measures_the_device_and_not_the_launch() -> None:
    pin(CARD)
    clock = clock_for(torch.device("cuda", 0))
    x = torch.randn(8192, 8192, device="cuda")
    for _ in range(2):
        clock.start()
        start_ns = time.perf_counter_ns()
        with clock.forward():
            for _ in range(10):
                x @ x
        launched_ns = time.perf_counter_ns() - start_ns
        forward_ns = clock.finish()
    assert launched_ns < forward_ns / 2, "ten matmuls of 1e12 operations each take milliseconds"
    assert forward_ns <= time.perf_counter_ns() - start_ns


def test_a_prompt_chunk_is_done_when_its_reply_is(tmp_path: Path) -> None:
    actor = load_worker(Role.VERIFIER, tmp_path)
    assert isinstance(actor, VerifierActor)
    span = VerifySpan(1, 0, tuple(range(3, 200)), sample=False, spec=SPEC)
    work = actor.verify(VerifyCommand(RoundId(1, Batch.A, 1), (span,)))
    assert torch.cuda.current_stream().query(), "the stream is empty"
    assert work.forward_ns > 0


@pytest.mark.parametrize("role", Role)
def test_the_device_thread_is_prepared_and_serves(role: Role, tmp_path: Path) -> None:
    actor = load_worker(role, tmp_path)

    async def run() -> tuple[int, int]:
        runtime = WorkerRuntime(actor)
        await runtime.prepare(lambda: prepare_actor(CARD, actor))
        (session,) = runtime.sessions
        session.start_epoch()
        name = RoundId(session.epoch, Batch.A, 1)
        if isinstance(actor, VerifierActor):
            command = VerifyCommand(name, (VerifySpan(1, 0, (5, 17, 30), spec=SPEC),))
            done = await session.submit("verify", name, lambda: actor.verify(command))
        else:
            drafts = DraftCommand(name, (DraftSpan(1, 0, (5, 17, 30), 3, SPEC),))
            done = await session.submit("draft", name, lambda: actor.draft(drafts))
        assert runtime.stop(10)
        assert isinstance(done, Executed), done
        return done.timing.forward_ns, done.timing.busy_ns

    forward_ns, busy_ns = asyncio.run(run())
    assert 0 < forward_ns < busy_ns


def test_the_last_card_is_the_current_one_in_the_thread_that_enters_it() -> None:
    last = torch.cuda.device_count() - 1
    current: list[int] = []

    def enter() -> None:
        enter_thread(Device("cuda", index=last))
        current.append(torch.cuda.current_device())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert current == [last]


def test_a_command_without_memory_is_refused_and_the_next_one_runs(tmp_path: Path) -> None:
    actor = load_worker(Role.VERIFIER, tmp_path, num_blocks=None, memory_share=0.05, max_requests=4)
    assert isinstance(actor, VerifierActor)
    span = VerifySpan(1, 0, (5, 17, 30), spec=SPEC)
    expected = actor.verify(VerifyCommand(RoundId(1, Batch.A, 1), (span,))).rows
    total = torch.cuda.mem_get_info()[1]
    long = VerifySpan(2, 0, tuple(range(3, 300)), spec=SPEC)
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    hoard: list[torch.Tensor] = []
    try:
        fill(hoard)
        hoard.pop()  # room for small things
        with pytest.raises(MemoryExhausted) as caught:
            actor.verify(VerifyCommand(RoundId(1, Batch.A, 2), (span, long)))
        assert caught.value.request_id == 2
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    hoard.clear()
    assert actor.verify(VerifyCommand(RoundId(1, Batch.A, 3), (span,), (2,))).rows == expected
