"""Child processes that die with their parent and leave nothing behind, and the folder they share."""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import shutil
import signal
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from minedraft.errors import EXIT_INTERNAL, ConfigError

_PR_SET_PDEATHSIG = 1
_STDERR_LINES = 20
_RUN_PREFIX = "minedraft-run-"


def exit_with_parent(parent_pid: int, signum: int = signal.SIGKILL) -> None:
    """Ask the kernel for `signum` when the parent ends; called first thing in a child.

    Must run in the main thread of a child whose parent starts it from a thread that lives as long
    as the parent does: the kernel watches the thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # it ended before the call above
        os._exit(EXIT_INTERNAL)


OnLine = Callable[[str, str], bool]


class Child:
    """One supervised process. Its stderr is passed on line by line, and the last lines kept."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, on_line: OnLine) -> None:
        self.name = name
        self.stderr_tail: deque[str] = deque(maxlen=_STDERR_LINES)
        self._process = process
        self._on_line = on_line
        self._has_spoken = False

    @classmethod
    async def start(cls, name: str, argv: Sequence[str], on_line: OnLine) -> Child:
        """Start `argv` in a process group of its own, so that a terminal's Ctrl-C reaches only the parent.

        Args:
            on_line: called with the name and each line of stderr; returns whether it has shown the line.
        """
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,
            env=environment,
        )
        return cls(name, process, on_line)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def run(self) -> int:
        """Pass stderr on until the process ends; returns its exit code (negative: a signal)."""
        assert self._process.stderr is not None, "started with a stderr pipe"
        while True:
            try:
                line = await self._process.stderr.readline()
            except ValueError:  # longer than the stream's limit; the rest follows
                continue
            if not line:
                break
            text = line.decode(errors="replace").rstrip()
            self.stderr_tail.append(text)
            self._has_spoken |= self._on_line(self.name, text)
        return await self._process.wait()

    def signal(self, signum: int) -> None:
        if self._process.returncode is None:
            self._process.send_signal(signum)

    def describe_end(self) -> str:
        """'verifier: exit code 70' or 'verifier: killed by SIGKILL'; with its last lines if none has been shown."""
        code = self._process.returncode
        if code is None:
            return f"{self.name}: still running"
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        words = "" if self._has_spoken else "\n  ".join(line for line in self.stderr_tail if line)
        return f"{self.name}: {how}" + (f"; its last words:\n  {words}" if words else "")


class RunFolder:
    """A private folder for the workers' sockets, gone with its owner.

    Its lock is held as long as the owner lives; folders whose owner is gone are removed by the next
    start of the same user.
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
            raise ConfigError(
                "XDG_RUNTIME_DIR", str(base), f"cannot hold the workers' sockets: {error.strerror}"
            ) from None

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._lock_fd)


def _make_lock(path: Path) -> int:
    """A locked file with our process id in it: a disk without room for that has none for the sockets either."""
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
