"""Serves the metrics page over HTTP, in threads beside the event loop.

The loop only makes the status of one moment; a thread makes the page of it and talks to the client, so that a slow or
stuck client costs the service nothing.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from http.server import ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from prometheus_client import CollectorRegistry, Metric, ProcessCollector, make_wsgi_app
from prometheus_client.registry import Collector as PrometheusCollector

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.output import ServiceStatus

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_COLLECT_TIMEOUT_S = 5.0
_CLIENT_TIMEOUT_S = 5.0
_POLL_S = 0.05


class _Collector(PrometheusCollector):
    """Takes the status in the event loop, on behalf of the thread that asks for the page."""

    def __init__(self, status: Callable[[], ServiceStatus], page: Callable[[ServiceStatus], list[Metric]]) -> None:
        self._status = status
        self._page = page
        self._loop = asyncio.get_running_loop()

    def collect(self) -> Iterable[Metric]:
        taken: Future[ServiceStatus] = Future()

        def take() -> None:
            try:
                taken.set_result(self._status())
            except Exception as error:  # told to the client of the page
                taken.set_exception(error)

        self._loop.call_soon_threadsafe(take)
        return self._page(taken.result(_COLLECT_TIMEOUT_S))


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
async def serve_metrics(
    address: Address,
    status: Callable[[], ServiceStatus],
    page: Callable[[ServiceStatus], list[Metric]],
    is_meant: Callable[[str], bool] | None = None,
) -> AsyncIterator[None]:
    """Serve a page at `address` while the block runs.

    Args:
        status: called in the event loop. page: returns the metrics; called in another thread.
        is_meant: says whether a request with this `Host` is for this server; None: every one is.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    registry = CollectorRegistry()
    registry.register(_Collector(status, page))
    ProcessCollector(registry=registry)
    server = _listen(address)
    server.set_app(_meant(make_wsgi_app(registry), is_meant))
    thread = threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        await asyncio.to_thread(server.shutdown)
        server.server_close()


def _meant(app: WSGIApplication, is_meant: Callable[[str], bool] | None) -> WSGIApplication:
    """Return the application behind a check of the name that a request calls this server by."""

    def checked(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        host = environ.get("HTTP_HOST")
        if host is None or is_meant is None or is_meant(host):
            return app(environ, start_response)
        start_response("403 Forbidden", [("content-type", "text/plain")])
        return [b"this server has another name; http_hosts names more\n"]

    return checked


def _listen(address: Address) -> _Server:
    kind = _Server6 if ":" in address.host else _Server
    try:
        return kind((address.host, address.port), _Handler)
    except OSError as error:
        raise ConfigError("metrics", address.target, f"cannot listen there: {error.strerror}") from None
