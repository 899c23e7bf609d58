"""What else a comparison of numbers needs to know: the GPUs, their driver, and the versions of libraries."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version

_PACKAGES = ("torch", "triton", "transformers", "numpy", "grpcio", "protobuf")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "clocks.max.sm", "power.limit")
_ASK_S = 10.0  # a driver that is not in use needs a second or two to start


def find_versions() -> dict[str, str]:
    """Return the version of Python and of each installed package that decides about speed."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_gpus() -> list[dict[str, str]]:
    """Return what NVIDIA's driver says of each GPU, memory in MiB, clock in MHz, power in W; none without a driver."""
    query = ["nvidia-smi", f"--query-gpu={','.join(_GPU_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=_ASK_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    lines = [[value.strip() for value in line.split(",")] for line in answer.stdout.splitlines()]
    return [dict(zip(_GPU_FIELDS, values, strict=True)) for values in lines if len(values) == len(_GPU_FIELDS)]


def name_cpu(facts: Mapping[str, str], flags: Collection[str]) -> str:
    """Return the name of a CPU from what Linux says of it, with its generation where a virtual machine's name hides it:
    Zen 4 multiplies bfloat16 half as fast as Zen 5."""
    name, family = facts.get("model name", ""), facts.get("cpu family")
    if name != "AMD EPYC":
        return name
    if family == "25":
        return f"{name} (Zen {4 if 'avx512f' in flags else 3})"
    return f"{name} (Zen 5)" if family == "26" else name
