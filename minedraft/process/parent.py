"""Makes a child process end with its parent, however the parent ends."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from pathlib import Path

from minedraft.errors import EXIT_INTERNAL

_PR_SET_PDEATHSIG = 1


def exit_with_parent(
    parent_pid: int, signum: int = signal.SIGKILL, before_exit: Callable[[], None] = lambda: None
) -> None:
    """Ask the kernel to send this process `signum` when its parent ends. A child calls it first.

    If the parent has ended already, this process exits, after `before_exit`.

    Must run in the main thread. The parent must start the child from a thread that lives as long as the
    parent: the kernel watches that thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:  # the parent ended before the call above
        before_exit()
        os._exit(EXIT_INTERNAL)


def is_orphaned(parent_pid: int) -> bool:
    """Return whether the parent has ended or is ending.

    The parent-death signal comes with the end of one thread of the parent, the main one. Until the last thread has
    ended, getppid() still names the parent, and only the state of its main thread tells.
    """
    if os.getppid() != parent_pid:
        return True
    try:
        state = Path(f"/proc/{parent_pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in ("Z", "X")
