"""The threads of the kernels: each on a core of its own, and none awake between forwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from minedraft.errors import ConfigError
from tests.support.native import needs_native
from tests.unit.native.conftest import open_kernels

pytestmark = needs_native

# Opens kernels with as many threads as cores and calls them from each core in turn: the pool's thread must be
# bound to the other one, also after the pool has had one thread only. Prints the thread's id, and computes no more.
PROGRAM = """
import os, sys, torch
cores = sorted(os.sched_getaffinity(0))[:2]
os.sched_setaffinity(0, cores)
from minedraft_workers.native.kernels import NativeKernels
before = set(os.listdir("/proc/self/task"))
kernels = NativeKernels(num_threads=2)
(thread,) = set(os.listdir("/proc/self/task")) - before
weight = kernels.pack(torch.ones(512, 512))
kernels.resize(1)
assert thread not in os.listdir("/proc/self/task")
kernels.resize(2)
(thread,) = set(os.listdir("/proc/self/task")) - before
for core in cores:
    os.sched_setaffinity(0, [core])
    kernels.linear(torch.ones(4, 512), weight)
    assert os.sched_getaffinity(int(thread)) == set(cores) - {core}, (core, os.sched_getaffinity(int(thread)))
print(thread, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_thread_of_a_changed_pool_keeps_off_its_callers_core_and_sleeps_between_forwards():
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        thread = process.stdout.readline().strip()
        assert thread, "an assertion of the program"
        while state(process.pid, thread) != "S":
            time.sleep(0.001)
        process.communicate("")
    assert process.returncode == 0


@pytest.mark.parametrize("num_threads", [0, 257])
def test_a_number_of_threads_out_of_range_is_refused(num_threads: int):
    kernels = open_kernels("auto", 2)
    with pytest.raises(ConfigError, match=f"num_threads is {num_threads}: must be 1 to 256"):
        kernels.resize(num_threads)
    assert kernels.num_threads == 2


def state(process: int, thread: str) -> str:
    with open(f"/proc/{process}/task/{thread}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]
