"""What every step is given: the device, the sizes, where to write, and how long it may take."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.gpu.report import Report
from scripts.gpu.scale import FULL, TINY, Scale

_RESERVE_S = 4.0  # of the limit: to stop processes and write the last figures


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the check, as its process was started.

    Attributes:
        name: also its section of the report.
        device: "cuda:0" or "cpu", whose steps run with tiny sizes.
        end_s: moment, on the monotonic clock, at which it should have ended.
    """

    name: str
    device: str
    report: Report
    end_s: float

    @classmethod
    def from_argv(cls, name: str) -> Step:
        """Return the step that this process's command line asks for: --device, --out, --limit (seconds)."""
        parser = argparse.ArgumentParser(prog=f"python -m scripts.gpu.steps.{name}")
        parser.add_argument("--device", default="cpu")
        parser.add_argument("--out", type=Path, default=Path("build/gpu"))
        parser.add_argument("--limit", type=float, default=600.0)
        given = parser.parse_args()
        return cls(name, given.device, Report(given.out), time.monotonic() + given.limit - _RESERVE_S)

    @property
    def is_cuda(self) -> bool:
        return self.device.startswith("cuda")

    @property
    def scale(self) -> Scale:
        return FULL if self.is_cuda else TINY

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self.end_s - time.monotonic()

    def put(self, key: str, value: object) -> None:
        """Write one entry of the step's section."""
        self.report.put(self.name, key, value)

    def say(self, text: str) -> None:
        """Write a line to the log."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def of(self, section: str) -> dict[str, Any]:
        """Return what an earlier step has written."""
        found: dict[str, Any] = self.report.read().get(section, {})
        return found
