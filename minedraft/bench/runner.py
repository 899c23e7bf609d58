"""Compare modes on one running service: same processes, same prompts, runs interleaved.

Each configuration answers the same prompts, sent together, with a fixed number of tokens. Each repeat
runs every configuration once, so that a machine that slows down slows all of them; the table shows
medians over repeats. Ratios between rows of one run mean more than the absolute numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from minedraft.bench.prompts import BenchPrompt
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError, Unavailable
from minedraft.loan import AsyncLoan
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.theory.modes import overlap_bound
from minedraft.types import Mode, Role


@dataclass(frozen=True, slots=True)
class BenchConfig:
    """One row of the table: a mode, requests per batch (m) and drafts per round (k).

    is_auto: the service chose mode and k; these are the ones at the end.
    """

    mode: Mode
    max_batch_size: int
    draft_len: int
    is_auto: bool = False

    @property
    def num_in_flight(self) -> int:
        return self.max_batch_size * self.mode.num_batches

    @property
    def label(self) -> str:
        suffix = f" k={self.draft_len}" if self.mode.has_drafts else ""
        return f"{'auto, ' * self.is_auto}{self.mode.value} m={self.max_batch_size}{suffix}"


@dataclass(frozen=True, slots=True)
class BenchRun:
    """The measurements of one run of one configuration. Times in milliseconds are medians over its steady
    decode rounds, measured in the workers and by the scheduler's clock."""

    tokens_per_s: float  # output tokens / time from first submit to last answer, prompts included
    vsr: float
    mean_accepted_len: float
    tokens_per_round: float
    draft_ms: float
    verify_ms: float
    step_ms: float
    overlap_efficiency: float
    control_overhead_ms: float
    verifier_busy: float
    drafter_busy: float
    wire_bytes_per_step: float
    first_token_s: float
    num_output_tokens: int


@dataclass(slots=True)
class BenchRow:
    """A configuration with its runs."""

    config: BenchConfig
    runs: list[BenchRun] = field(default_factory=list)

    def median(self, name: str) -> float:
        return float(median(getattr(run, name) for run in self.runs))

    @property
    def decode_tokens_per_s(self) -> float:
        """Tokens per second of the steady rounds alone, without prompts, ramp and tail."""
        num_rows = self.config.max_batch_size  # of one batch: a step completes one batch's round
        return num_rows * self.median("tokens_per_round") / max(self.median("step_ms") / 1e3, 1e-9)

    def to_json(self) -> dict[str, Any]:
        medians = {name: self.median(name) for name in BenchRun.__slots__}
        return {
            "config": {**asdict(self.config), "num_in_flight": self.config.num_in_flight, "label": self.config.label},
            "median": {**medians, "decode_tokens_per_s": self.decode_tokens_per_s},
            "runs": [asdict(run) for run in self.runs],
        }


def default_configs(max_batch_size: int, draft_len: int) -> list[BenchConfig]:
    """Return ar with 2m, sd with m and with 2m, and minedraft with m per batch; compare those with 2m in flight."""
    return [
        BenchConfig(Mode.AR, 2 * max_batch_size, 0),
        BenchConfig(Mode.SD, max_batch_size, draft_len),
        BenchConfig(Mode.SD, 2 * max_batch_size, draft_len),
        BenchConfig(Mode.MINEDRAFT, max_batch_size, draft_len),
    ]


async def run_benchmark(
    client: AsyncClient,
    loan: AsyncLoan,
    configs: Sequence[BenchConfig],
    prompts: Sequence[BenchPrompt],
    sampling: SamplingParams,
    *,
    num_repeats: int,
    on_run: Callable[[BenchConfig, int], None] = lambda config, repeat: None,
) -> list[BenchRow]:
    """Run every configuration once per repeat, in an order that rotates by one each repeat.

    Args:
        loan: the client's loan of the service, to switch configurations.
        on_run: called with the configuration and the number of the repeat before each run.

    Raises:
        MineDraftError: the service lacks the drafter (see `require_drafter`), or refused a configuration.
    """
    require_drafter(await client.status(), configs)
    rows = [BenchRow(config) for config in configs]
    for repeat in range(num_repeats):
        for index in range(len(rows)):
            row = rows[(index + repeat) % len(rows)]
            on_run(row.config, repeat)
            row.runs.append(await measure(client, loan, row.config, prompts, sampling))
    return rows


def require_drafter(status: ServiceStatus, configs: Sequence[BenchConfig]) -> None:
    """Check that the service has a drafter, if a configuration has drafts.

    Raises:
        ConfigError: the service was started without a drafter. Unavailable: its drafter is lost.
    """
    modes = ", ".join(dict.fromkeys(config.mode.value for config in configs if config.mode.has_drafts))
    drafter = next((worker for worker in status.workers if worker.role == Role.DRAFTER.value), None)
    if not modes or (drafter is not None and drafter.state == "ready"):
        return
    if drafter is not None:
        wait = "wait until `minedraft status` shows it ready, or use --modes ar"
        raise Unavailable(f"the drafter is {drafter.state}, so {modes} would run without drafts: {wait}")
    restart = "restart it with --mode minedraft, or use --modes ar"
    raise ConfigError("modes", modes, f"the service runs in mode {status.mode} without a drafter: {restart}")


async def measure(
    client: AsyncClient, loan: AsyncLoan, config: BenchConfig, prompts: Sequence[BenchPrompt], sampling: SamplingParams
) -> BenchRun:
    """Measure one run: configure, send all prompts together, wait for all answers, read the counters."""
    await loan.configure(config.mode, config.max_batch_size, config.draft_len)
    return await _run(client, prompts, sampling)


async def measure_auto(
    client: AsyncClient, prompts: Sequence[BenchPrompt], sampling: SamplingParams, num_repeats: int
) -> BenchRow:
    """Measure what the service makes of its own choice of mode, without a loan. The first run is not counted: in it
    the service gets to know this load."""
    await _run(client, prompts, sampling)
    runs = [await _run(client, prompts, sampling) for _ in range(num_repeats)]
    status = await client.status()
    config = BenchConfig(Mode(status.mode), status.max_batch_size, status.draft_len, is_auto=True)
    return BenchRow(config, runs)


async def _run(client: AsyncClient, prompts: Sequence[BenchPrompt], sampling: SamplingParams) -> BenchRun:
    before = await client.status()
    started_s = time.monotonic()
    calls: list[Awaitable[Any]] = [
        client.complete([{"role": "user", "content": prompt.text}], sampling) for prompt in prompts
    ]
    outputs = await asyncio.gather(*calls)
    elapsed_s = time.monotonic() - started_s
    status = await client.status()
    num_tokens = sum(len(output.token_ids) for output in outputs)
    busy = {worker.role: worker.busy for worker in status.workers}
    return BenchRun(
        tokens_per_s=num_tokens / elapsed_s,
        vsr=status.vsr,
        mean_accepted_len=status.mean_accepted_len,
        tokens_per_round=num_tokens / max(sum(output.usage.rounds for output in outputs), 1),
        draft_ms=status.draft_ms,
        verify_ms=status.verify_ms,
        step_ms=status.step_ms,
        overlap_efficiency=status.overlap_efficiency,
        control_overhead_ms=status.control_overhead_ms,
        verifier_busy=busy.get("verifier", 0.0),
        drafter_busy=busy.get("drafter", 0.0),
        wire_bytes_per_step=(status.wire_bytes - before.wire_bytes) / max(status.steps - before.steps, 1),
        first_token_s=median(output.usage.first_token_s for output in outputs),
        num_output_tokens=num_tokens,
    )


def bound_of(row: BenchRow) -> float:
    """Return the largest gain of overlapping over taking turns with the times of this row."""
    return overlap_bound(row.median("draft_ms"), row.median("verify_ms"))
