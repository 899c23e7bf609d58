"""The product's pipeline between simulated workers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import DraftPolicy, ModePolicy
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.output import RequestUsage
from minedraft.sim.acceptance import AcceptanceLaw
from minedraft.sim.devices import SimulatedDevice
from minedraft.sim.forwards import Forward
from minedraft.sim.workers import Seat, SimulatedDrafter, SimulatedVerifier
from minedraft.types import DraftMethod, FinishReason

SimulatedPolicies = tuple[DraftPolicy | None, ModePolicy | None]
NO_POLICIES: SimulatedPolicies = (None, None)
_BOTH_CORES = (0, 1)


@dataclass(frozen=True, slots=True)
class Machine:
    """Two devices and the pair of models on them.

    Attributes:
        draft: None: no drafter.
        acceptance: see `sim.acceptance.AcceptanceLaw`.
        verify_blocks, draft_blocks: KV blocks of `block_size` tokens that each has.
        link_s: time of a message to a worker, or from it. draft_link_s: the same for the drafter; None: as that.
        gap_s: time that a worker loses between two commands.
        collision: how much longer forwards take while both workers only read, see `theory.costs.Costs`.
        noise, hiccups: see `sim.devices.SimulatedDevice`.
        shares_cores: each worker may have the other one's cores in modes ar and sd.
        draft_method: what the drafter is.
    """

    verify: Forward
    draft: Forward | None
    acceptance: AcceptanceLaw
    verify_blocks: int = 1 << 20
    draft_blocks: int = 1 << 20
    block_size: int = 16
    link_s: float = 0.0
    draft_link_s: float | None = None
    gap_s: float = 0.0
    collision: float = 0.0
    noise: float = 0.0
    hiccups: float = 0.0
    shares_cores: bool = False
    draft_method: DraftMethod = DraftMethod.MODEL


@dataclass(slots=True)
class SimulatedAnswer:
    """A sink that keeps the account of a request."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    usage: RequestUsage | None = None
    error: MineDraftError | None = None

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], num_forced: int) -> bool:
        return False

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        self.usage, self.error = usage, error
        self.done.set()


class SimulatedService:
    """A pipeline on simulated workers.

    Args:
        policies: for the number of drafts and for the mode; None: what the limits fix.
    """

    pipeline: Pipeline

    def __init__(
        self,
        machine: Machine,
        limits: SchedulerLimits,
        policies: SimulatedPolicies = NO_POLICIES,
        observers: Sequence[events.Observer] = (),
        seed: int = 1,
    ) -> None:
        self.machine = machine
        self.limits = limits
        self._policies = policies
        self._observers = observers
        self._seed = seed
        self._rng = random.Random(seed)
        self._target = self._device(machine.link_s)
        self._draft = self._device(machine.link_s if machine.draft_link_s is None else machine.draft_link_s)
        self._target.other, self._draft.other = self._draft, self._target

    def start(self, observers: Sequence[events.Observer] = ()) -> Pipeline:
        """Return the pipeline, not yet entered; it is `pipeline` from now on."""
        machine = self.machine
        seat = Seat(self._target, machine.verify, machine.verify_blocks, machine.block_size)
        draft_policy, mode_policy = self._policies
        self.pipeline = Pipeline(
            self.limits,
            SimulatedVerifier(seat, _BOTH_CORES if machine.shares_cores else ()),
            self.new_drafter() if machine.draft is not None else None,
            observers=[*observers, *self._observers],
            draft_policy=draft_policy,
            mode_policy=mode_policy,
            clock=asyncio.get_running_loop().time,
        )
        return self.pipeline

    def new_drafter(self) -> SimulatedDrafter:
        """Return a drafter that knows nothing, on the device of those before it."""
        machine = self.machine
        assert machine.draft is not None, "the machine has no drafter"
        seat = Seat(self._draft, machine.draft, machine.draft_blocks, machine.block_size)
        cores = _BOTH_CORES if machine.shares_cores else ()
        return SimulatedDrafter(seat, machine.acceptance, machine.draft_method, self._seed, cores)

    def _device(self, link_s: float) -> SimulatedDevice:
        machine = self.machine
        return SimulatedDevice(self._rng, link_s, machine.gap_s, machine.collision, machine.noise, machine.hiccups)
