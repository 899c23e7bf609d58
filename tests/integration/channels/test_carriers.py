"""Real worker processes, joined by each carrier that this machine has: rounds of rejection sampling, in which truncated
q travels, are the same to the last bit; a carrier that fails costs nothing but speed; a killed worker leaves nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from minedraft.address import Address
from minedraft.carriers import Carrier
from minedraft.core.request import NewRequest
from minedraft.engine.pairing import PairingConnector
from minedraft.messages import Tensor, TensorRef, VerifyCommand
from minedraft.rpc.connector import GrpcConnector
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode
from scripts.lib.driving import Driven, driven
from scripts.lib.sink import Collector
from tests.support.processes import memory_files, num_files, overwrite, shared_names
from tests.support.tiny_models import add_noise, make_tiny_model
from tests.support.worker_process import WorkerProcess, worker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

CARRIERS = ("inline", "shm", "dist")
PARAMS = SamplingParams(temperature=1.0, max_new_tokens=24, ignore_eos=True, logprobs=2)
PROMPTS = ((5, 17, 30, 60, 11), (9, 9, 40, 41, 42, 43, 44, 9, 9), (3,), (8, 7), (21, 22, 23), (4, 4))
COMMON = ("--dtype", "float32", "--num-blocks", "64", "--block-size", "4")


@dataclass
class Pair:
    """Two worker processes and how to start others in their place."""

    folder: Path
    processes: dict[str, WorkerProcess]
    stack: ExitStack

    @property
    def addresses(self) -> tuple[Address, Address]:
        return (Address.parse(self.processes["verifier"].address), Address.parse(self.processes["drafter"].address))

    def start(self, role: str) -> None:
        model = self.folder / role
        self.processes[role] = self.stack.enter_context(worker(role, self.folder, "--model", str(model), *COMMON))

    def kill(self, role: str) -> None:
        self.processes[role].kill()
        self.processes[role].wait()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    make_tiny_model(folder / "verifier", vocab_size=70, seed=3)
    add_noise(make_tiny_model(folder / "drafter", vocab_size=70, seed=3), 0.1)
    with ExitStack() as stack:
        pair = Pair(folder, {}, stack)
        for role in ("verifier", "drafter"):
            pair.start(role)
        yield pair


def configure(rounds: Driven) -> None:
    """Use both batches if what is beside a request cannot change a bit of it."""
    is_invariant = rounds.verifier.info.is_batch_invariant and rounds.drafter.info.is_batch_invariant
    rounds.configure(Mode.MINEDRAFT if is_invariant else Mode.SD, 3 if is_invariant else 6, 3)


async def answer(rounds: Driven) -> list[Collector]:
    sinks = [Collector() for _ in PROMPTS]
    for seed, (prompt, sink) in enumerate(zip(PROMPTS, sinks, strict=True)):
        rounds.pipeline.submit(NewRequest(prompt, PARAMS, seed=seed), sink)
    await asyncio.gather(*(sink.done.wait() for sink in sinks))
    return sinks


class Spy:
    """Keeps the references in the commands to the verifier, and the leases that the drafter is told to be free."""

    def __init__(self, rounds: Driven) -> None:
        self.references: list[tuple[int, int]] = []
        self.freed: list[int] = []
        self.num_inline = 0
        self._verify = rounds.verifier.verify
        self._take = rounds.drafter._leases.take  # type: ignore[attr-defined]
        rounds.drafter._leases.take = self.take  # type: ignore[attr-defined]
        rounds.verifier.verify = self.verify  # type: ignore[method-assign]

    async def verify(self, command: VerifyCommand) -> object:
        for span in command.spans:
            if span.q is not None:
                self._keep(span.q.ids)
                self._keep(span.q.probs)
        return await self._verify(command)

    def take(self, limit: int) -> list[int]:
        taken = self._take(limit)
        self.freed.extend(taken)
        return taken

    def _keep(self, tensor: Tensor) -> None:
        if isinstance(tensor.reference, TensorRef):
            self.references.append((tensor.reference.segment, tensor.reference.generation))
        else:
            self.num_inline += 1


async def test_every_carrier_gives_the_same_tokens_and_numbers(pair: Pair) -> None:
    answers, wire_bytes = {}, {}
    for carrier in CARRIERS:
        async with driven(*pair.addresses, carrier) as rounds:
            configure(rounds)
            spy = Spy(rounds)
            sinks = await answer(rounds)
            assert {rounds.verifier.stats.carrier, rounds.drafter.stats.carrier} == {Carrier(carrier)}
            assert bool(spy.references) is (carrier != "inline")
            assert len(set(spy.references)) == len(spy.references), "no lease is used twice"
            generations = {generation for _, generation in spy.references}
            assert set(spy.freed) <= generations
            assert len(generations) - len(spy.freed) <= 4 * len(PROMPTS), "all but the last round's are free"
            assert spy.num_inline == 0 or carrier == "inline"
            answers[carrier] = [(sink.tokens, sink.logprobs) for sink in sinks]
            wire_bytes[carrier] = rounds.wire_bytes
            assert rounds.counters.verified_drafts > rounds.counters.accepted_drafts > 0
    assert all(len(tokens) == PARAMS.max_new_tokens for tokens, _ in answers["inline"])
    for carrier in CARRIERS[1:]:
        assert answers[carrier] == answers["inline"], carrier
        assert wire_bytes[carrier] < wire_bytes["inline"] / 2


async def test_a_carrier_that_fails_costs_one_warning_and_no_token(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async with driven(*pair.addresses, "shm") as rounds:
        configure(rounds)
        segments = memory_files(pair.processes["drafter"].pid)  # its own and the verifier's, in any order
        spy = Spy(rounds)
        verify = rounds.verifier.verify
        is_broken = False

        async def break_first(command: VerifyCommand) -> object:
            """Lose the leases of the third round's q while it is under way."""
            nonlocal is_broken
            if not is_broken and rounds.num_steps >= 3 and command.spans[0].q is not None:
                for segment in segments:
                    overwrite(segment)
                is_broken = True
            return await verify(command)

        rounds.verifier.verify = break_first  # type: ignore[method-assign]
        with caplog.at_level(logging.WARNING):
            sinks = await answer(rounds)
        assert is_broken
        assert [len(sink.tokens) for sink in sinks] == [PARAMS.max_new_tokens] * len(PROMPTS)
        assert {rounds.verifier.stats.carrier, rounds.drafter.stats.carrier} == {Carrier.INLINE}
        assert spy.references
        assert spy.num_inline > 0
    [warning] = [record.message for record in caplog.records if "between the workers" in record.message]
    assert warning.startswith("shm fails between the workers, tensors travel in messages from now on: tensor.reference")


@pytest.mark.parametrize("killed", ["drafter", "verifier"])
async def test_a_killed_worker_leaves_nothing_and_its_successor_is_joined(pair: Pair, killed: str) -> None:
    names = shared_names()
    [survivor] = [process for role, process in pair.processes.items() if role != killed]
    connector = PairingConnector(GrpcConnector(*pair.addresses), "shm")
    verifier = await connector.connect_verifier()
    drafter = await connector.connect_drafter(verifier.info)
    assert drafter is not None
    num_before = num_files(survivor.pid)
    assert memory_files(survivor.pid)
    pair.kill(killed)
    lost = drafter if killed == "drafter" else verifier
    await lost.lost.wait()
    await lost.close()
    assert shared_names() == names
    pair.start(killed)
    await wait_serving(Address.parse(pair.processes[killed].address), LIVE)
    if killed == "drafter":
        back, other = await connector.reconnect_drafter(verifier.info), verifier
    else:
        back, other = await connector.reconnect_verifier(), drafter
    assert {back.stats.carrier, other.stats.carrier} == {Carrier.SHM}
    assert num_files(survivor.pid) <= num_before  # a map of an end before may have gone meanwhile
    await back.close()
    await other.close()
