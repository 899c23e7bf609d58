"""A simulated service under a load that changes with the time, and what came out of it when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.sampling_params import SamplingParams
from minedraft.sim.acceptance import AcceptanceLaw
from minedraft.sim.forwards import FittedForward
from minedraft.sim.service import Machine, SimulatedPolicies, SimulatedService
from minedraft.theory.costs import Cost
from scripts.lib.sink import Collector


def small_machine(verify: Cost, draft: Cost, acceptance: AcceptanceLaw, wide: float | None = None) -> Machine:
    """Return two cores that share memory, and are not quite steady.

    Args:
        wide: what a forward takes on both cores, as a part of what it takes on its own; None: it has no others.
    """
    on_both, draft_on_both = (
        None if wide is None else Cost(wide * cost.base_s, wide * cost.slope_s, cost.free) for cost in (verify, draft)
    )
    return Machine(
        FittedForward(verify, prompt_token_s=0.0005, wide=on_both),
        FittedForward(draft, wide=draft_on_both),
        acceptance,
        link_s=0.0001,
        collision=0.1,
        noise=0.03,
        shares_cores=wide is not None,
    )


@dataclass
class ChangingLoad:
    """What clients ask for: `in_flight(t)` requests at a time, each with a prompt and an answer of these lengths."""

    in_flight: Callable[[float], int]
    prompt_len: int = 40
    output_len: int = 80
    num_kinds: int = 1


@dataclass
class Simulation:
    """A simulated service under a load.

    Attributes:
        tokens: (time, output tokens of a round) of each round. changes: (time, event) of each change of mode.
        failures: what policies did wrong.
    """

    machine: Machine
    limits: SchedulerLimits
    policies: SimulatedPolicies
    observers: Sequence[events.Observer] = ()
    seed: int = 1
    tokens: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, events.ModeChanged]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _num_asked: int = 0

    def rate(self, start_s: float, end_s: float) -> float:
        """Return the output tokens per second between two moments."""
        return sum(count for at_s, count in self.tokens if start_s < at_s <= end_s) / (end_s - start_s)

    async def run(self, load: ChangingLoad, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        service = SimulatedService(self.machine, self.limits, self.policies, self.observers, self.seed)
        async with service.start([self._observe]) as pipeline:
            clients: list[asyncio.Task[None]] = []
            while loop.time() < seconds:
                wanted = load.in_flight(loop.time())
                clients = [client for client in clients if not client.done()]
                for _ in range(wanted - len(clients)):
                    clients.append(asyncio.create_task(self._ask(pipeline, load)))
                await asyncio.wait([*clients, asyncio.create_task(asyncio.sleep(0.02))], return_when="FIRST_COMPLETED")
            for client in clients:
                client.cancel()

    def _observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundCommitted():
                self.tokens.append((now_s, event.num_output_tokens))
            case events.ModeChanged():
                self.changes.append((now_s, event))
            case events.PolicyReplaced():
                self.failures.append(event.cause)

    async def _ask(self, pipeline: Pipeline, load: ChangingLoad) -> None:
        """Send the next request; kinds and lengths are in the same order in every run."""
        number, self._num_asked = self._num_asked, self._num_asked + 1
        prompt = (number % load.num_kinds, *([2] * (load.prompt_len - 1)))
        sink = Collector()
        length = load.output_len * (5 + number * 7 % 11) // 10
        request_id = pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=length)), sink)
        try:
            await sink.done.wait()
        finally:
            pipeline.abort(request_id)
