"""`minedraft-http`: the OpenAI-compatible door as a process. `minedraft-launch --http` starts it beside the service."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import NoReturn

import click

from minedraft.address import Address, default_listen
from minedraft.client import AsyncClient
from minedraft.http.door import Door
from minedraft.http.metrics_proxy import MetricsProxy
from minedraft.http.model_facts import ModelFacts
from minedraft.http.serving import listen_at, make_server
from minedraft.process.entry import run_logged, takes_parent
from minedraft.process.heartbeat import feed_watchdog
from minedraft.process.notify import Notifier
from minedraft.process.parent import exit_with_parent
from minedraft.settings.flags import UserPath
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger("minedraft.http")

_EPILOG = """
\b
Examples:
  minedraft-http --target DIR                        a service at its default address
  minedraft-http --target DIR --server unix:/run/minedraft.sock --listen 127.0.0.1:8000
\b
minedraft-launch --http 127.0.0.1:8000 starts it together with the service.
"""


class _Beating:
    """A look at a process that only waits for its clients: an event loop that turns is all there is to see."""

    is_idle = True
    count = 0


@click.command(epilog=_EPILOG, context_settings={"max_content_width": 120})
@click.option("--target", type=UserPath(), required=True, metavar="DIR", help="Target model folder, for its tokenizer.")
@click.option("--server", default=None, metavar="ADDR", help="Address of the service; default: minedraft-launch's own.")
@click.option("--listen", default="127.0.0.1:8000", show_default=True, metavar="HOST:PORT", help="Address to serve on.")
@click.option("--model-name", default=None, metavar="NAME", help="Name of the model; default: its folder's.")
@click.option("--metrics", default=None, metavar="HOST:PORT", help="Where the service exports its metrics.")
@click.option(
    "--cors-origin", "origins", multiple=True, metavar="ORIGIN", help="Web pages of this origin may ask; * for all."
)
@takes_parent
def command(
    target: Path,
    server: str | None,
    listen: str,
    model_name: str | None,
    metrics: str | None,
    origins: tuple[str, ...],
    parent_pid: int | None,
) -> None:
    """Serve OpenAI's API over HTTP, and a chat page, for a service that runs."""
    if parent_pid is not None:
        exit_with_parent(parent_pid, signal.SIGTERM)
    address = Address.parse(listen, "listen")
    exporter = MetricsProxy(Address.parse(metrics, "metrics")) if metrics is not None else None
    tokenizer = Tokenizer.load(target)
    asyncio.run(_serve(address, server or default_listen(), tokenizer, model_name, exporter, origins))


async def _serve(
    address: Address,
    server: str,
    tokenizer: Tokenizer,
    model_name: str | None,
    exporter: MetricsProxy | None,
    origins: tuple[str, ...],
) -> None:
    listening, notifier = listen_at(address), Notifier()
    async with AsyncClient(server) as client:
        facts = ModelFacts(client, model_name)
        door = Door(client, tokenizer, facts, exporter.read if exporter is not None else None)
        http = make_server(door.app((), origins))
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, http.stop)
        beating = asyncio.create_task(feed_watchdog(notifier, _Beating))
        logger.info("serving on http://%s", address)
        notifier.ready()
        try:
            await http.serve([listening])
        finally:
            notifier.stopping()
            beating.cancel()


def main() -> NoReturn:
    """Run the installed command."""
    sys.exit(run_logged(command, "minedraft-http", "http"))


if __name__ == "__main__":
    main()
