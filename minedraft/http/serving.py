"""The HTTP server under the door: where it listens, and its limits."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.applications import Starlette

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.http.bounded_protocol import BoundedProtocol

_DRAIN_S = 5  # for answers that are under way when the process is told to stop; the service has drained before
_BACKLOG = 1024


class HttpServer(uvicorn.Server):
    """A server that leaves signals to the program."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def stop(self) -> None:
        """End after the answers under way; called again, without them."""
        self.force_exit = self.should_exit
        self.should_exit = True


def make_server(app: Starlette, certificate: Path | None = None, key: Path | None = None) -> HttpServer:
    """Return the server of an application; `serve([socket])` runs it.

    Args:
        certificate, key: for TLS; None for plain HTTP.
    """
    return HttpServer(
        uvicorn.Config(
            app,
            http=BoundedProtocol,
            ssl_certfile=certificate,
            ssl_keyfile=None if key is None else str(key),
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=_DRAIN_S,
            backlog=_BACKLOG,
        )
    )


def listen_at(address: Address) -> socket.socket:
    """Return a socket that listens there.

    Raises:
        ConfigError: it cannot be had.
    """
    if address.path is not None:
        raise ConfigError("http", str(address), "must be HOST:PORT")
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address.host, address.port))
        listening.listen(_BACKLOG)
    except OSError as error:
        listening.close()
        raise ConfigError("http", str(address), f"cannot be listened on: {error.strerror}") from None
    return listening
