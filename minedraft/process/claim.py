"""The exclusive right to listen on an address."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.process.port_holder import find_port_holder


class ListenClaim:
    """The exclusive right to listen on an address, held until `release`.

    gRPC silently replaces an existing socket file, so a unix address is guarded by a lock file beside it: a
    live owner holds the lock, the socket of a dead owner is reclaimed. A port is probed by binding it.
    """

    def __init__(self, address: Address, field: str = "listen") -> None:
        """Claim the address.

        Raises:
            ConfigError: another process listens there, or its folder or host cannot be used.
        """
        self.address = address
        self._field = field
        self._lock_fd: int | None = None
        self._has_made_folder = False
        if address.path is None:
            self._probe_port()
        else:
            self._lock_socket(address.path)

    def release(self) -> None:
        """Remove the socket, the lock and, if this claim made it and nothing else is in it, their folder; safe to call
        twice."""
        if self._lock_fd is None or self.address.path is None:
            return
        # Unlinked while the lock is held: no other process can have claimed the path.
        for path in (self.address.path, _lock_path(self.address.path)):
            path.unlink(missing_ok=True)
        if self._has_made_folder:
            with suppress(OSError):
                self.address.path.parent.rmdir()
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
            while True:
                self._make_folder(path.parent)
                if path.exists() and not path.is_socket():
                    raise ConfigError(self._field, self.address.target, "the file there is not a socket")
                # An owner removes its lock file on release, and a folder that it made: a file opened before that
                # guards nothing.
                with suppress(FileNotFoundError):
                    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if _is_same_file(fd, lock):
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

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(mode=0o700)  # one level: more would be a slip of the pen
            self._has_made_folder = True
        except FileExistsError:
            if folder.exists() and not folder.is_dir():
                raise
        with suppress(FileNotFoundError):  # removed by its maker just now: it is made again
            if os.lstat(folder).st_uid not in (os.getuid(), 0):
                raise ConfigError(self._field, self.address.target, "its folder belongs to another user")

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
            why = f"{error.strerror}"
            if error.errno == errno.EADDRINUSE:
                holder = find_port_holder(self.address.port)
                why = f"{'another process' if holder is None else f'process {holder}'} is listening there"
            raise ConfigError(self._field, self.address.target, why) from None


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
