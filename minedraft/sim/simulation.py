"""One run: the product's pipeline on simulated workers, under a load, in virtual time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median, quantiles

from minedraft.core import events
from minedraft.core.counters import Counters
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import FixedDraftLen
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.core.request import NewRequest
from minedraft.core.round_stats import RoundStats, RoundSummary
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import Overloaded
from minedraft.sampling_params import SamplingParams
from minedraft.sim.service import NO_POLICIES, Machine, SimulatedAnswer, SimulatedPolicies, SimulatedService
from minedraft.sim.virtual_time import run_virtual
from minedraft.types import Mode, ScoreKind


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
        full_tokens_per_s: of those of them in which the batch had all its requests; 0 if there were none.
        makespan_per_request_s: seconds / requests: the paper's "E2EL", which is no latency.
        latency, queue, first_token, per_token: of requests, from arrival to the end, to their first round, to the first
            token, and per token after.
        num_failed: requests that ended with an error. num_refused: requests for which there was no room to wait.
        peak_kv_tokens: the most that the verifier held at a time, over all requests.
    """

    seconds: float
    num_tokens: int
    num_steps: int
    tokens_per_s: float
    decode_tokens_per_s: float
    full_tokens_per_s: float
    makespan_per_request_s: float
    latency: Percentiles
    queue: Percentiles
    first_token: Percentiles
    per_token: Percentiles
    rounds: RoundSummary
    num_failed: int = 0
    num_refused: int = 0
    peak_kv_tokens: int = 0


@dataclass(slots=True)
class _Decoding:
    """An observer: output and duration of the rounds in which nobody's prompt is cached.

    least_requests: of the rounds that count.
    """

    least_requests: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    _last_s: float | None = None

    def observe(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.RoundCommitted):
            if not event.is_prefill and self._last_s is not None and event.num_requests >= self.least_requests:
                self.num_tokens += event.num_output_tokens
                self.seconds += now_s - self._last_s
            self._last_s = now_s

    @property
    def tokens_per_s(self) -> float:
        return self.num_tokens / max(self.seconds, 1e-12)


def endless_limits(mode: Mode, max_batch_size: int, draft_len: int) -> SchedulerLimits:
    """Return limits that refuse no request for its length or for the number of those that wait. In `sd` each worker has
    its own device, as where the costs were measured (`minedraft bench`)."""
    return SchedulerLimits(
        mode,
        max_batch_size,
        draft_len,
        max_waiting=1 << 20,
        max_waiting_tokens=1 << 40,
        max_model_len=1 << 20,
        branches=1,
        keep_cores=mode is Mode.SD,
    )


def with_tetris(limits: SchedulerLimits, extra_drafts: int) -> tuple[SchedulerLimits, SimulatedPolicies]:
    """Return limits and policies that draft so many tokens more and verify the best of the batch; with none, those
    that verify all."""
    if not extra_drafts or not limits.draft_len:
        return limits, NO_POLICIES
    more = replace(limits, extra_drafts=extra_drafts, scores=ScoreKind.PEAK)
    return more, (TetrisPolicy(FixedDraftLen(), extra_drafts), None)


def run_simulation(
    machine: Machine,
    limits: SchedulerLimits,
    load: Load,
    *,
    policies: SimulatedPolicies = NO_POLICIES,
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
    run = _Run(SimulatedService(machine, limits, policies, observers, seed), load, seed)
    return run_virtual(run.main(drafter_dies_every_s, drafter_returns_after_s))


class _Run:
    def __init__(self, service: SimulatedService, load: Load, seed: int) -> None:
        self._service, self._load = service, load
        self._rng = random.Random(seed + 1)
        self._num_refused = 0
        self._peak_blocks = 0

    async def main(self, dies_every_s: float | None, returns_after_s: float) -> SimulatedRun:
        loop, service = asyncio.get_running_loop(), self._service
        stats, counters = RoundStats(1 << 16), Counters()
        decoding, full = _Decoding(), _Decoding(service.limits.max_batch_size)
        pipeline = service.start([stats.observe, counters.observe, decoding.observe, full.observe, self._observe])
        async with pipeline:
            faults = None
            if service.machine.draft is not None and dies_every_s is not None:
                faults = loop.create_task(_kill(service, dies_every_s, returns_after_s))
            answers = await self._ask_all(pipeline)
            seconds = loop.time()
            if faults is not None:
                faults.cancel()
        num_steps = sum(counters.rounds.values())
        run = _summary([a for a in answers if a is not None], seconds, num_steps, (decoding, full), stats.summary())
        peak_kv_tokens = self._peak_blocks * service.machine.block_size
        return replace(run, num_refused=self._num_refused, peak_kv_tokens=peak_kv_tokens)

    def _observe(self, event: events.Event, now_s: float) -> None:
        if isinstance(event, events.RoundCommitted):
            pool = self._service.pipeline.scheduler.verifier_kv.pool
            self._peak_blocks = max(self._peak_blocks, pool.num_blocks - pool.num_free)

    async def _ask_all(self, pipeline: Pipeline) -> list[SimulatedAnswer | None]:
        load = self._load
        seats = asyncio.Semaphore(load.concurrency or load.num_requests)
        asked: list[asyncio.Task[SimulatedAnswer | None]] = []
        for number in range(load.num_requests):
            if load.arrivals_per_s is not None and number:
                await asyncio.sleep(self._rng.expovariate(load.arrivals_per_s))
            await seats.acquire()
            task = asyncio.create_task(self._ask(pipeline, number))
            task.add_done_callback(lambda _: seats.release())
            asked.append(task)
        return await asyncio.gather(*asked)

    async def _ask(self, pipeline: Pipeline, number: int) -> SimulatedAnswer | None:
        load, answer = self._load, SimulatedAnswer()
        prompt_len = load.prompt_lens[number % len(load.prompt_lens)]
        length = load.output_lens[number % len(load.output_lens)]
        prompt = (number % load.num_kinds, *([4] * (prompt_len - 1)))
        sampling = SamplingParams(max_new_tokens=length, ignore_eos=True)
        try:
            pipeline.submit(NewRequest(prompt, sampling), answer)
        except Overloaded:
            self._num_refused += 1
            return None
        await answer.done.wait()
        return answer


async def _kill(service: SimulatedService, every_s: float, returns_after_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        drafter = service.pipeline.drafter
        assert drafter is not None, "it was given back"
        drafter.give_up("it died")
        if drafter.lost_error is not None:
            service.pipeline.lose_drafter(drafter.lost_error)
        await asyncio.sleep(returns_after_s)
        service.pipeline.gain_drafter(service.new_drafter())


def _summary(
    answers: Sequence[SimulatedAnswer],
    seconds: float,
    num_steps: int,
    decoding: tuple[_Decoding, _Decoding],
    rounds: RoundSummary,
) -> SimulatedRun:
    usages = [answer.usage for answer in answers if answer.usage is not None and answer.error is None]
    num_tokens = sum(usage.output_tokens for usage in usages)
    return SimulatedRun(
        seconds=seconds,
        num_tokens=num_tokens,
        num_steps=num_steps,
        tokens_per_s=num_tokens / seconds,
        decode_tokens_per_s=decoding[0].tokens_per_s,
        full_tokens_per_s=decoding[1].tokens_per_s,
        makespan_per_request_s=seconds / max(len(answers), 1),
        latency=_percentiles([usage.total_s for usage in usages]),
        queue=_percentiles([usage.queue_s for usage in usages]),
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
