"""Matrix tiles: what the operating system must allow first, and what the sanitizers do not see."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys

import pytest
import torch

from tests.support.native_caches import numbers
from tests.unit.native.conftest import open_kernels

# Gives the main thread a stack for signals that is too small for tiles' state, as an old Python's faulthandler does.
# Prints what is chosen then, and why.
SMALL_STACK = """
import ctypes

class Stack(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

memory = ctypes.create_string_buffer(6000)
stack = Stack(ctypes.addressof(memory), 0, len(memory))
assert ctypes.CDLL(None, use_errno=True).sigaltstack(ctypes.byref(stack), None) == 0, ctypes.get_errno()
from minedraft.device import Device
from minedraft_workers.execution.choice import choose_native
from minedraft_workers.native.kernels import NativeKernels
from minedraft.errors import ConfigError
native, reason = choose_native("auto", Device.parse("cpu:0", "--device"))
print(native.isa, reason, sep="; ")
try:
    NativeKernels("amx_bf16")
except ConfigError as error:
    print(error)
"""


def test_where_the_system_refuses_tiles_the_next_best_runs_and_says_so():
    open_kernels("amx_bf16")  # skips
    command = [sys.executable, "-c", SMALL_STACK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    limit = "the operating system does not let this process use it"
    assert done.stdout.splitlines() == [
        f"avx512_bf16; amx_bf16 is left out: {limit}",
        f"isa is 'amx_bf16': {limit}",
    ]


@pytest.mark.parametrize("num_rows", [1, 20, 40, 130])
@pytest.mark.parametrize(("num_out", "num_in"), [(32, 32), (33, 31), (70, 100)])
def test_no_weight_is_read_beyond_its_memory(num_rows: int, num_out: int, num_in: int):
    """The weights end where memory does: one byte too many, and the process dies."""
    kernels = open_kernels("amx_bf16")
    packed = kernels.pack(numbers(num_out, num_in, dtype=torch.bfloat16))
    x = numbers(num_rows, num_in, dtype=torch.bfloat16, seed=1)
    wanted = kernels.linear(x, packed)
    size = packed.data.numel()
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    at = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + pages), mmap.PAGESIZE, 0) == 0
    moved = torch.frombuffer(memory, dtype=torch.uint8, count=size, offset=pages - size)
    moved.copy_(packed.data)
    out = torch.empty_like(wanted)
    status = kernels._library.linear(
        kernels._handle, x.data_ptr(), num_in, moved.data_ptr(), None, out.data_ptr(), num_out, num_rows, num_in,
        num_out, 1, 1, 1,
    )  # fmt: skip
    assert status == 0
    assert torch.equal(out, wanted)
