"""The driver's samples of how busy the GPU is."""

from __future__ import annotations

import sys

import pytest

from scripts.gpu.steps.gpu_use import COMMAND, GpuUse, command_for, sampled


def test_the_share_is_the_mean_of_the_samples_in_between() -> None:
    use = GpuUse()
    use.samples = [(1.0, 0.0), (2.0, 50.0), (3.0, 100.0), (4.0, 10.0)]
    assert use.share(1.5, 3.5) == pytest.approx(0.75)
    assert use.share(5, 6) is None


def test_lines_that_are_no_numbers_are_ignored() -> None:
    use = GpuUse()
    use.read(iter(["97\n", "[N/A]\n", " 3\n"]))
    assert [percent for _, percent in use.samples] == [97.0, 3.0]


def test_the_gpu_that_torch_uses_is_sampled() -> None:
    assert command_for("6d5b1f2e-8c3a") == command_for("GPU-6d5b1f2e-8c3a") == (*COMMAND, "-i", "GPU-6d5b1f2e-8c3a")
    assert command_for(None) == COMMAND


def test_the_sampler_ends_with_the_block() -> None:
    code = "import time\nprint(42, flush=True)\ntime.sleep(600)"
    with sampled([sys.executable, "-c", code]) as use:
        while not use.samples:
            pass
    assert use.samples[0][1] == 42.0


def test_without_the_program_there_are_no_samples() -> None:
    with sampled(["no-such-program"]) as use:
        pass
    assert use.samples == []
