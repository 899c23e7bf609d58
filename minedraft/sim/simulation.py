"""One run: the product's pipeline on simulated workers, under a load, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles

from minedraft.core import events
from minedraft.core.counters import Counters
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import DraftPolicy, ModePolicy
from minedraft.core.request import NewRequest
from minedraft.core.round_stats import RoundStats, RoundSummary
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.output import RequestUsage
from minedraft.sampling_params import SamplingParams
from minedraft.sim.forwards import Forward
from minedraft.sim.virtual_time import run_virtual
from minedraft.sim.workers import AcceptanceLaw, SimulatedDevice, SimulatedDrafter, SimulatedVerifier
from minedraft.types import FinishReason, Mode

_BOTH_CORES = (0, 1)


@dataclass(frozen=True, slots=True)
class Machine:
    """Two devices and the pair of models on them.

    Attributes:
        draft: None: no drafter.
        acceptance: see `sim.workers.AcceptanceLaw`.
        verify_blocks, draft_blocks: KV blocks of `block_size` tokens that each has.
        link_s: time of a message to a worker, or from it. draft_link_s: the same for the drafter; None: as that.
        noise: standard deviation of a command's time, as a part of it.
        shares_cores: the verifier may have the drafter's cores in mode ar.
    """

    verify: Forward
    draft: Forward | None
    acceptance: AcceptanceLaw
    verify_blocks: int = 1 << 20
    draft_blocks: int = 1 << 20
    block_size: int = 16
    link_s: float = 0.0
    draft_link_s: float | None = None
    noise: float = 0.0
    shares_cores: bool = False


@dataclass(frozen=True, slots=True)
class Load:
    """What clients ask for.

    Attributes:
        prompt_lens, output_lens: tokens, taken in turn.
        num_requests: all that are asked.
        arrivals_per_s: a Poisson process; None: all at once.
        concurrency: most requests that clients have open at a time; None: no limit.
        num_kinds: the prompts' first tokens, by which acceptance may differ.
    """

    prompt_lens: Sequence[int] = (64,)
    output_lens: Sequence[int] = (128,)
    num_requests: int = 64
    arrivals_per_s: float | None = None
    concurrency: int | None = None
    num_kinds: int = 1


@dataclass(frozen=True, slots=True)
class Percentiles:
    """In seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class SimulatedRun:
    """What a run gave. Times in seconds of the simulated machine.

    Attributes:
        seconds: from the first arrival to the last answer.
        tokens_per_s: output of the whole run. decode_tokens_per_s: of the rounds without prompts, as the paper counts.
        makespan_per_request_s: seconds / requests: the paper's "E2EL", which is no latency.
        latency, first_token, per_token: of requests, from arrival to the end, to the first token, and per token after.
        num_failed: requests that ended with an error.
    """

    seconds: float
    num_tokens: int
    num_steps: int
    tokens_per_s: float
    decode_tokens_per_s: float
    makespan_per_request_s: float
    latency: Percentiles
    first_token: Percentiles
    per_token: Percentiles
    rounds: RoundSummary
    num_failed: int = 0


@dataclass(slots=True)
class _Decoding:
    """An observer: output and duration of the rounds in which nobody's prompt is cached."""

    num_tokens: int = 0
    seconds: float = 0.0
    _last_s: float | None = None

    def observe(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.RoundCommitted):
            if not event.is_prefill and self._last_s is not None:
                self.num_tokens += event.num_output_tokens
                self.seconds += now_s - self._last_s
            self._last_s = now_s


@dataclass(slots=True)
class _Answer:
    """A sink that keeps the account of a request."""

    done: asyncio.Event = field(default_factory=asyncio.Event)
    usage: RequestUsage | None = None
    error: MineDraftError | None = None

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> bool:
        return False

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        self.usage, self.error = usage, error
        self.done.set()


def endless_limits(mode: Mode, max_batch_size: int, draft_len: int) -> SchedulerLimits:
    """Return limits that refuse no request for its length or for the number of those that wait."""
    return SchedulerLimits(mode, max_batch_size, draft_len, max_waiting=1 << 20, max_model_len=1 << 20, branches=1)


def run_simulation(
    machine: Machine,
    limits: SchedulerLimits,
    load: Load,
    *,
    policies: tuple[DraftPolicy | None, ModePolicy | None] = (None, None),
    observers: Sequence[events.Observer] = (),
    seed: int = 1,
    drafter_dies_every_s: float | None = None,
    drafter_returns_after_s: float = 1.0,
) -> SimulatedRun:
    """Run a load to its end and return what it gave. The same arguments give the same result.

    Args:
        policies: for the number of drafts and for the mode; None: what the limits fix.
        drafter_dies_every_s: when the drafter is lost, again and again; it is back, knowing nothing, after
            `drafter_returns_after_s`.

    Raises:
        InvalidRequest: a request never fits.
    """
    run = _Run(machine, limits, load, policies, observers, seed)
    return run_virtual(run.main(drafter_dies_every_s, drafter_returns_after_s))


class _Run:
    def __init__(
        self,
        machine: Machine,
        limits: SchedulerLimits,
        load: Load,
        policies: tuple[DraftPolicy | None, ModePolicy | None],
        observers: Sequence[events.Observer],
        seed: int,
    ) -> None:
        self._machine, self._limits, self._load = machine, limits, load
        self._draft_policy, self._mode_policy = policies
        self._observers = observers
        self._rng = random.Random(seed)
        self._seed = seed

    async def main(self, dies_every_s: float | None, returns_after_s: float) -> SimulatedRun:
        loop, machine = asyncio.get_running_loop(), self._machine
        stats, counters, decoding = RoundStats(1 << 16), Counters(), _Decoding()
        target = SimulatedDevice(machine.verify, self._rng, machine.link_s, machine.noise)
        cores = _BOTH_CORES if machine.shares_cores else ()
        verifier = SimulatedVerifier(target, machine.verify_blocks, machine.block_size, cores)
        draft = self._draft_device(target)
        pipeline = Pipeline(
            self._limits,
            verifier,
            self._drafter(draft) if draft is not None else None,
            observers=[stats.observe, counters.observe, decoding.observe, *self._observers],
            draft_policy=self._draft_policy,
            mode_policy=self._mode_policy,
            clock=loop.time,
        )
        async with pipeline:
            faults = None
            if draft is not None and dies_every_s is not None:
                faults = loop.create_task(self._kill(pipeline, draft, dies_every_s, returns_after_s))
            answers = await self._ask_all(pipeline)
            seconds = loop.time()
            if faults is not None:
                faults.cancel()
        return _summary(answers, seconds, sum(counters.rounds.values()), decoding, stats.summary())

    def _draft_device(self, target: SimulatedDevice) -> SimulatedDevice | None:
        machine = self._machine
        if machine.draft is None:
            return None
        link_s = machine.link_s if machine.draft_link_s is None else machine.draft_link_s
        draft = SimulatedDevice(machine.draft, self._rng, link_s, machine.noise, target)
        target.other = draft
        return draft

    def _drafter(self, device: SimulatedDevice) -> SimulatedDrafter:
        machine = self._machine
        return SimulatedDrafter(device, machine.acceptance, machine.draft_blocks, machine.block_size, self._seed)

    async def _kill(self, pipeline: Pipeline, device: SimulatedDevice, every_s: float, returns_after_s: float) -> None:
        while True:
            await asyncio.sleep(every_s)
            drafter = pipeline.drafter
            assert drafter is not None, "it was given back"
            drafter.give_up("it died")
            if drafter.lost_error is not None:
                pipeline.lose_drafter(drafter.lost_error)
            await asyncio.sleep(returns_after_s)
            pipeline.gain_drafter(self._drafter(device))

    async def _ask_all(self, pipeline: Pipeline) -> list[_Answer]:
        load = self._load
        seats = asyncio.Semaphore(load.concurrency or load.num_requests)
        asked: list[asyncio.Task[_Answer]] = []
        for number in range(load.num_requests):
            if load.arrivals_per_s is not None and number:
                await asyncio.sleep(self._rng.expovariate(load.arrivals_per_s))
            await seats.acquire()
            task = asyncio.create_task(self._ask(pipeline, number))
            task.add_done_callback(lambda _: seats.release())
            asked.append(task)
        return await asyncio.gather(*asked)

    async def _ask(self, pipeline: Pipeline, number: int) -> _Answer:
        load, answer = self._load, _Answer()
        prompt_len = load.prompt_lens[number % len(load.prompt_lens)]
        length = load.output_lens[number % len(load.output_lens)]
        prompt = (number % load.num_kinds, *([4] * (prompt_len - 1)))
        sampling = SamplingParams(max_new_tokens=length, ignore_eos=True)
        pipeline.submit(NewRequest(prompt, sampling), answer)
        await answer.done.wait()
        return answer


def _summary(
    answers: Sequence[_Answer], seconds: float, num_steps: int, decoding: _Decoding, rounds: RoundSummary
) -> SimulatedRun:
    usages = [answer.usage for answer in answers if answer.usage is not None and answer.error is None]
    num_tokens = sum(usage.output_tokens for usage in usages)
    return SimulatedRun(
        seconds=seconds,
        num_tokens=num_tokens,
        num_steps=num_steps,
        tokens_per_s=num_tokens / seconds,
        decode_tokens_per_s=decoding.num_tokens / max(decoding.seconds, 1e-12),
        makespan_per_request_s=seconds / len(answers),
        latency=_percentiles([usage.total_s for usage in usages]),
        first_token=_percentiles([usage.first_token_s for usage in usages]),
        per_token=_percentiles(
            [(u.total_s - u.first_token_s) / (u.output_tokens - 1) for u in usages if u.output_tokens > 1]
        ),
        rounds=rounds,
        num_failed=len(answers) - len(usages),
    )


def _percentiles(values: Sequence[float]) -> Percentiles:
    if len(values) < 2:
        only = fmean(values) if values else 0.0
        return Percentiles(only, only, only)
    cuts = quantiles(values, n=100, method="inclusive")
    return Percentiles(median(values), cuts[89], cuts[98])
