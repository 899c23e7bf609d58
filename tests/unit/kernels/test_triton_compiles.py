"""That the GPU's programs are programs for a GPU: the interpreter takes more than the compiler does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[3]
NUM_ATTENTIONS, NUM_OTHERS = 4, 4


def run(program: str, cache: Path) -> list[list[str]]:
    """Return the words of each line that a child prints, which is not in the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", f"tests.unit.kernels.{program}"],
        cwd=ROOT, env=environment | {"TRITON_CACHE_DIR": str(cache)}, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_every_program_compiles_and_takes_no_more_shared_memory_than_was_reckoned_with(tmp_path):
    """For an H100 in both dtypes; attention also with large heads for GPUs whose shared memory is small."""
    rows = run("compile_for_gpu", tmp_path)
    assert len(rows) == NUM_ATTENTIONS + 2 * NUM_OTHERS
    for _, _, code_bytes, shared_bytes, reckoned in rows:
        assert int(code_bytes) > 0
        assert int(shared_bytes) <= int(reckoned)


@pytest.mark.slow
def test_no_program_is_compiled_again_for_another_shape_of_forward(tmp_path):
    """It would be while a request waits; the norm has one variant that adds a residual and one that does not."""
    found = {name: int(count) for name, count in run("variants_for_gpu", tmp_path)}
    assert found == {"store_rows": 1, "attend_piece": 1, "norm_row": 2, "rotate_head": 1, "gate_row": 1}
