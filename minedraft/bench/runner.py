"""Compare modes on one running service: same processes, same prompts, runs interleaved.

Each repeat runs every configuration once, so that a machine that slows down slows all of them; the table shows
medians over repeats. Ratios between rows of one run mean more than the absolute numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.metrics.record import RunRecord, ServiceCounts, SteadyRounds, count_devices
from minedraft.bench.metrics.registry import compute_all
from minedraft.bench.traffic import Traffic, send_all
from minedraft.bench.vllm_result import to_vllm_result
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

    is_auto: the service chose mode and k; these are the ones at the end. keeps_cores: in ar, the verifier computes on
    its own device only, and not on the drafter's cores too. shares_cores: in sd, each worker has all cores in its turn;
    otherwise each has its own device, as in minedraft, so that the two differ by overlapping alone.
    """

    mode: Mode
    max_batch_size: int
    draft_len: int
    is_auto: bool = False
    keeps_cores: bool = False
    shares_cores: bool = False

    @property
    def num_in_flight(self) -> int:
        return self.max_batch_size * self.mode.num_batches

    @property
    def label(self) -> str:
        suffix = f" k={self.draft_len}" if self.mode.has_drafts else ""
        own = " on the verifier's device" if self.keeps_cores else " on all cores" if self.shares_cores else ""
        return f"{'auto, ' * self.is_auto}{self.mode.value} m={self.max_batch_size}{suffix}{own}"


@dataclass(frozen=True, slots=True)
class BenchRun:
    """The measurements of one run of one configuration.

    Attributes:
        values: every metric by its name; see `minedraft.bench.metrics.registry`.
        vllm: the run as a result of `vllm bench serve`.
    """

    values: Mapping[str, Any]
    vllm: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: RunRecord, *, is_detailed: bool = False) -> BenchRun:
        """Return the measurements of a record."""
        return cls(compute_all(record), to_vllm_result(record, is_detailed=is_detailed))

    def to_json(self) -> dict[str, Any]:
        """Return vLLM's keys, and ours under "minedraft"."""
        return {**self.vllm, "minedraft": dict(self.values)}


@dataclass(slots=True)
class BenchRow:
    """A configuration with its runs."""

    config: BenchConfig
    runs: list[BenchRun] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Return the median of a metric over the runs."""
        return float(median(run.values[name] for run in self.runs))

    def medians(self, name: str) -> list[float]:
        """Return the median of each entry of a metric that is a list; an entry that a run lacks counts as 0."""
        lists = [run.values[name] for run in self.runs]
        longest = max(map(len, lists), default=0)
        return [float(median(each[i] if i < len(each) else 0 for each in lists)) for i in range(longest)]

    def to_json(self) -> dict[str, Any]:
        """Return the configuration, its runs and the medians over them, of our metrics and of vLLM's numbers."""
        first = self.runs[0]
        numbers = [name for name, value in first.vllm.items() if isinstance(value, int | float)]
        return {
            "config": {**asdict(self.config), "num_in_flight": self.config.num_in_flight, "label": self.config.label},
            "median": {
                name: self.medians(name) if isinstance(value, list) else self.median(name)
                for name, value in first.values.items()
            },
            "vllm_median": {name: median(run.vllm.get(name, 0) for run in self.runs) for name in numbers},
            "runs": [run.to_json() for run in self.runs],
        }


@dataclass(slots=True)
class BenchTable:
    """Rows that answer the same prompts with the same sampling parameters."""

    prompts: Sequence[BenchPrompt]
    sampling: SamplingParams
    rows: list[BenchRow]


def default_configs(max_batch_size: int, draft_len: int, *, can_share_cores: bool = False) -> list[BenchConfig]:
    """Return ar with 2m, sd with m and with 2m, and minedraft with m per batch; compare those with 2m in flight.

    can_share_cores: also sd with 2m on all cores.
    """
    shared = [BenchConfig(Mode.SD, 2 * max_batch_size, draft_len, shares_cores=True)] if can_share_cores else []
    return [
        BenchConfig(Mode.AR, 2 * max_batch_size, 0),
        BenchConfig(Mode.SD, max_batch_size, draft_len),
        BenchConfig(Mode.SD, 2 * max_batch_size, draft_len),
        *shared,
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
    """Run every configuration once per repeat with the same prompts; see `run_tables`."""
    table = BenchTable(prompts, sampling, [BenchRow(config) for config in configs])
    await run_tables(
        client, loan, [table], num_repeats=num_repeats, on_run=lambda table, row, repeat: on_run(row.config, repeat)
    )
    return table.rows


async def run_tables(
    client: AsyncClient,
    loan: AsyncLoan,
    tables: Sequence[BenchTable],
    *,
    num_repeats: int,
    traffic: Traffic | None = None,
    is_detailed: bool = False,
    on_run: Callable[[BenchTable, BenchRow, int], None] = lambda table, row, repeat: None,
) -> None:
    """Run every row of every table once per repeat, in an order that rotates by one each repeat, and add each run to
    its row when it is complete.

    Args:
        loan: the client's loan of the service, to switch configurations.
        traffic: by default all requests are sent at once.
        on_run: called before each run with its table, its row and the number of the repeat.

    Raises:
        MineDraftError: the service lacks the drafter (see `require_drafter`), or refused a configuration.
    """
    require_drafter(await client.status(), [row.config for table in tables for row in table.rows])
    plan = planned_runs(tables)
    for repeat in range(num_repeats):
        for index in range(len(plan)):
            table, row = plan[(index + repeat) % len(plan)]
            on_run(table, row, repeat)
            run = await measure(
                client, loan, row.config, table.prompts, table.sampling, traffic, is_detailed=is_detailed
            )
            row.runs.append(run)


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


def planned_runs(tables: Sequence[BenchTable]) -> list[tuple[BenchTable, BenchRow]]:
    """Return what one repeat runs. A row that several tables share is run once."""
    rows: dict[int, tuple[BenchTable, BenchRow]] = {}
    for table in tables:
        for row in table.rows:
            rows.setdefault(id(row), (table, row))
    return list(rows.values())


async def measure(
    client: AsyncClient,
    loan: AsyncLoan,
    config: BenchConfig,
    prompts: Sequence[BenchPrompt],
    sampling: SamplingParams,
    traffic: Traffic | None = None,
    *,
    is_detailed: bool = False,
) -> BenchRun:
    """Measure one run: configure, send all prompts, wait for all answers, read the counters."""
    keeps = config.keeps_cores or (config.mode is Mode.SD and not config.shares_cores)
    await loan.configure(config.mode, config.max_batch_size, config.draft_len, keep_cores=keeps)
    return BenchRun.of(await _run(client, prompts, sampling, traffic or Traffic()), is_detailed=is_detailed)


async def measure_auto(
    client: AsyncClient, prompts: Sequence[BenchPrompt], sampling: SamplingParams, num_repeats: int
) -> BenchRow:
    """Measure what the service makes of its own choice of mode, without a loan. The first run is not counted: in it
    the service gets to know this load."""
    await _run(client, prompts, sampling, Traffic())
    runs = [BenchRun.of(await _run(client, prompts, sampling, Traffic())) for _ in range(num_repeats)]
    status = await client.status()
    config = BenchConfig(Mode(status.mode), status.max_batch_size, status.draft_len, is_auto=True)
    return BenchRow(config, runs)


async def _run(
    client: AsyncClient, prompts: Sequence[BenchPrompt], sampling: SamplingParams, traffic: Traffic
) -> RunRecord:
    before = await client.status()
    requests = await send_all(client, prompts, sampling, traffic)
    if all(request.error for request in requests):
        raise Unavailable(f"all {len(requests)} requests failed, the first one with {requests[0].error}")
    after = await client.status()
    return RunRecord(
        tuple(requests),
        max(request.end_s for request in requests) - min(request.sent_s for request in requests),
        ServiceCounts.of(after).since(ServiceCounts.of(before)),
        SteadyRounds.of(after),
        after.max_batch_size,
        count_devices(after.workers, has_drafts=Mode(after.mode).has_drafts),
    )


def bound_of(row: BenchRow) -> float:
    """Return the largest gain of overlapping over taking turns with the times of this row."""
    return overlap_bound(row.median("draft_ms"), row.median("verify_ms"))
