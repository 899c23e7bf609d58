"""Serves the metrics page over HTTP, in threads beside the event loop that makes them.

The loop only takes the figures of one moment; a thread writes them as text and talks to the client, so that a slow
or stuck client costs the service nothing.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from http.server import ThreadingHTTPServer
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector as PrometheusCollector

from minedraft.address import Address
from minedraft.errors import ConfigError

_COLLECT_TIMEOUT_S = 5.0
_CLIENT_TIMEOUT_S = 5.0
_POLL_S = 0.05


class _InLoop(PrometheusCollector):
    """Collects in the event loop on behalf of the thread that asks."""

    def __init__(self, collect: Callable[[], list[Metric]]) -> None:
        self._collect = collect
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        collected: Future[list[Metric]] = Future()

        def take() -> None:
            try:
                collected.set_result(self._collect())
            except Exception as error:  # told to the client of the page
                collected.set_exception(error)

        self._loop.call_soon_threadsafe(take)
        return collected.result(_COLLECT_TIMEOUT_S)


class _Handler(WSGIRequestHandler):
    timeout = _CLIENT_TIMEOUT_S

    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401 - the library's names
        """Log nothing: a page that is fetched every few seconds is no news."""


class _Server(ThreadingHTTPServer, WSGIServer):
    daemon_threads = True

    def server_bind(self) -> None:
        WSGIServer.server_bind(self)


class _Server6(_Server):
    address_family = socket.AF_INET6


@asynccontextmanager
async def serve_metrics(address: Address, collect: Callable[[], list[Metric]]) -> AsyncIterator[None]:
    """Serve a page at `address` while the block runs.

    Args:
        collect: returns the metrics; called in the event loop, which must not be kept long.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    registry = CollectorRegistry()
    registry.register(_InLoop(collect))
    ProcessCollector(registry=registry)
    server = _listen(address)
    server.set_app(make_wsgi_app(registry))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


def _listen(address: Address) -> _Server:
    kind = _Server6 if ":" in address.host else _Server
    try:
        return kind((address.host, address.port), _Handler)
    except OSError as error:
        raise ConfigError("metrics", address.target, f"cannot listen there: {error.strerror}") from None
