"""Checks of what protects the doors: nothing is open to other hosts without TLS and proof of who calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from minedraft.address import Address, is_host
from minedraft.errors import ConfigError
from minedraft.security.tls import ServerTls, worker_client_tls, worker_server_tls
from minedraft.security.tokens import TokenFile

if TYPE_CHECKING:
    from minedraft.settings.service import Settings
    from minedraft.settings.shared import SharedSettings
    from minedraft.settings.worker import WorkerSettings

_ORIGIN = re.compile(r"\*|null|[a-z][a-z0-9+.-]*://[a-z0-9._-]+(:[0-9]+)?|[a-z]+://\[[0-9a-f:]+\](:[0-9]+)?")


def wrong_door(settings: Settings) -> list[ConfigError]:
    """Return an error for each setting of the clients' door that is missing or cannot be used."""
    doors = {name: address for name in ("listen", "http") if (address := _address_of(settings, name)) is not None}
    if not doors:
        return []
    errors: list[ConfigError] = []
    given = {"tls_cert": settings.tls_cert, "tls_key": settings.tls_key, "token_file": settings.token_file}
    missing = [name for name, value in given.items() if value is None]
    for name, address in doors.items():
        if not address.is_local and missing:
            limit = "reachable from other hosts, which requires tls_cert, tls_key and token_file; missing: "
            errors.append(ConfigError(name, address.target, limit + _join(missing)))
    if "http" in doors and doors["http"].path is not None:
        errors.append(ConfigError("http", settings.http, "must be HOST:PORT"))
    if not errors and (settings.tls_cert is None) != (settings.tls_key is None):
        errors.append(ConfigError(missing[0], None, "tls_cert and tls_key must be given together"))
    if settings.tls_client_ca is not None and settings.tls_cert is None:
        errors.append(ConfigError("tls_client_ca", str(settings.tls_client_ca), "requires tls_cert and tls_key"))
    if settings.tls_cert is not None and all(address.path is not None for address in doors.values()):
        where = doors.get("listen")
        limit = f"{where} is a unix socket, which is used without TLS; remove tls_cert, or listen on HOST:PORT"
        errors.append(ConfigError("tls_cert", str(settings.tls_cert), limit))
    errors += [
        *_tried(partial(check_model_name, settings.model_name)),
        *_tried(partial(origins_of, settings.http_origins)),
        *_tried(partial(hosts_of, settings.http_hosts)),
    ]
    return [*errors, *_tried(partial(door_tls, settings)), *_tried(partial(door_tokens, settings))]


def wrong_worker_tls(settings: SharedSettings, *fields: str) -> list[ConfigError]:
    """Return an error for each address of a worker, in `fields`, that is on a network without `worker_tls`, and for a
    folder of certificates that cannot be used, or would not be: links over unix sockets have no TLS."""
    addresses = {field: address for field in fields if (address := _address_of(settings, field)) is not None}
    errors = []
    for field, address in addresses.items():
        if not address.is_local and settings.worker_tls is None:
            limit = (
                "between hosts, workers are reached by TLS with certificates on both ends, which requires worker_tls"
            )
            errors.append(ConfigError(field, address.target, limit))
    for address in addresses.values():
        if wrong := _tried(partial(worker_client_tls, settings.worker_tls, address)):
            return [*errors, *wrong]
    num_given = sum(getattr(settings, field) is not None for field in fields)
    is_unused = len(addresses) == num_given and all(address.path is not None for address in addresses.values())
    if settings.worker_tls is not None and is_unused:
        limit = f"no worker is reached by HOST:PORT ({_join(list(fields))}), and unix sockets are used without TLS"
        errors.append(ConfigError("worker_tls", str(settings.worker_tls), limit))
    return errors


def check_model_name(name: str | None) -> None:
    """Raise ConfigError for a model's name that clients could not write."""
    if name is not None and not (name.strip() and name.isprintable()):
        raise ConfigError("model_name", name, "must be printable text")


def origins_of(text: str | None) -> list[str]:
    """Return the origins of web pages in the text of the setting `http_origins`.

    Raises:
        ConfigError: one is none, so that no page would ever have it.
    """
    origins = [] if text is None else [origin.strip() for origin in text.split(",")]
    if not all(map(_ORIGIN.fullmatch, origins)):
        limit = "must be *, or origins as browsers send them: http://localhost:3000, in small letters, without a path"
        raise ConfigError("http_origins", text, limit)
    return origins


def hosts_of(text: str | None) -> list[str]:
    """Return the names in the text of the setting `http_hosts`, in small letters.

    Raises:
        ConfigError: one is none, so that no client would ever say it.
    """
    hosts = [] if text is None else [host.strip().lower().removesuffix(".") for host in text.split(",")]
    if not all(host == "*" or is_host(host) for host in hosts):
        raise ConfigError("http_hosts", text, "must be *, or names and addresses of hosts: models.example, 10.0.0.1")
    return hosts


def host_check(address: Address, text: str | None) -> Callable[[str], bool] | None:
    """Return what says whether a request with a `Host` header is for the door at `address`; None if each one is.

    A browser lets a page of any name call a door at a loopback address, if that name leads there; one that other hosts
    reach has TLS, whose certificate such a name is not in.

    Args:
        text: of the setting `http_hosts`.

    Raises:
        ConfigError: as in `hosts_of`.
    """
    hosts = hosts_of(text)
    is_any = "*" in hosts or (text is None and not address.is_local)
    return None if is_any else partial(address.is_called, names=hosts)


def door_tls(settings: Settings) -> ServerTls | None:
    """Return how the service proves to clients who it is; None without TLS.

    Raises:
        ConfigError: a file cannot be used.
    """
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerTls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)


def door_tokens(settings: Settings) -> TokenFile | None:
    """Return the tokens that admit clients; None if none is asked for. Raise ConfigError if the file cannot be used."""
    return None if settings.token_file is None else TokenFile(settings.token_file)


def worker_tls(settings: WorkerSettings) -> ServerTls | None:
    """Return how a worker and its scheduler prove who they are; None on a unix socket and without `worker_tls`.

    Raises:
        ConfigError: a file cannot be used.
    """
    return worker_server_tls(settings.worker_tls, settings.listen_address)


def _address_of(settings: SharedSettings, field: str) -> Address | None:
    """Return the address in a setting; None if there is none, or none that can be read, which is told elsewhere."""
    text = getattr(settings, field)
    try:
        return None if text is None else Address.parse(text, field)
    except ConfigError:
        return None


def _tried(load: Callable[[], object]) -> list[ConfigError]:
    try:
        load()
    except ConfigError as error:
        return [error]
    return []


def _join(names: list[str]) -> str:
    return ", ".join(names)
