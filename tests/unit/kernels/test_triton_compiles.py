"""That the GPU's programs are programs for a GPU: the interpreter takes more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
PROGRAMS = 5
SHARED_BYTES = 99 * 1024  # of one program, on the GPUs that have least


@pytest.mark.slow
def test_every_program_compiles_for_an_h100_in_both_dtypes(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.kernels.compile_for_gpu"],
        cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert len(rows) == 2 * PROGRAMS
    for _, _, code_bytes, shared_bytes in rows:
        assert int(code_bytes) > 0
        assert int(shared_bytes) <= SHARED_BYTES
