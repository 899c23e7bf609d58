"""A worker binds all of itself to its device."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CORE = min(os.sched_getaffinity(0))


@pytest.mark.slow
def test_reading_a_device_imports_no_torch_and_pinning_binds_every_thread() -> None:
    code = f"""
import os, sys, threading
from minedraft.device import Device
from minedraft_workers.device import pin
device = Device.parse("cpu:{CORE}").here()
assert "torch" not in sys.modules
gate = threading.Event()
thread = threading.Thread(target=gate.wait)
thread.start()
pin(device)
pin(device)
import torch
assert (torch.get_num_threads(), torch.get_num_interop_threads()) == (1, 1)
assert all(os.sched_getaffinity(int(i)) == {{{CORE}}} for i in os.listdir("/proc/self/task"))
gate.set()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100)
