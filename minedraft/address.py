"""Addresses to listen on or to connect to: `unix:PATH` or `host:port`. Standard library only."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from minedraft.errors import ConfigError

MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less its terminating zero (Linux)
_HOST_NAME = re.compile(r"[A-Za-z0-9_.-]+")  # nothing that a URI would read as something else
_PORT = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a gRPC connection: either `path` is set (unix socket) or `host` and `port` are."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str | os.PathLike[str], field: str = "address") -> Address:
        """Read `unix:PATH` or `host:port` ("[::1]:50051" for IPv6); a path object is a unix socket's.

        Raises:
            ConfigError: naming `field`, the text and what is wrong with it.
        """
        if isinstance(text, os.PathLike):
            return cls(path=_parse_path(os.fsdecode(text), field))
        if not isinstance(text, str):
            raise ConfigError(field, text, "must be unix:PATH or host:port")
        if text.startswith("unix:"):
            return cls(path=_parse_path(text.removeprefix("unix:").removeprefix("//"), field))
        host, separator, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not separator or not (_HOST_NAME.fullmatch(host) or _is_ip(host)):
            raise ConfigError(field, text, "must be unix:PATH or host:port")
        if not (_PORT.fullmatch(port) and 1 <= int(port) <= 65535):
            raise ConfigError(field, text, "the port must be in [1, 65535]")
        return cls(host=host, port=int(port))

    @property
    def target(self) -> str:
        """The address as people write it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """The address as gRPC takes it: as a URI, in which `#`, `?` and `%` have another meaning."""
        return f"unix:{quote(os.fsencode(self.path))}" if self.path is not None else self.target

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        return _is_ip(self.host) and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return self.target


def default_listen() -> str:
    """`unix:` under the user's runtime folder, or under a private folder in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(f"/tmp/minedraft-{os.getuid()}")  # noqa: S108 - made 0700, owner checked
    return f"unix:{folder / 'minedraft.sock'}"


def _parse_path(text: str, field: str) -> Path:
    def refuse(limit: str) -> ConfigError:
        return ConfigError(field, f"unix:{text}", limit)

    if not _is_unicode(text) or "\0" in text:
        raise refuse("a unix socket path is Unicode text without zeros")
    try:
        path = Path(text).expanduser()
        if not path.name:
            raise refuse("a path must follow unix:")
        path = Path(os.path.abspath(path))
    except RuntimeError:  # ~somebody
        raise refuse("there is no user of that name, so no home folder") from None
    except OSError as error:  # the working directory is gone
        raise refuse(str(error)) from None
    if "," in str(path):
        raise refuse("gRPC takes what a comma separates for several addresses")
    num_bytes = len(os.fsencode(path))
    if num_bytes > MAX_UNIX_PATH_BYTES:
        raise refuse(f"a unix socket path has at most {MAX_UNIX_PATH_BYTES} bytes, not {num_bytes}")
    return path


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
