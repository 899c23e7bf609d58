"""Shared by all suites."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is imported anywhere: two OpenMP threads on two busy cores spin more than they compute.
# Child processes inherit it; workers set their own number of threads when they pin themselves.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
# Before triton is imported anywhere: without a GPU its programs run in its interpreter.
if not list(Path("/dev").glob("nvidia[0-9]*")):
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--chaos-minutes", type=float, default=0.25, help="Length of the run of chaos in tests/faults.")
