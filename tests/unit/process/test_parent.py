import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.process.parent import is_orphaned

ROOT = Path(__file__).parents[3]
# Its main thread ends and another one goes on: as in a process that was killed, for as long as its threads take.
PARENT = """
import ctypes, os, subprocess, sys, threading, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], stdout=sys.stdout)
threading.Thread(target=lambda: child.wait()).start()
ctypes.CDLL(None).syscall(ctypes.c_long(int(sys.argv[2])), 0)
"""
CHILD = """
import os, sys, time
from minedraft.process.parent import is_orphaned
parent_pid = int(sys.argv[1])
while not is_orphaned(parent_pid):
    time.sleep(0.01)
print(os.getppid() == parent_pid)
"""
SYS_EXIT = {"x86_64": 60, "aarch64": 93}


def test_a_process_with_a_living_parent_is_no_orphan():
    assert not is_orphaned(os.getppid())
    assert is_orphaned(os.getpid())


@pytest.mark.slow
@pytest.mark.skipif(os.uname().machine not in SYS_EXIT, reason="the number of this system call differs")
def test_a_parent_that_is_ending_is_known_by_its_main_thread():
    argv = [sys.executable, "-c", PARENT, CHILD, str(SYS_EXIT[os.uname().machine])]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True\n", done.stderr
