"""One frame of `minedraft top`: both batches, both workers, the throughput so far, mode, faults."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from minedraft.output import BatchState, ServiceStatus, WorkerState

STATE_COLOURS = {
    "serving": "green",
    "degraded": "yellow",
    "recovering": "red",
    "draining": "yellow",
    "starting": "cyan",
}
BATCH_COLOURS = {"A": "blue", "B": "dark_orange"}
_SPARKS = "▁▂▃▄▅▆▇█"
_MAX_HISTORY = 512
_NARROW = 100  # columns below which the less important figures are left out


class Throughput:
    """Output tokens per second between two statuses, of the last ones."""

    def __init__(self) -> None:
        self.rates: deque[float] = deque(maxlen=_MAX_HISTORY)
        self._last: ServiceStatus | None = None

    def add(self, now: ServiceStatus) -> None:
        """Take a status. After a restart of the service, whose counts begin anew, the rates go on."""
        last, self._last = self._last, now
        if last is None:
            return
        seconds, tokens = now.uptime_s - last.uptime_s, now.output_tokens - last.output_tokens
        if seconds > 0 and tokens >= 0:
            self.rates.append(tokens / seconds)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the last `width` values as a line of blocks, the largest the full height."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return _SPARKS[0] * len(shown)
    return "".join(_SPARKS[min(int(value / top * len(_SPARKS)), len(_SPARKS) - 1)] for value in shown)


def render_frame(now: ServiceStatus, address: str, history: Throughput, width: int) -> RenderableType:
    """Return a frame of at most `width` columns."""
    if now.state == "starting":
        return Group(_head(now, address), Text("the models are loading"))
    parts: list[RenderableType] = [
        _head(now, address),
        *([Text(now.mode_reason, "dim", overflow="ellipsis", no_wrap=True)] if now.mode_reason else []),
        "",
        _throughput(now, history, width),
        "",
        _batches(now, width),
        "",
        _workers(now, width),
        "",
        _steps(now),
        *_troubles(now),
    ]
    return Group(*parts)


def render_lost(address: str, why: str, last: RenderableType | None) -> RenderableType:
    """Return a frame for a service that does not answer, above the last one that it gave."""
    lost = Text(f"no answer from {address}, trying again: {why}", "bold red", overflow="ellipsis", no_wrap=True)
    return lost if last is None else Group(lost, last)


def _head(now: ServiceStatus, address: str) -> Text:
    k = f"k {'<=' if now.is_draft_len_auto else '='} {now.draft_len}"
    head = Text.assemble(
        ("MineDraft ", "bold"),
        (now.state, f"bold {STATE_COLOURS.get(now.state, 'red')}"),
        ("  mode "),
        (now.mode, "bold"),
        f"{' (auto)' * now.is_mode_auto}  m = {now.max_batch_size}  {k}  up {_age(now.uptime_s)}  ",
        (address, "dim"),
    )
    head.no_wrap, head.overflow = True, "ellipsis"
    return head


def _throughput(now: ServiceStatus, history: Throughput, width: int) -> Text:
    rate = history.rates[-1] if history.rates else now.tokens_per_s
    label = f"{rate:8.1f} tokens/s "
    most = f" most {max(history.rates, default=rate):.0f}"
    line = sparkline(history.rates, max(width - len(label) - len(most), 0))
    return Text.assemble((label, "bold"), (line, "green"), (most, "dim"))


def _batches(now: ServiceStatus, width: int) -> Table:
    table = _table("batch", "requests", "tokens", "accepted", "length", "rounds")
    bar_width = 24 if width >= _NARROW else 16
    for batch in now.batches:
        table.add_row(
            Text(batch.name, f"bold {BATCH_COLOURS.get(batch.name, '')}"),
            _seats(batch, now.max_batch_size, bar_width),
            f"{batch.num_tokens}",
            f"{batch.vsr:.0%}",
            f"{batch.mean_accepted_len:.2f}",
            f"{batch.rounds}",
        )
    table.add_row("waiting", Text(f"{now.num_waiting}", "yellow" if now.num_waiting else ""), "", "", "", "")
    return table


def _seats(batch: BatchState, max_batch_size: int, width: int) -> Text:
    size = max(max_batch_size, batch.num_requests, 1)
    cells = min(size, width)
    taken = round(batch.num_requests / size * cells)
    bar = Text("■" * taken, BATCH_COLOURS.get(batch.name, ""))
    return bar.append("·" * (cells - taken), "dim").append(f" {batch.num_requests}/{max_batch_size}")


def _workers(now: ServiceStatus, width: int) -> Table:
    is_wide = width >= _NARROW
    more = ("device", "model") if is_wide else ()
    table = _table("worker", "state", "busy", "queue", "step", "KV", "restarts", *more)
    for worker in now.workers:
        cells: list[RenderableType] = [
            worker.role,
            Text(worker.state, "green" if worker.state == "ready" else "red"),
            _busy(worker, 20 if is_wide else 10),
            f"{worker.num_queued}",
            f"{worker.step_ms:.1f} ms",
            f"{worker.num_blocks - worker.num_free_blocks}/{worker.num_blocks}" if worker.num_blocks else "none",
            Text(f"{worker.restarts}", "yellow" if worker.restarts else ""),
        ]
        if is_wide:
            cells += [worker.device, Text(worker.model)]
        table.add_row(*cells)
    return table


def _busy(worker: WorkerState, width: int) -> Text:
    full = round(min(worker.busy, 1.0) * width)
    return Text("█" * full, "green").append("░" * (width - full), "dim").append(f" {worker.busy:4.0%}")


def _steps(now: ServiceStatus) -> Text:
    return Text(
        f"overlap {now.overlap_efficiency:.2f}  draft {now.draft_ms:.1f} ms  verify {now.verify_ms:.1f} ms  "
        f"step {now.step_ms:.1f} ms  exposed {now.exposed_drafting_s:.1f} s"
    )


def _troubles(now: ServiceStatus) -> list[Text]:
    lines = []
    if now.absent:
        lines.append(Text(f"does not run: {now.absent}", "red"))
    if now.suspended:
        lines.append(Text(f"drafting is suspended: {now.suspended}", "yellow"))
    if now.faults:
        last = {fault.cause: fault.age_s for fault in now.recent_faults}
        told = [
            f"{cause} {count}{f' ({_age(last[cause])} ago)' if cause in last else ''}"
            for cause, count in sorted(now.faults.items())
        ]
        lines.append(Text(f"faults   {', '.join(told)}", "yellow"))
    if now.errors:
        told = [f"{reason} {count}" for reason, count in sorted(now.errors.items())]
        lines.append(Text(f"errors   {', '.join(told)}"))
    return lines


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in columns:
        is_text = name in ("batch", "requests", "worker", "state", "busy", "device", "model")
        table.add_column(name, justify="left" if is_text else "right", no_wrap=True, overflow="ellipsis")
    return table


def _age(seconds: float) -> str:
    """Return 42 s, 7 min or 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
