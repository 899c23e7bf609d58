"""Addresses to listen on or to connect to: `unix:PATH` or `host:port`. Standard library only."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from minedraft.errors import ConfigError

MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less its terminating zero (Linux)
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # no character with a meaning in a URI
_PORT = re.compile(r"[0-9]{1,5}")
_HOST_HEADER = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a gRPC connection: either `path` is set (unix socket) or `host` and `port` are."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str | os.PathLike[str], field: str = "address") -> Address:
        """Return the address of `unix:PATH`, `host:port` ("[::1]:50051" for IPv6) or a unix socket's path object.

        Raises:
            ConfigError: the text has another form; the error names `field`.
        """
        if isinstance(text, os.PathLike):
            return cls(path=_parse_path(os.fsdecode(text), field))
        if not isinstance(text, str):
            raise ConfigError(field, text, "must be unix:PATH or host:port")
        if text.startswith("unix:"):
            return cls(path=_parse_path(text.removeprefix("unix:").removeprefix("//"), field))
        host, separator, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not separator or not is_host(host):
            raise ConfigError(field, text, "must be unix:PATH or host:port")
        if not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
            raise ConfigError(field, text, "the port must be in [1, 65535]")
        return cls(host=host, port=int(port))

    @property
    def target(self) -> str:
        """The address as users write it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """The address as gRPC takes it: a URI, in which `#`, `?` and `%` are escaped."""
        return f"unix:{quote(os.fsencode(self.path))}" if self.path is not None else self.target

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can reach the address."""
        return self.path is not None or _is_loopback(self.host)

    def is_called(self, header: str, names: Collection[str] = ()) -> bool:
        """Whether an HTTP client that sends this `Host` means the address: it says its host, a loopback address,
        `localhost`, or one of `names`; its port is of no matter, for another one may be forwarded here.

        A web page whose own name was made to lead here (DNS rebinding) says that name.
        """
        match = _HOST_HEADER.fullmatch(header.strip().lower())
        said = "" if match is None else match[1].removeprefix("[").removesuffix("]").removesuffix(".")
        return _is_loopback(said) or said in {self.host.lower(), *names}

    def __str__(self) -> str:
        return self.target


def default_listen() -> str:
    """Return a unix socket address in the user's runtime folder or, without one, in a private folder in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(f"/tmp/minedraft-{os.getuid()}")  # noqa: S108 - made 0700, owner checked
    return f"unix:{folder / 'minedraft.sock'}"


def is_host(text: str) -> bool:
    """Whether the text has the form of a host's name or is an IP address."""
    return _HOST_NAME.fullmatch(text) is not None or _is_ip(text)


def _parse_path(text: str, field: str) -> Path:
    def refuse(limit: str) -> ConfigError:
        return ConfigError(field, f"unix:{text}", limit)

    if not _is_unicode(text) or "\0" in text:
        raise refuse("must be Unicode text without NUL characters")
    try:
        path = Path(text).expanduser()
        if not path.name:
            raise refuse("must have a path after unix:")
        path = Path(os.path.abspath(path))
    except RuntimeError:  # ~user
        raise refuse("~ names a user that does not exist") from None
    except OSError as error:  # the working directory is gone
        raise refuse(str(error)) from None
    if "," in str(path):
        raise refuse("must not contain a comma, which separates addresses in gRPC")
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_UNIX_PATH_BYTES:
        raise refuse(f"a unix socket path has at most {MAX_UNIX_PATH_BYTES} bytes, this one has {num_bytes}")
    return path


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
