"""The share of time in which the GPU ran any kernel, as the driver samples it. Coarse, and of all processes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

COMMAND = ("nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200")


def command_for(uuid: str | None) -> tuple[str, ...]:
    """Return the command that samples the GPU that torch names so: the driver counts others than this process sees."""
    return COMMAND if not uuid else (*COMMAND, "-i", uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")


class GpuUse:
    """Samples of a GPU, in percent, with the moment of each on the monotonic clock."""

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []

    def share(self, start_s: float, end_s: float) -> float | None:
        """Return the mean between two moments, 0 to 1; None without samples."""
        percents = [percent for moment_s, percent in self.samples if start_s <= moment_s <= end_s]
        return sum(percents) / len(percents) / 100 if percents else None

    def read(self, lines: Iterator[str]) -> None:
        """Take lines with a percentage each; others are ignored."""
        for line in lines:
            with suppress(ValueError):  # "[N/A]"
                self.samples.append((time.monotonic(), float(line)))


@contextmanager
def sampled(command: Sequence[str] = COMMAND) -> Iterator[GpuUse]:
    """Sample while the block runs; where the command is missing there are no samples."""
    use = GpuUse()
    try:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    except OSError:
        yield use
        return
    assert process.stdout is not None, "started with a pipe"
    reader = threading.Thread(target=use.read, args=(iter(process.stdout),), daemon=True)
    reader.start()
    try:
        yield use
    finally:
        process.terminate()
        process.wait()
        reader.join()
        process.stdout.close()
