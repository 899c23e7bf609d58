"""The threads of the kernels: each on a core of its own, and none awake between forwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from minedraft.errors import ConfigError
from minedraft_workers.native.choosing import ChoiceRequest, ChoiceRule, ChoosingKernels, LogitRows
from minedraft_workers.sampling.vocab_columns import columns_of
from tests.support.native import needs_native
from tests.unit.native.conftest import open_choosing, open_kernels

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
kernels.pool.resize(1)
assert thread not in os.listdir("/proc/self/task")
kernels.pool.resize(2)
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
        kernels.pool.resize(num_threads)
    assert kernels.pool.num_threads == 2


def test_kernels_in_one_pool_take_turns_and_keep_their_bits():
    """Choosing needs scratch memory of another size than computing, and a resize is felt by both."""
    kernels = open_kernels("auto", 2)
    choosing = ChoosingKernels(pool=kernels.pool)
    hashes = columns_of(5000, torch.device("cpu")).noise.hashes
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    weight = kernels.pack(torch.randn(5000, 64, generator=torch.Generator().manual_seed(2)))

    def forward() -> tuple[torch.Tensor, list[list[int]]]:
        logits = LogitRows(kernels.linear(rows, weight))
        requests = [ChoiceRequest(logits, row, ChoiceRule.COUPLED, seed=row, position=3) for row in range(8)]
        return logits.tensor, choosing.choose(requests, hashes).tokens

    logits, tokens = forward()
    assert (
        tokens
        == open_choosing("auto")
        .choose(
            [ChoiceRequest(LogitRows(logits), row, ChoiceRule.COUPLED, seed=row, position=3) for row in range(8)],
            hashes,
        )
        .tokens
    )
    for num_threads in (3, 1, 2):
        kernels.pool.resize(num_threads)
        assert choosing.pool.num_threads == num_threads
        again, chosen = forward()
        assert torch.equal(again, logits)
        assert chosen == tokens


def state(process: int, thread: str) -> str:
    with open(f"/proc/{process}/task/{thread}/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]
