"""What `scripts/chaos` and `scripts/soak` share: their options, the service, Ctrl-C, the report."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click

from minedraft.local import serve
from scripts.lib.chaos.report import lines, to_json
from scripts.lib.chaos.run import Plan, Result, Run
from scripts.lib.chaos.service import Processes, find_launcher

EXIT_BROKEN = 1
_LOAD_S = 300.0
_NUM_BLOCKS = 112  # little KV for sixteen requests: some are preempted
_BLOCK_SIZE = 16
_DRAIN_S = 20.0
_KEPT_LINES = 2000


def options(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of both commands."""
    for option in reversed(
        (
            click.option("--minutes", type=float, default=None, help="Minutes of load."),
            click.option("--tiny", is_flag=True, help="Tiny random models in place of the default pair."),
            click.option("--server", metavar="ADDR", help="Use the service that listens there (unix:PATH)."),
            click.option("--clients", type=click.IntRange(1, 256), default=8, show_default=True, help="Clients."),
            click.option("--seed", type=int, default=None, help="Seed of load and faults; default: a random one."),
            click.option(
                "--patience-s", type=float, default=120.0, show_default=True, help="How long a recovery may take."
            ),
            click.option("--mode", default="minedraft", show_default=True, help="Mode of the service."),
            click.option(
                "--set",
                "settings",
                metavar="NAME=VALUE",
                multiple=True,
                help="A setting of the service; repeatable.",
            ),
            click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the report to this file."),
            click.option("--log", "log_path", type=click.Path(path_type=Path), help="Write the service's log here."),
        )
    ):
        function = option(function)
    return function


def run_command(
    *,
    minutes: float,
    fault_every_s: float,
    restarts_scheduler: bool,
    tiny: bool,
    server: str | None,
    clients: int,
    seed: int | None,
    patience_s: float,
    mode: str,
    settings: Sequence[str],
    json_path: Path | None,
    log_path: Path | None,
) -> None:
    """Run, report, and end the process with 0 if all held, else 1."""
    given = {name: _to_value(text) for name, _, text in (setting.partition("=") for setting in settings)}
    seed = random.SystemRandom().randrange(1 << 31) if seed is None else seed
    max_len = int(given.get("max_model_len", 512 if tiny else 640))
    plan = Plan(minutes * 60, clients, fault_every_s, restarts_scheduler, max_len, seed, patience_s)
    about = {"models": "tiny" if tiny else "default pair", "mode": mode, "num_blocks": _NUM_BLOCKS, **given}
    with tempfile.TemporaryDirectory(prefix="minedraft-chaos-") as folder:
        work = Path(folder)
        log: list[str] = []
        result = asyncio.run(_run(plan, work, server, tiny, {"mode": mode, **given}, log))
    if log_path is not None:
        log_path.write_text("\n".join(log) + "\n")
    for line in lines(result):
        click.echo(line)
    if not result.is_good:
        click.echo("\n".join(["last lines of the service:", *log[-12:]]))
    if json_path is not None:
        content = to_json(result, plan, about if server is None else {"server": "given"})
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(content, indent=1) + "\n")
    sys.exit(0 if result.is_good else EXIT_BROKEN)


def _to_value(text: str) -> str | int | float | bool:
    """Return the value of a setting as TOML would have it: a number, a truth value, or the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text


async def _run(
    plan: Plan, work: Path, server: str | None, tiny: bool, settings: Mapping[str, object], log: list[str]
) -> Result:
    stop = _stop_at_interrupt()
    if server is not None:
        return await Run(plan, server, Processes(find_launcher(server)), None, click.echo).run(work, stop)
    async with _started(work, tiny, settings, log) as (address, pid):
        processes = Processes(pid)
        run = Run(plan, address, processes, work / "run", click.echo)
        result = await run.run(work, stop)
        pids = [process.pid for _, process in processes.all()]
    result.leaked += _left_behind(work / "run", pids)
    return result


@asynccontextmanager
async def _started(
    work: Path, tiny: bool, settings: Mapping[str, object], log: list[str]
) -> AsyncIterator[tuple[str, int]]:
    """Run a service of its own, with little KV memory, while the block does. Yield its address and process id."""
    folder = work / "run"
    folder.mkdir(mode=0o700)
    chosen: dict[str, Any] = {"num_blocks": _NUM_BLOCKS, "keep_drafting": True, "draft_len": 3} | dict(settings)
    if tiny:
        from tests.stress.models import PairKind, make_pair

        pair = make_pair(work, PairKind.EVEN)
        chosen |= {"target": pair.target, "draft": pair.draft, "dtype": "float32"}

    def keep(line: str) -> None:
        log.append(line)
        del log[:-_KEPT_LINES]

    click.echo("starting the service")
    local = serve(
        on_line=keep,
        environment={"XDG_RUNTIME_DIR": str(folder)},
        listen=f"unix:{folder / 'm.sock'}",
        load_timeout_s=_LOAD_S,
        drain_timeout_s=_DRAIN_S,
        **chosen,
    )
    async with local:
        yield local.address, local.pid


def _left_behind(folder: Path, pids: Sequence[int]) -> list[str]:
    """Return what is still there after the end of the service."""
    import psutil

    left = [f"process {pid}" for pid in pids if psutil.pid_exists(pid)]
    return left + [f"file {path.name}" for path in folder.iterdir()]


def _stop_at_interrupt() -> asyncio.Event:
    """Return an event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C ends the program."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_interrupt() -> None:
        click.echo("ending the load (Ctrl-C again to stop now)")
        stop.set()
        loop.remove_signal_handler(signal.SIGINT)

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    return stop
