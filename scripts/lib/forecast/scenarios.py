"""Services at their limits, simulated: a crowd, a distant drafter, and one that dies again and again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from minedraft.sim.acceptance import same
from minedraft.sim.gpus import GPUS
from minedraft.sim.planning import Placed, gpu_machine
from minedraft.sim.service import Machine
from minedraft.sim.shapes import SHAPES
from minedraft.sim.simulation import Load, SimulatedRun, endless_limits, run_simulation
from minedraft.types import Mode

ACCEPTANCE, DRAFT_LEN = 0.7, 3
PREFILL_CHUNK = 2048
"""Prompt tokens in a round: a GPU computes so many in about the time that it takes to read the weights twice."""
MODES = (Mode.AR, Mode.SD, Mode.MINEDRAFT)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run of a scenario. what: the setting in words."""

    scenario: str
    what: str
    mode: Mode
    run: SimulatedRun
    machine: Machine

    @property
    def kv_share(self) -> float:
        """The most of the verifier's KV blocks that were taken at a time."""
        return self.run.peak_kv_tokens / (self.machine.verify_blocks * self.machine.block_size)


def small_pair() -> Machine:
    """Return llama-3.1-8b with llama-3.2-1b, each on an H100."""
    return _pair("llama-3.1-8b", "llama-3.2-1b", 1)


def large_pair() -> Machine:
    """Return llama-3.3-70b on four H100s with llama-3.1-8b on one."""
    return _pair("llama-3.3-70b", "llama-3.1-8b", 4)


def crowd(
    machine: Machine,
    num_seats: int,
    num_waiting: int,
    lens: tuple[int, int],
    modes: Sequence[Mode] = MODES,
    max_waiting: int | None = None,
) -> Iterator[Outcome]:
    """Yield what becomes of `num_seats` requests in flight and so many more that come at the same moment.

    Args:
        lens: tokens of each prompt and answer.
        max_waiting: requests that may wait; None: as many as like.
    """
    for mode in modes:
        limits = replace(endless_limits(mode, num_seats // mode.num_batches, DRAFT_LEN), prefill_chunk=PREFILL_CHUNK)
        if max_waiting is not None:
            limits = replace(limits, max_waiting=max_waiting)
        run = run_simulation(machine, limits, Load((lens[0],), (lens[1],), num_seats + num_waiting))
        room = "all may wait" if max_waiting is None else f"{max_waiting:,} may wait"
        yield Outcome("crowd", room, mode, run, machine)


def slow_link(
    machine: Machine, link_ms: Sequence[float], num_in_flight: int = 32, output_len: int = 128
) -> Iterator[Outcome]:
    """Yield what messages to and from the drafter that take longer cost: in turns, and overlapped."""
    for mode in (Mode.SD, Mode.MINEDRAFT):
        for milliseconds in link_ms:
            far = replace(machine, draft_link_s=milliseconds / 1e3)
            limits = endless_limits(mode, num_in_flight // mode.num_batches, DRAFT_LEN)
            load = Load((256,), (output_len,), 3 * num_in_flight, concurrency=num_in_flight)
            run = run_simulation(far, limits, load)
            yield Outcome("link", f"{milliseconds:g} ms away", mode, run, far)


def dying_drafter(
    machine: Machine,
    every_s: float,
    returns_after_s: float,
    num_requests: int,
    num_in_flight: int = 32,
    output_len: int = 256,
) -> Iterator[Outcome]:
    """Yield what a drafter costs that dies every so many seconds and has to load first, and what none would."""
    for mode, dies_every_s, what in (
        (Mode.MINEDRAFT, None, "lives"),
        (Mode.MINEDRAFT, every_s, f"away {returns_after_s:g} s of {every_s:g}"),
        (Mode.AR, None, "no drafter"),
    ):
        limits = endless_limits(mode, num_in_flight // mode.num_batches, DRAFT_LEN)
        load = Load((256,), (output_len,), num_requests, concurrency=num_in_flight)
        run = run_simulation(
            machine, limits, load, drafter_dies_every_s=dies_every_s, drafter_returns_after_s=returns_after_s
        )
        yield Outcome("faults", what, mode, run, machine)


def _pair(target: str, draft: str, num_gpus: int) -> Machine:
    gpu = GPUS["h100"]
    return gpu_machine(Placed(SHAPES[target], gpu, num_gpus), Placed(SHAPES[draft], gpu, 1), same(ACCEPTANCE))
