"""The flags of every command that calls a service: where it is, and what it wants to be shown."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import click

from minedraft.security.tls import AccessOptions
from minedraft.settings.flags import UserPath

_F = TypeVar("_F", bound=Callable[..., Any])

_SERVER_HELP = "Address of the service: unix:PATH or HOST:PORT. [default: as for minedraft-launch]"


class Connection(NamedTuple):
    """Where a service is and how to call it: `Client(connection.server, **connection.access)`."""

    server: str | None
    access: AccessOptions


def connection_flags(function: _F) -> _F:
    """Give a click command the flags --server, --token-file, --tls-ca, --tls-cert and --tls-key as one parameter
    `connection`."""

    @wraps(function)
    def command(
        *args: Any,  # noqa: ANN401
        server: str | None,
        token_file: UserPath | None,
        tls_ca: str | None,
        tls_cert: UserPath | None,
        tls_key: UserPath | None,
        **kwargs: Any,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        given = {"token_file": token_file, "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key}
        access: Any = {name: value for name, value in given.items() if value is not None}
        return function(*args, connection=Connection(server, access), **kwargs)

    for option in reversed(
        [
            click.option("--server", default=None, metavar="ADDR", help=_SERVER_HELP),
            click.option(
                "--token-file", type=UserPath(), default=None, metavar="FILE", help="File with a token of the service."
            ),
            click.option(
                "--tls-ca",
                default=None,
                metavar="FILE",
                help="CA of the service's certificate, or `system` for those of the web.",
            ),
            click.option(
                "--tls-cert", type=UserPath(), default=None, metavar="FILE", help="Certificate of this client."
            ),
            click.option("--tls-key", type=UserPath(), default=None, metavar="FILE", help="Key of --tls-cert."),
        ]
    ):
        command = option(command)
    return command  # type: ignore[return-value]
