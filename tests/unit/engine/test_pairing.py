"""The workers are joined by the fastest carrier that works, step by step, and go back to messages if it fails."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelOffer, ChannelStep, common_carriers
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.failing import MAX_FAILURES
from minedraft.engine.pairing import LEAST_BYTES, PairingConnector
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import ChannelFailed, WorkerLost
from minedraft.messages import DraftCommand, WorkerInfo
from tests.fakes.workers import FakeDrafter, FakeVerifier, continuation
from tests.unit.engine.test_pipeline import PROMPTS, answer_all

HERE = ChannelOffer(Carrier.SHM, "here")
GLOO = ChannelOffer(Carrier.DIST, "here")
GPU_0, GPU_1 = (ChannelOffer(Carrier.DIST, "here", f"GPU-{n}") for n in range(2))
IPC_0, IPC_1 = (ChannelOffer(Carrier.CUDA_IPC, "here", f"GPU-{n}") for n in range(2))
OPEN, JOIN, USE = ChannelStep.OPEN, ChannelStep.JOIN, ChannelStep.USE


@pytest.mark.parametrize(
    ("choice", "ours", "theirs", "found"),
    [
        ("auto", [HERE, GLOO], [HERE, GLOO], [Carrier.SHM]),
        ("dist", [HERE, GLOO], [HERE, GLOO], [Carrier.DIST]),
        ("shm", [HERE, GLOO], [GLOO], []),
        ("auto", [HERE], [ChannelOffer(Carrier.SHM, "there")], []),
        ("auto", [HERE, IPC_0, GPU_0], [HERE, IPC_1, GPU_1], [Carrier.CUDA_IPC, Carrier.DIST, Carrier.SHM]),
        ("auto", [HERE, IPC_0, GPU_0], [HERE, IPC_0, GPU_0], [Carrier.CUDA_IPC, Carrier.SHM]),
        ("dist", [GPU_0], [GPU_0], []),
        ("dist", [GPU_0], [GLOO], []),
        ("cuda_ipc", [HERE, IPC_0], [HERE, IPC_1], [Carrier.CUDA_IPC]),
        ("auto", [], [], []),
    ],
)
def test_the_fastest_carrier_that_both_have_comes_first(
    choice: str, ours: list[ChannelOffer], theirs: list[ChannelOffer], found: list[Carrier]
) -> None:
    assert common_carriers(choice, ours, theirs) == found
    assert common_carriers(choice, theirs, ours) == found


class _Steps:
    """What a fake link needs to be joined. refuses: (step, carrier) that it cannot take."""

    info: WorkerInfo

    def begin(self, *offers: ChannelOffer) -> None:
        self.info = replace(self.info, channels=offers)
        self.steps: list[ChannelCommand] = []
        self.refuses: set[tuple[ChannelStep, Carrier]] = set()
        self.on_channel_failure = lambda cause: None

    async def prepare_channel(self, command: ChannelCommand) -> ChannelEnd | None:
        await asyncio.sleep(0)
        self.steps.append(command)
        if (command.step, command.carrier) in self.refuses:
            raise ChannelFailed(f"no {command.carrier.value}")
        return ChannelEnd(command.carrier, id(self), 100) if command.step is OPEN else None

    def taken(self) -> list[tuple[ChannelStep, Carrier]]:
        steps = [(command.step, command.carrier) for command in self.steps]
        self.steps.clear()
        return steps


class JoinedVerifier(_Steps, FakeVerifier):
    pass


class JoinedDrafter(_Steps, FakeDrafter):
    pass


class Workers:
    """A connector to fake workers, the ones that the attributes have."""

    def __init__(self, *offers: ChannelOffer) -> None:
        self.offers = offers
        self.verifier, self.drafter = JoinedVerifier(), JoinedDrafter()
        for worker in (self.verifier, self.drafter):
            worker.begin(*offers)

    async def connect_verifier(self) -> JoinedVerifier:
        return self.verifier

    async def connect_drafter(self, verifier: WorkerInfo) -> JoinedDrafter:
        return self.drafter

    async def reconnect_verifier(self) -> JoinedVerifier:
        self.verifier = JoinedVerifier()
        self.verifier.begin(*self.offers)
        return self.verifier

    async def reconnect_drafter(self, verifier: WorkerInfo) -> JoinedDrafter:
        self.drafter = JoinedDrafter()
        self.drafter.begin(*self.offers)
        return self.drafter

    @property
    def both(self) -> tuple[JoinedVerifier, JoinedDrafter]:
        return self.verifier, self.drafter

    @property
    def carriers(self) -> set[Carrier]:
        return {worker.stats.carrier for worker in self.both}


async def connect(workers: Workers, choice: str = "auto") -> PairingConnector:
    connector = PairingConnector(workers, choice)
    verifier = await connector.connect_verifier()
    await connector.connect_drafter(verifier.info)
    return connector


ALL = [(OPEN, Carrier.SHM), (JOIN, Carrier.SHM), (USE, Carrier.SHM)]


async def test_both_take_each_step_and_get_the_end_of_the_other(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(HERE)
    with caplog.at_level(logging.INFO, "minedraft.server"):
        await connect(workers)
    assert [record.message for record in caplog.records] == ["tensors travel between the workers by shm"]
    assert workers.carriers == {Carrier.SHM}
    for worker, other in (workers.both, reversed(workers.both)):
        join, use = worker.steps[1:]
        assert join.peer == ChannelEnd(Carrier.SHM, id(other), 100)
        assert use.least_bytes == LEAST_BYTES
        assert worker.taken() == ALL


async def test_a_carrier_that_was_asked_for_carries_every_tensor() -> None:
    workers = Workers(HERE)
    await connect(workers, "shm")
    assert workers.verifier.steps[-1].least_bytes == 0


async def test_nothing_is_joined_for_inline_or_without_a_common_carrier(caplog: pytest.LogCaptureFixture) -> None:
    for workers, choice in ((Workers(HERE), "inline"), (Workers(), "auto"), (Workers(HERE), "dist")):
        await connect(workers, choice)
        assert workers.carriers == {Carrier.INLINE}
        assert not workers.verifier.steps + workers.drafter.steps
    assert [record.message for record in caplog.records] == [
        "the workers cannot be joined by dist, tensors travel in messages"
    ]


@pytest.mark.parametrize("step", list(ChannelStep))
async def test_the_next_carrier_is_tried_if_a_worker_cannot_take_a_step(
    step: ChannelStep, caplog: pytest.LogCaptureFixture
) -> None:
    workers = Workers(IPC_0, HERE)
    workers.drafter.refuses.add((step, Carrier.CUDA_IPC))
    await connect(workers)
    assert workers.carriers == {Carrier.SHM}
    assert workers.verifier.taken()[-3:] == ALL
    assert [record.message for record in caplog.records] == ["the workers cannot be joined by cuda_ipc: no cuda_ipc"]


async def test_tensors_are_inline_if_no_carrier_works() -> None:
    workers = Workers(HERE)
    workers.verifier.refuses.add((JOIN, Carrier.SHM))
    await connect(workers)
    assert workers.carriers == {Carrier.INLINE}
    assert (USE, Carrier.SHM) not in workers.verifier.taken() + workers.drafter.taken()


async def test_a_new_worker_is_joined_with_the_one_that_stayed() -> None:
    workers = Workers(HERE)
    connector = await connect(workers)
    for reconnect in (connector.reconnect_verifier, lambda: connector.reconnect_drafter(workers.verifier.info)):
        for worker in workers.both:
            worker.steps.clear()
        await reconnect()
        assert [worker.taken() for worker in workers.both] == [ALL, ALL]
        assert workers.carriers == {Carrier.SHM}


async def test_a_lost_worker_is_not_joined() -> None:
    workers = Workers(HERE)
    connector = await connect(workers)
    workers.drafter.steps.clear()
    workers.drafter.lost_error = WorkerLost("killed")
    workers.drafter.lost.set()
    verifier = await connector.reconnect_verifier()
    assert not verifier.steps
    assert not workers.drafter.steps


async def test_a_failing_carrier_costs_one_warning_and_both_send_in_messages(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers(HERE)
    await connect(workers)
    for worker in workers.both:
        worker.steps.clear()
    workers.verifier.on_channel_failure("the slot is gone")
    workers.drafter.on_channel_failure("so it is")
    assert workers.carriers == {Carrier.INLINE}
    for _ in range(5):  # turns of the event loop, in which the steps are taken
        await asyncio.sleep(0)
    assert [worker.taken() for worker in workers.both] == [[(USE, Carrier.INLINE)]] * 2
    assert [record.message for record in caplog.records] == [
        "shm fails between the workers, tensors travel in messages from now on: the slot is gone"
    ]


async def test_features_that_a_carrier_loses_are_computed_again_and_the_drafter_stays() -> None:
    drafter = FakeDrafter(reads_features=True)
    lost: list[DraftCommand] = []

    def lose_features(command: DraftCommand) -> None:
        if len(lost) < 2 * MAX_FAILURES and any(span.features for span in command.spans):
            lost.append(command)
            raise ChannelFailed("tensor.reference.generation is 7: there is no slot")

    drafter.refuse = lose_features
    async with Pipeline(SchedulerLimits(max_model_len=128), FakeVerifier(), drafter) as pipeline:
        sinks = await answer_all(pipeline, PROMPTS[:3], max_new=60)
        assert [sink.tokens for sink in sinks] == [continuation(prompt, 60) for prompt in PROMPTS[:3]]
        assert pipeline.drafter is drafter
    assert len(lost) == 2 * MAX_FAILURES
    assert any(span.features and span.draft_len for command in drafter.commands for span in command.spans)
