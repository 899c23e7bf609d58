"""A private folder for the sockets of one service."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

from minedraft.errors import ConfigError

OWN_DOOR = "scheduler.sock"
"""The scheduler's socket for the launcher, in the folder of the service."""

_RUN_PREFIX = "minedraft-run-"


class RunFolder:
    """A private folder for sockets, removed with its owner.

    The owner holds the folder's lock as long as it lives. The next start by the same user removes the
    folders of dead owners.
    """

    def __init__(self) -> None:
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        try:
            _remove_stale(base)
            self.path = Path(tempfile.mkdtemp(prefix=_RUN_PREFIX, dir=base))  # mkdtemp makes it 0700
            try:
                self._lock_fd = _make_lock(self.path / "lock")
            except OSError:
                shutil.rmtree(self.path, ignore_errors=True)
                raise
        except OSError as error:
            raise ConfigError("XDG_RUNTIME_DIR", str(base), f"cannot hold sockets: {error.strerror}") from None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def _make_lock(path: Path) -> int:
    """Make a locked file with this process's id: a disk without room for it has none for the sockets either."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, str(os.getpid()).encode())
    return fd


def _remove_stale(base: Path) -> None:
    for folder in base.glob(f"{_RUN_PREFIX}*"):
        try:
            if folder.stat().st_uid != os.getuid():
                continue
            fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue  # another user's, or being made or removed right now
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its owner lives
        finally:
            os.close(fd)
