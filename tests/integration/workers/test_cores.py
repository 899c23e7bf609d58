"""A worker process computes on other cores from one command to the next, with the same bits."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from minedraft.errors import InvalidRequest, MemoryExhausted, ProtocolError
from minedraft.messages import ConfigureCommand, DraftCommand, DraftSpan, Verdict, VerifyCommand, VerifySpan
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.cores import WorkerCores
from tests.support.native import needs_native
from tests.support.served_worker import served
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import WorkerProcess, worker

CORES = sorted(os.sched_getaffinity(0))
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


class Rounds:
    """Verifies one more token of ten requests with each call, enough to be computed on all cores."""

    def __init__(self, link: GrpcVerifier) -> None:
        self._link = link
        self._number = 0
        params = SamplingParams(temperature=0.8, seed=3, logprobs=3)
        self._spec = SequenceSpec(params, 64, 3, Acceptance.COUPLED)

    async def verify(self) -> list[Verdict]:
        self._number += 1
        spans = [
            VerifySpan(100 * self._number + n, 0, tuple((n * i) % 300 for i in range(1, 65)), (7, 8), spec=self._spec)
            for n in range(1, 11)
        ]
        round_id = RoundId(self._link.info.epoch, Batch.A, self._number)
        reply = await self._link.verify(VerifyCommand(round_id, tuple(spans)))
        await self._link.release([span.request_id for span in spans])
        return [Verdict(0, v.committed_len, v.accepted_len, v.tokens, v.logprobs) for v in reply.verdicts]


def affinities(process: WorkerProcess) -> Counter[tuple[int, ...]]:
    """Return how many threads may use which cores."""
    tasks = os.listdir(f"/proc/{process.pid}/task")
    return Counter(tuple(sorted(os.sched_getaffinity(int(task)))) for task in tasks)


@pytest.mark.slow
@needs_native
@needs_two_cores
async def test_a_verifier_takes_a_core_and_gives_it_back_with_the_same_bits(tmp_path: Path) -> None:
    first, second = CORES[:2]
    model = make_tiny_model(tmp_path / "model", hidden_size=128, head_dim=32, intermediate_size=256)
    flags = ("--model", str(model), "--kernels", "native", "--num-blocks", "256")
    own = ("--device", f"cpu:{second}", "--max-device", f"cpu:{first},{second}")
    with worker("verifier", tmp_path, *flags, *own) as process:
        async with await GrpcVerifier.connect(process.address, connect_timeout_s=60) as link:
            assert (link.info.cores, link.info.max_cores) == ((second,), (first, second))
            rounds = Rounds(link)
            before = await rounds.verify()
            assert set(affinities(process)) == {(second,)}
            timing = await link.configure([first, second])
            assert timing.busy_ns > 0
            assert before == await rounds.verify()
            # Of the one pool the thread beside the caller has a core of its own; the others go where there is one.
            found = affinities(process)
            assert set(found) - {(first,), (second,)} == {(first, second)}
            assert found[first,] + found[second,] == 1
            with pytest.raises(ProtocolError, match="4095': one or more of"):
                await link.configure([first, 4095])
            await link.configure([second])
            assert set(affinities(process)) == {(second,)}
            assert before == await rounds.verify()
            await link.configure([first, second])
        async with await GrpcVerifier.connect(process.address) as link:
            assert await Rounds(link).verify() == before
            assert set(affinities(process)) == {(second,)}, "a new scheduler finds the worker on its own cores"


@pytest.mark.slow
@needs_native
@needs_two_cores
async def test_a_drafter_takes_a_core_and_gives_it_back_with_the_same_drafts(tmp_path: Path) -> None:
    first, second = CORES[:2]
    model = make_tiny_model(tmp_path / "model", hidden_size=128, head_dim=32, intermediate_size=256)
    flags = ("--model", str(model), "--kernels", "native", "--num-blocks", "256")
    own = ("--device", f"cpu:{first}", "--max-device", f"cpu:{first},{second}")
    spec = SequenceSpec(SamplingParams(), 64, 3, Acceptance.COUPLED)
    with worker("drafter", tmp_path, *flags, *own) as process:
        async with await GrpcDrafter.connect(process.address, connect_timeout_s=60) as link:
            assert (link.info.cores, link.info.max_cores) == ((first,), (first, second))
            made, seen = [], []
            for number, cores in enumerate(((first,), (first, second), (first,)), 1):
                await link.configure(cores)
                ids = range(10 * number, 10 * number + 10)
                spans = tuple(DraftSpan(n, 0, tuple((n % 10 * i) % 300 for i in range(1, 65)), 4, spec) for n in ids)
                reply = await link.draft(DraftCommand(RoundId(link.info.epoch, Batch.A, number), spans))
                made.append([proposal.tokens for proposal in reply.proposals])
                seen.append(set(affinities(process)))
            assert made[0] == made[1] == made[2]
            assert seen[0] == seen[2] == {(first,)}
            assert seen[1] >= {(first, second)}


class Changes:
    """Records what a worker's cores are asked to become."""

    def __init__(self) -> None:
        self.made: list[tuple[int, ...]] = []

    def change(self, cores: tuple[int, ...]) -> None:
        self.made.append(tuple(cores))

    def reset(self) -> None:
        self.made.append(())


async def test_a_change_is_executed_once_between_the_rounds_around_it(tmp_path: Path) -> None:
    changes = Changes()
    async with (
        served(Role.VERIFIER, tmp_path, cores=changes) as place,
        await GrpcVerifier.connect(place.address) as link,
    ):
        (session,), epoch = place.runtime.sessions, link.info.epoch
        replies = [session.submit_configure(ConfigureCommand(epoch, number, (number,))) for number in (1, 1, 2, 2)]
        results = [await reply for reply in replies]
        assert changes.made == [(), (1,), (2,)], "the handshake gives the worker its own cores back first"
        assert results[0] is results[1]
        with pytest.raises(ProtocolError, match="configure of batch A is at round 2, not 1"):
            session.submit_configure(ConfigureCommand(epoch, 1, (5,)))
        with pytest.raises(ProtocolError, match="the epoch is"):
            session.submit_configure(ConfigureCommand(epoch + 1, 1, (5,)))


def test_threads_that_cannot_be_had_leave_everything_as_it_was() -> None:
    sizes: list[int] = []

    def resize(num_threads: int) -> None:
        if num_threads > 1:
            raise ProtocolError("no more threads")
        sizes.append(num_threads)

    affinity = os.sched_getaffinity(0)
    cores = WorkerCores(CORES[:1], CORES[:2], resize)
    try:
        if len(CORES) > 1:
            with pytest.raises(MemoryExhausted, match="no more threads"):
                cores.change(CORES[:2])
            assert sizes == [1]
            assert os.sched_getaffinity(0) == set(CORES[:1])
    finally:
        for task in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(task), affinity)


@pytest.mark.parametrize("most", [(), CORES])
def test_a_core_that_the_worker_may_not_have_is_refused(most: list[int]) -> None:
    for wanted in ((), (4095,)):
        with pytest.raises(InvalidRequest, match="cores is"):
            WorkerCores(CORES[:1], most).change(wanted)
