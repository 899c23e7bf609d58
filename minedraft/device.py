"""The device of a worker: some of this machine's cores, or one CUDA device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from minedraft.errors import ConfigError

DEVICE_FORMS = "cpu, cpu:0, cpu:0-3, cpu:0,2 or cuda:0"
# Of a GPU's memory, for the weights and KV caches of all workers on it. The rest is for activations, and for what the
# driver takes in each process.
GPU_MEMORY_SHARE = 0.85
_NUM_CORES = 4096  # more than any machine has
_CORES = re.compile(r"(\d{1,18})(?:-(\d{1,18}))?", re.ASCII)
_CUDA = re.compile(r"cuda(?::(\d{1,4}))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Device:
    """A set of CPU cores, or one CUDA device.

    Attributes:
        kind: "cpu" or "cuda".
        cores: core numbers, ascending ("cpu" only); empty for every core that the process may use.
        index: the CUDA ordinal ("cuda" only).
    """

    kind: Literal["cpu", "cuda"]
    cores: tuple[int, ...] = ()
    index: int = 0

    @classmethod
    def parse(cls, text: str, field: str = "device") -> Device:
        """Return the device of a text in one of DEVICE_FORMS. This machine need not have it (see `here`).

        Raises:
            ConfigError: the text has another form; the error names `field`.
        """
        plain = text.strip().lower()
        if cuda := _CUDA.fullmatch(plain):
            return cls("cuda", index=int(cuda[1] or 0))
        kind, colon, cores = plain.partition(":")
        if kind != "cpu" or (colon and not cores):
            raise ConfigError(field, text, f"must be {DEVICE_FORMS}")
        return cls("cpu", cores=_parse_cores(cores, text, field) if colon else ())

    def here(self, field: str = "device") -> Device:
        """Return the device with its cores filled in, checked against what this process may use. Only torch
        can tell whether a CUDA device of that number exists.

        Raises:
            ConfigError: this process may not use one of the cores, or there is no GPU; the error names `field`.
        """
        if self.kind == "cuda":
            if not count_gpus():
                raise ConfigError(field, str(self), "no GPU found")
            return self
        usable = usable_cores()
        if missing := sorted(set(self.cores).difference(usable)):
            limit = f"core {format_cores(missing)} is not available; this process may use {format_cores(usable)}"
            raise ConfigError(field, str(self), limit)
        return replace(self, cores=self.cores or usable)

    def __str__(self) -> str:
        if self.kind == "cuda":
            return f"cuda:{self.index}"
        return f"cpu:{format_cores(self.cores)}" if self.cores else "cpu"


def count_gpus(dev: Path = Path("/dev")) -> int:
    """Return how many GPUs the device nodes of this machine or container show, whatever their numbers; 1 where one
    node stands for all (AMD's, which torch calls cuda too, and those of Windows)."""
    num_nvidia = len(list(dev.glob("nvidia[0-9]*")))
    return num_nvidia or int(any((dev / name).exists() for name in ("kfd", "dxg")))


def usable_cores() -> tuple[int, ...]:
    """Return the numbers of the cores that this process may use, ascending."""
    return tuple(sorted(os.sched_getaffinity(0)))


def format_cores(cores: Iterable[int]) -> str:
    """Return core numbers as text that `Device.parse` reads: 0,1,2,5 -> "0-2,5"."""
    ranges: list[list[int]] = []
    for core in sorted(set(cores)):
        if ranges and ranges[-1][1] == core - 1:
            ranges[-1][1] = core
        else:
            ranges.append([core, core])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)


def _parse_cores(listed: str, text: str, field: str) -> tuple[int, ...]:
    cores: set[int] = set()
    for part in listed.split(","):
        match = _CORES.fullmatch(part)
        if match is None:
            raise ConfigError(field, text, f"must be {DEVICE_FORMS}")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < _NUM_CORES:
            raise ConfigError(field, text, f"core ranges must ascend and stay below {_NUM_CORES}")
        cores.update(range(first, last + 1))
    return tuple(sorted(cores))
