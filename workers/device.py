"""Which part of this machine a worker owns. Parsing imports no torch, so that a wrong flag fails at once."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from minedraft.errors import ConfigError

if TYPE_CHECKING:
    import torch

_FORMS = 'use "cpu", "cpu:0", "cpu:0-3", "cpu:0,2" or "cuda:0"'


@dataclass(frozen=True, slots=True)
class Device:
    """A set of CPU cores, or one CUDA device.

    Attributes:
        kind: "cpu" or "cuda".
        cores: the cores owned, ascending ("cpu" only).
        index: the CUDA ordinal ("cuda" only).
    """

    kind: Literal["cpu", "cuda"]
    cores: tuple[int, ...] = ()
    index: int = 0

    @classmethod
    def parse(cls, text: str, field: str = "device") -> Device:
        """Read "cpu" (every core this process may use), "cpu:1", "cpu:0-3", "cpu:0,2" or "cuda:0".

        Raises:
            ConfigError: the text has another form, or names a core this process may not use.
        """
        kind, colon, rest = text.strip().lower().partition(":")
        if kind == "cuda" and (not colon or rest.isdecimal()):
            return cls("cuda", index=int(rest or 0))
        if kind != "cpu" or (colon and not rest):
            raise ConfigError(field, text, _FORMS)
        usable = os.sched_getaffinity(0)
        cores = _parse_cores(rest, text, field) if colon else usable
        missing = sorted(set(cores) - usable)
        if missing:
            raise ConfigError(
                field, text, f"core {format_cores(missing)} is not among those of this process: {format_cores(usable)}"
            )
        return cls("cpu", cores=tuple(sorted(cores)))

    def __str__(self) -> str:
        return f"cuda:{self.index}" if self.kind == "cuda" else f"cpu:{format_cores(self.cores)}"

    @property
    def torch_device(self) -> torch.device:
        import torch

        return torch.device("cuda", self.index) if self.kind == "cuda" else torch.device("cpu")

    def pin(self) -> None:
        """Make this process run on the device only. Call it before torch starts its threads.

        On the CPU every thread of the process is bound to the cores and torch uses as many threads as
        there are cores; on CUDA the device becomes the current one.

        Raises:
            ConfigError: there is no such CUDA device.
        """
        if self.kind == "cpu":
            for thread_id in os.listdir("/proc/self/task"):
                # A thread can end between the listing and the call.
                with contextlib.suppress(ProcessLookupError):
                    os.sched_setaffinity(int(thread_id), self.cores)
        import torch

        if self.kind == "cpu":
            torch.set_num_threads(len(self.cores))
            # torch allows this once; a second call would find the value already set.
            if torch.get_num_interop_threads() != 1:
                torch.set_num_interop_threads(1)
            return
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if self.index >= count:
            raise ConfigError("device", str(self), f"torch sees {count} CUDA devices here")
        torch.cuda.set_device(self.index)


def format_cores(cores: Iterable[int]) -> str:
    """Write core numbers the way they are read: 0,1,2,5 -> "0-2,5"."""
    ranges: list[list[int]] = []
    for core in sorted(set(cores)):
        if ranges and ranges[-1][1] == core - 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _parse_cores(rest: str, text: str, field: str) -> set[int]:
    cores: set[int] = set()
    for part in rest.split(","):
        low, dash, high = part.partition("-")
        if not low.isdecimal() or (dash and not high.isdecimal()):
            raise ConfigError(field, text, _FORMS)
        first, last = int(low), int(high or low)
        if last < first or last >= 4096:
            raise ConfigError(field, text, "a range of cores ascends and stays below 4096")
        cores.update(range(first, last + 1))
    return cores
