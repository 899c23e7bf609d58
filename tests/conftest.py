"""Shared by all suites."""

from __future__ import annotations

import gc
import os
import re
import signal
from pathlib import Path

import pytest

# Before torch is imported anywhere: two OpenMP threads on two busy cores spin more than they compute.
# Child processes inherit it; workers set their own number of threads when they pin themselves.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Before triton is imported anywhere: without a GPU its programs run in its interpreter.
if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"
# A shell that starts a command in the background has it ignore Ctrl-C, which child processes inherit: those of tests
# that interrupt one would never end.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-minutes", type=float, default=0.25, help="Length of the run of chaos in tests/faults.")


def pytest_collection_finish() -> None:
    """Take what the imports have made out of the garbage collector's sight: a collection then takes a hundredth."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pytest's own with a shorter name: a socket's path may have 107 bytes, of which a service needs 50."""
    return tmp_path_factory.mktemp(re.sub(r"\W", "_", request.node.name)[:12], numbered=True)
