"""`minedraft status`: shows batches, workers and rates, once or continuously."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from minedraft.cli.console import print_json
from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.cli.flags.numbers import NumberRange
from minedraft.cli.top_view import STATE_COLOURS
from minedraft.client import Client
from minedraft.output import ServiceStatus, WorkerState

_TIMEOUT_S = 5.0

_EPILOG = """
\b
Examples:
  minedraft status --watch
  minedraft status --json | jq .workers
"""


@click.command(epilog=_EPILOG)
@connection_flags
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with everything.")
@click.option("--watch", is_flag=True, help="Refresh until Ctrl-C.")
@click.option(
    "--interval-s",
    type=NumberRange(0.1, 3600),
    default=1.0,
    metavar="SECONDS",
    help="Seconds between refreshes. [default: 1]",
)
def status(connection: Connection, as_json: bool, watch: bool, interval_s: float) -> None:
    """Show batches, workers, acceptance, overlap and KV use of a running service."""
    with Client(connection.server, timeout_s=_TIMEOUT_S, **connection.access) as client:
        if not watch:
            now = client.status()
            if as_json:
                print_json(dataclasses.asdict(now))
            else:
                Console().print(render(now, client.address.target))
            return
        if as_json:
            while True:
                print_json(dataclasses.asdict(client.status()))
                time.sleep(interval_s)
        with Live(console=Console(), auto_refresh=False) as live:
            while True:
                live.update(render(client.status(), client.address.target), refresh=True)
                time.sleep(interval_s)


def render(now: ServiceStatus, address: str) -> RenderableType:
    """Return the status as tables."""
    colour = STATE_COLOURS.get(now.state, "red")
    title = Text.assemble(
        (now.state, f"bold {colour}"),
        f" on {address}, mode {now.mode}{' (auto)' * now.is_mode_auto}, m = {now.max_batch_size}, "
        f"k {'<=' if now.is_draft_len_auto else '='} {now.draft_len}, "
        f"{f'{now.steps_per_command} steps a command, ' * (now.steps_per_command > 1)}up {now.uptime_s:.0f} s",
    )
    if now.state == "starting":
        return Group(title, Text("the models are loading"))
    parts: list[RenderableType] = [title, _batches(now), _workers(now), _rates(now)]
    if now.mode_reason:
        parts.insert(1, Text(now.mode_reason))
    if now.sources:
        parts.append(_sources(now))
    if now.suspended:
        parts.append(Text(f"drafting is suspended: {now.suspended}", "yellow"))
    if now.num_suspended:
        parts.append(Text(f"requests without drafts, because theirs were useless: {now.num_suspended}"))
    if now.errors:
        parts.append(Text("errors: " + ", ".join(f"{reason} {count}" for reason, count in sorted(now.errors.items()))))
    if now.absent:
        parts.append(Text(f"does not run: {now.absent}", "red"))
    if now.faults:
        parts.append(Text("faults: " + ", ".join(f"{cause} {count}" for cause, count in sorted(now.faults.items()))))
    return Group(*parts)


def _batches(now: ServiceStatus) -> Table:
    table = Table("batch", "requests", "rounds", box=SIMPLE_HEAD)
    for batch in now.batches:
        bar = "■" * batch.num_requests + "·" * max(now.max_batch_size - batch.num_requests, 0)
        table.add_row(batch.name, f"{bar[:32]} {batch.num_requests}", f"{batch.rounds}")
    table.add_row("waiting", f"{now.num_waiting}", "")
    return table


def _workers(now: ServiceStatus) -> Table:
    """Return a column for each worker: ten columns would be cut in a terminal of 80, where nothing may be missing."""
    table = Table("worker", *(worker.role for worker in now.workers), box=SIMPLE_HEAD)
    rows: dict[str, Callable[[WorkerState], Text | str]] = {
        "state": lambda worker: Text(worker.state, "green" if worker.state == "ready" else "red"),
        "model": lambda worker: Text(worker.model),  # a folder's name may look like markup
        "device": lambda worker: worker.device,
        "dtype": lambda worker: worker.dtype,
        "kernels": lambda worker: worker.kernels or "none",
        "tensors": lambda worker: worker.carrier,
        "busy": lambda worker: f"{worker.busy:.0%}",
        "step": lambda worker: f"{worker.step_ms:.1f} ms",
        "KV blocks": _used_blocks,
    }
    for name, cell in rows.items():
        table.add_row(name, *(cell(worker) for worker in now.workers))
    return table


def _used_blocks(worker: WorkerState) -> str:
    return f"{worker.num_blocks - worker.num_free_blocks}/{worker.num_blocks}" if worker.num_blocks else "none"


def _sources(now: ServiceStatus) -> Table:
    table = Table("drafts by", "rows", "verified", "accepted", "VSR", "mean accepted length", box=SIMPLE_HEAD)
    for source in now.sources:
        drafted, accepted = source.verified_drafts, source.accepted_drafts
        shares = f"{accepted / max(drafted, 1):.1%}", f"{accepted / max(source.rows, 1):.2f}"
        table.add_row(source.name, f"{source.rows}", f"{drafted}", f"{accepted}", *shares)
    return table


def _rates(now: ServiceStatus) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("tokens/s", f"{now.tokens_per_s:.1f}", "accepted drafts (VSR)", f"{now.vsr:.1%}")
    table.add_row("output tokens", f"{now.output_tokens}", "mean accepted length", f"{now.mean_accepted_len:.2f}")
    table.add_row(
        "finished requests", f"{now.finished_requests}", "overlap efficiency", f"{now.overlap_efficiency:.2f}"
    )
    table.add_row("draft", f"{now.draft_ms:.1f} ms", "verify", f"{now.verify_ms:.1f} ms")
    table.add_row("step", f"{now.step_ms:.1f} ms", "control overhead", f"{now.control_overhead_ms:.2f} ms")
    table.add_row("preemptions", f"{now.preemptions}", "wire", f"{now.wire_bytes / 1e6:.1f} MB")
    if now.feature_bytes:
        table.add_row("", "", "features", f"{now.feature_bytes / 1e6:.1f} MB")
    return table
