"""`minedraft-http`: the OpenAI-compatible door as a process. `minedraft-launch --http` starts it beside the service."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from minedraft.address import Address, default_listen
from minedraft.client import AsyncClient
from minedraft.errors import ConfigError
from minedraft.http.door import Door
from minedraft.http.metrics_proxy import MetricsProxy
from minedraft.http.model_facts import ModelFacts
from minedraft.http.serving import listen_at, make_server
from minedraft.process.entry import SERVICE_EXITS, exit_lines, run_logged, takes_parent, tells_version
from minedraft.process.heartbeat import feed_watchdog
from minedraft.process.logs import set_up_log
from minedraft.process.notify import Notifier
from minedraft.process.parent import exit_with_parent
from minedraft.process.serving import run_serving
from minedraft.security.tls import ServerTls
from minedraft.security.tokens import TokenFile
from minedraft.settings.door import check_model_name, host_check, origins_of
from minedraft.settings.flags import UserPath
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger("minedraft.http")

_EPILOG = f"""
\b
Examples:
  minedraft-http --target DIR                        a service at its default address
  minedraft-http --target DIR --server unix:/run/minedraft.sock --listen 127.0.0.1:8000
\b
minedraft-launch --http 127.0.0.1:8000 starts it together with the service.

{exit_lines(SERVICE_EXITS)}
"""


_INTERVAL_S = 0.05  # between the events of a stream, but before the first and the last


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
@click.option("--origins", metavar="ORIGIN,...", help="Web pages of other servers that may ask; * for all.")
@click.option("--hosts", metavar="HOST,...", help="Other names that clients call this door by; * for any.")
@click.option(
    "--token-file",
    type=UserPath(),
    metavar="FILE",
    help="Tokens that admit clients under /v1, one a line; the first one is shown to the service.",
)
@click.option("--tls-cert", type=UserPath(), metavar="FILE", help="Certificate, with its chain, that clients see.")
@click.option("--tls-key", type=UserPath(), metavar="FILE", help="Its key.")
@click.option("--tls-ca", type=UserPath(), metavar="FILE", help="The CA of the service's own certificate.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", help="Form of the log lines.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", help="Least level."
)
@takes_parent
@tells_version
def command(**options: Any) -> None:  # noqa: ANN401 (one for each option above)
    """Serve OpenAI's API over HTTP, and a chat page, for a service that runs."""
    notifier = Notifier()
    if options["parent_pid"] is not None:
        exit_with_parent(options["parent_pid"], signal.SIGTERM)
    set_up_log("http", options["log_format"], options["log_level"])
    address = Address.parse(options["listen"], "listen")
    token_file, certificate = options["token_file"], options["tls_cert"]
    if not address.is_local and (token_file is None or certificate is None):
        limit = "reachable from other hosts, which requires --tls-cert, --tls-key and --token-file"
        raise ConfigError("listen", str(address), limit)
    check_model_name(options["model_name"])
    _check_certificate(certificate, options["tls_key"])
    run_serving(_serve(address, Tokenizer.load(options["target"]), notifier, options))


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    if certificate is not None and key is not None:
        ServerTls(certificate, key)
    elif certificate is not None or key is not None:
        missing = "tls_key" if key is None else "tls_cert"
        raise ConfigError(missing, None, "tls_cert and tls_key must be given together")


async def _serve(address: Address, tokenizer: Tokenizer, notifier: Notifier, options: dict[str, Any]) -> None:
    token_file, metrics = options["token_file"], options["metrics"]
    tokens = None if token_file is None else TokenFile(token_file)
    origins, is_meant = origins_of(options["origins"]), host_check(address, options["hosts"])
    exporter = None if metrics is None else MetricsProxy(Address.parse(metrics, "metrics"))
    listening = listen_at(address)
    server = options["server"] or default_listen()
    access = {"token_file": token_file, "tls_ca": options["tls_ca"]}
    async with AsyncClient(server, interval_s=_INTERVAL_S, **access) as client:
        facts = ModelFacts(client, options["model_name"])
        door = Door(client, tokenizer, facts, exporter.read if exporter is not None else None)
        app = door.app(None if tokens is None else tokens.admits, origins, is_meant)
        http = make_server(app, options["tls_cert"], options["tls_key"])
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, http.stop)
        beating = asyncio.create_task(feed_watchdog(notifier, _Beating))
        logger.info("serving on %s://%s", "http" if options["tls_cert"] is None else "https", address)
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
