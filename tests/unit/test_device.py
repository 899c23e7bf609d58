from __future__ import annotations

import os
import subprocess
import sys

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.device import Device, format_cores

CORES = sorted(os.sched_getaffinity(0))


def test_cpu_alone_is_every_core_of_this_process() -> None:
    assert Device.parse("cpu").cores == tuple(CORES)
    assert str(Device.parse("cpu")) == f"cpu:{format_cores(CORES)}"


def test_cores_are_read_as_numbers_ranges_and_lists() -> None:
    first, last = CORES[0], CORES[-1]
    assert Device.parse(f"cpu:{first}").cores == (first,)
    assert Device.parse(f" CPU:{last},{first} ").cores == tuple(sorted({first, last}))
    if list(range(first, last + 1)) == CORES:
        assert Device.parse(f"cpu:{first}-{last}").cores == tuple(CORES)


def test_cuda_devices_are_read_by_number() -> None:
    assert Device.parse("cuda") == Device("cuda", index=0)
    assert str(Device.parse("cuda:3")) == "cuda:3"


@pytest.mark.parametrize(
    "text", ["", "gpu", "cpu:", "cpu:x", "cpu:1-", "cpu:-1", "cuda:", "cuda:x", "cuda:-1", "cpu:0 1"]
)
def test_another_form_is_refused_with_the_forms_there_are(text: str) -> None:
    with pytest.raises(ConfigError, match="cpu:0-3") as caught:
        Device.parse(text, "--draft-device")
    assert caught.value.field == "--draft-device"


def test_a_core_of_somebody_else_is_refused_with_those_that_are_ours() -> None:
    with pytest.raises(ConfigError, match="core 4095 is not among those of this process"):
        Device.parse("cpu:4095")
    with pytest.raises(ConfigError, match="ascends and stays below 4096"):
        Device.parse("cpu:3-1")
    with pytest.raises(ConfigError, match="ascends and stays below 4096"):
        Device.parse("cpu:0-99999999999")


def test_core_numbers_are_written_as_ranges() -> None:
    assert format_cores([5, 0, 2, 1]) == "0-2,5"
    assert format_cores([]) == ""


@pytest.mark.slow
def test_parsing_imports_no_torch_and_pinning_binds_every_thread() -> None:
    code = f"""
import os, sys, threading
from minedraft_workers.device import Device
device = Device.parse("cpu:{CORES[0]}")
assert "torch" not in sys.modules
gate = threading.Event()
thread = threading.Thread(target=gate.wait)
thread.start()
device.pin()
device.pin()
import torch
assert (torch.get_num_threads(), torch.get_num_interop_threads()) == (1, 1)
assert all(os.sched_getaffinity(int(i)) == {{{CORES[0]}}} for i in os.listdir("/proc/self/task"))
gate.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
