"""Addresses to listen on or to connect to: `unix:PATH` or `host:port`. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import ipaddress
import os
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from minedraft.errors import ConfigError

MAX_UNIX_PATH_BYTES = 107  # sockaddr_un.sun_path less its terminating zero (Linux)


@dataclass(frozen=True, slots=True)
class Address:
    """One end of a gRPC connection: either `path` is set (unix socket) or `host` and `port` are."""

    path: Path | None = None
    host: str = ""
    port: int = 0

    @classmethod
    def parse(cls, text: str, field: str = "address") -> Address:
        """Read `unix:PATH` or `host:port` ("[::1]:50051" for IPv6).

        Raises:
            ConfigError: naming `field`, the text and what is wrong with it.
        """
        if text.startswith("unix:"):
            path = Path(os.path.expanduser(text.removeprefix("unix:").removeprefix("//")))
            if not path.name:
                raise ConfigError(field, text, "a path must follow unix:")
            path = Path(os.path.abspath(path))
            num_bytes = len(os.fsencode(path))
            if num_bytes > MAX_UNIX_PATH_BYTES:
                raise ConfigError(
                    field, text, f"a unix socket path has at most {MAX_UNIX_PATH_BYTES} bytes, not {num_bytes}"
                )
            return cls(path=path)
        host, separator, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not separator or not host:
            raise ConfigError(field, text, "must be unix:PATH or host:port")
        if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
            raise ConfigError(field, text, "the port must be in [1, 65535]")
        return cls(host=host, port=int(port))

    @property
    def target(self) -> str:
        """The address as gRPC wants it."""
        if self.path is not None:
            return f"unix:{self.path}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only processes of this host can reach it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return self.target


class ListenClaim:
    """The exclusive right to listen on an address, held until `release`.

    gRPC replaces an existing socket file without a word, so a unix address is guarded by a lock file
    beside it: a live owner holds the lock, a dead one's socket is reclaimed. A port is probed.
    """

    def __init__(self, address: Address, field: str = "listen") -> None:
        """Claim the address.

        Raises:
            ConfigError: another process listens there, or the folder or host cannot be used.
        """
        self.address = address
        self._field = field
        self._lock_fd: int | None = None
        if address.path is None:
            self._probe_port()
        else:
            self._lock_socket(address.path)

    def release(self) -> None:
        """Remove the socket and the lock; safe to call twice."""
        if self._lock_fd is None or self.address.path is None:
            return
        # Unlinked while the lock is held: nobody else can have claimed the path meanwhile.
        for path in (self.address.path, _lock_path(self.address.path)):
            path.unlink(missing_ok=True)
        os.close(self._lock_fd)
        self._lock_fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _lock_socket(self, path: Path) -> None:
        lock = _lock_path(path)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if os.lstat(path.parent).st_uid not in (os.getuid(), 0):
                raise ConfigError(self._field, self.address.target, "its folder belongs to another user")
            if path.exists() and not path.is_socket():
                raise ConfigError(self._field, self.address.target, "the file there is not a socket")
            while True:
                fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A releasing owner unlinks its lock file: one opened before that guards nothing.
                with suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(fd), os.stat(lock)):
                        break
                os.close(fd)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            os.close(fd)
            by = f"process {holder}" if holder else "another process"
            raise ConfigError(self._field, self.address.target, f"{by} is listening there") from None
        except OSError as error:
            raise ConfigError(self._field, self.address.target, f"cannot be used: {error.strerror}") from None
        self._lock_fd = fd
        try:
            os.ftruncate(fd, 0)
            os.pwrite(fd, str(os.getpid()).encode(), 0)
            path.unlink(missing_ok=True)  # stale: its owner would hold the lock
        except OSError as error:  # the disk is full
            self.release()
            raise ConfigError(self._field, self.address.target, f"cannot be used: {error.strerror}") from None

    def _probe_port(self) -> None:
        try:
            family, kind, proto, _, sockaddr = socket.getaddrinfo(
                self.address.host, self.address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(sockaddr)
        except socket.gaierror as error:
            raise ConfigError(self._field, self.address.target, f"host cannot be resolved: {error.strerror}") from None
        except OSError as error:
            why = "another process is listening there" if error.errno == errno.EADDRINUSE else f"{error.strerror}"
            raise ConfigError(self._field, self.address.target, why) from None


def default_listen() -> str:
    """`unix:` under the user's runtime folder, or under a private folder in /tmp."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) if runtime else Path(f"/tmp/minedraft-{os.getuid()}")  # noqa: S108 - made 0700, owner checked
    return f"unix:{folder / 'minedraft.sock'}"


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")
