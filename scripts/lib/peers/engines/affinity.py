"""Which cores the engine and the client run on."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable

import psutil


def family(pid: int) -> list[psutil.Process]:
    """Return a process and all that descend from it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that has ended and is not waited for yet does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def keep_on(processes: Iterable[psutil.Process], cores: Collection[int]) -> None:
    """Bind every thread of the processes to the cores.

    A thread that is bound to some of them already stays as it is: engines bind each of their threads to one core.
    """
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                _bind(thread.id, cores)


def run_on(cores: Collection[int]) -> None:
    """Bind every thread of this process to the cores, whatever it was bound to."""
    for name in os.listdir("/proc/self/task"):
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(int(name), cores)


def end(processes: Iterable[psutil.Process]) -> None:
    """Kill those that still run; a process that got the number of an ended one is left alone."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()  # checks the time of its start first


def _bind(thread_id: int, cores: Collection[int]) -> None:
    with contextlib.suppress(ProcessLookupError):
        both = os.sched_getaffinity(thread_id) & set(cores)
        os.sched_setaffinity(thread_id, both or set(cores))
