"""Workers that take the time of a cost curve and accept drafts at a given rate, for a pipeline in virtual time.

The prompt's first token names the kind of text: how likely a draft of it is accepted. Costs are in seconds.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from minedraft.core import events
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import DraftPolicy, ModePolicy
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import WorkerLost
from minedraft.messages import (
    DraftCommand,
    DraftReply,
    LinkStats,
    Proposal,
    Timing,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
    WorkerInfo,
)
from minedraft.sampling_params import SamplingParams
from minedraft.types import PROTOCOL_VERSION, Role
from scripts.lib.sink import Collector

Curve = Callable[[int], float]


@dataclass(frozen=True)
class Machine:
    """Two devices and the pair of models on them.

    Attributes:
        verify: seconds of a verify of so many rows. draft: seconds of one draft forward of so many requests.
        token_s: seconds of a prompt token in the verifier; draft_token_s: in the drafter.
        overhead_s: time of scheduler and wire in a round, hidden where a round is in the mailbox already.
        contention: what a command takes longer while the other device works.
        wide: what a verify takes on all cores, as a part of what it takes on its own; None: it has no others.
        noise: standard deviation of a command's time, as a part of it.
        acceptance: by kind of text, the probability that a draft is accepted; one that changes takes the time.
    """

    verify: Curve
    draft: Curve
    token_s: float = 0.0005
    draft_token_s: float = 0.0004
    overhead_s: float = 0.0005
    contention: float = 1.1
    wide: float | None = None
    noise: float = 0.03
    acceptance: Sequence[float] | Callable[[float], float] = (0.5,)


@dataclass
class _Device:
    """One device: a command at a time, slower while the other device works."""

    machine: Machine
    rng: random.Random
    is_busy: bool = False
    other: _Device | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def work(self, seconds: float) -> Timing:
        async with self.lock:
            self.is_busy = True
            if self.other is not None and self.other.is_busy:
                seconds *= self.machine.contention
            seconds *= max(self.rng.gauss(1, self.machine.noise), 0.3)
            await asyncio.sleep(seconds)
            self.is_busy = False
        return Timing(busy_ns=round(seconds * 1e9))


class _SimulatedWorker:
    role: Role

    def __init__(self, device: _Device, rng: random.Random) -> None:
        self.info = WorkerInfo(
            role=self.role,
            epoch=1,
            protocol_version=PROTOCOL_VERSION,
            vocab_size=100,
            vocab_fingerprint="simulated",
            num_blocks=1 << 16,
            block_size=16,
            max_model_len=4096,
            model_name="simulated",
            device="none",
            dtype="none",
        )
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None
        self.device = device
        self.rng = rng

    def give_up(self, cause: str) -> None:
        raise AssertionError(cause)

    async def release(self, request_ids: Sequence[int]) -> int:
        return self.info.num_blocks

    async def close(self) -> None:
        pass


class SimulatedVerifier(_SimulatedWorker):
    role = Role.VERIFIER

    def __init__(self, device: _Device, rng: random.Random) -> None:
        super().__init__(device, rng)
        self._kinds: dict[int, int] = {}
        self._speed = 1.0
        if device.machine.wide is not None:
            self.info = replace(self.info, cores=(1,), max_cores=(0, 1))

    async def configure(self, cores: Sequence[int]) -> Timing:
        self._speed = self.device.machine.wide or 1.0 if len(cores) > 1 else 1.0
        return Timing()

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        machine = self.device.machine
        num_prompt = sum(len(span.tokens) for span in command.spans if len(span.tokens) > 1)
        rows = sum(1 + len(span.drafts) for span in command.spans if len(span.tokens) <= 1)
        for span in command.spans:
            if span.spec is not None:
                self._kinds[span.request_id] = span.tokens[0]
        seconds = machine.verify(rows) if rows else machine.verify(1)
        timing = await self.device.work((seconds + machine.token_s * num_prompt) * self._speed)
        reply = VerifyReply(
            command.round, tuple(self._judge(span) for span in command.spans), timing, self.info.num_blocks
        )
        await asyncio.sleep(machine.overhead_s)
        return reply

    def _judge(self, span: VerifySpan) -> Verdict:
        if not span.sample:
            return Verdict(span.request_id, span.committed_len, 0, ())
        rate, accepted = self._rate(span.request_id), 0
        while accepted < len(span.drafts) and self.rng.random() < rate:
            accepted += 1
        return Verdict(span.request_id, span.committed_len, accepted, (*span.drafts[:accepted], 1))

    def _rate(self, request_id: int) -> float:
        acceptance = self.device.machine.acceptance
        if callable(acceptance):
            return acceptance(asyncio.get_running_loop().time())
        return acceptance[self._kinds[request_id] % len(acceptance)]


class SimulatedDrafter(_SimulatedWorker):
    role = Role.DRAFTER

    async def draft(self, command: DraftCommand) -> DraftReply:
        machine = self.device.machine
        lens = [span.draft_len for span in command.spans]
        seconds = sum(machine.draft(sum(length > step for length in lens)) for step in range(max(lens)))
        timing = await self.device.work(seconds)
        proposals = tuple(
            Proposal(span.request_id, span.prefix_len + len(span.tokens), (1,) * span.draft_len)
            for span in command.spans
        )
        return DraftReply(command.round, proposals, timing, self.info.num_blocks)

    async def prefill(self, command: DraftCommand) -> DraftReply:
        machine = self.device.machine
        num_tokens = sum(len(span.tokens) for span in command.spans)
        return DraftReply(
            command.round,
            (),
            await self.device.work(machine.draft(1) + machine.draft_token_s * num_tokens),
            self.info.num_blocks,
        )


@dataclass
class Load:
    """What clients ask for: `in_flight(t)` requests at a time, each with a prompt and an answer of these lengths."""

    in_flight: Callable[[float], int]
    prompt_len: int = 40
    output_len: int = 80
    num_kinds: int = 1


@dataclass
class Simulation:
    """A pipeline on simulated workers under a load.

    Attributes:
        tokens: (time, output tokens of a round) of each round. changes: (time, event) of each change of mode.
    """

    machine: Machine
    limits: SchedulerLimits
    draft_policy: DraftPolicy | None = None
    mode_policy: ModePolicy | None = None
    observers: Sequence[events.Observer] = ()
    seed: int = 1
    pipeline: Pipeline | None = None
    tokens: list[tuple[float, int]] = field(default_factory=list)
    changes: list[tuple[float, events.ModeChanged]] = field(default_factory=list)
    _num_asked: int = 0

    def observe(self, event: events.Event, now_s: float) -> None:
        match event:
            case events.RoundCommitted():
                self.tokens.append((now_s, event.num_output_tokens))
            case events.ModeChanged():
                self.changes.append((now_s, event))

    def rate(self, start_s: float, end_s: float) -> float:
        """Return the output tokens per second between two moments."""
        return sum(count for at_s, count in self.tokens if start_s < at_s <= end_s) / (end_s - start_s)

    async def run(self, load: Load, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        rng = random.Random(self.seed)
        target, draft = _Device(self.machine, rng), _Device(self.machine, rng)
        target.other, draft.other = draft, target
        pipeline = Pipeline(
            self.limits,
            SimulatedVerifier(target, rng),
            SimulatedDrafter(draft, rng),
            observers=[self.observe, *self.observers],
            draft_policy=self.draft_policy,
            mode_policy=self.mode_policy,
            clock=loop.time,
        )
        self.pipeline = pipeline
        async with pipeline:
            clients: list[asyncio.Task[None]] = []
            while loop.time() < seconds:
                wanted = load.in_flight(loop.time())
                clients = [client for client in clients if not client.done()]
                for _ in range(wanted - len(clients)):
                    clients.append(asyncio.create_task(self._ask(pipeline, load)))
                await asyncio.wait([*clients, asyncio.create_task(asyncio.sleep(0.02))], return_when="FIRST_COMPLETED")
            for client in clients:
                client.cancel()

    async def _ask(self, pipeline: Pipeline, load: Load) -> None:
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
