"""Step facts: what the machine is, and the two rates that every ratio is printed against."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from scripts.gpu.step import Step

_PACKAGES = (
    *("torch", "triton", "transformers", "tokenizers", "safetensors", "numpy"),
    *("grpcio", "grpcio-status", "grpcio-health-checking", "protobuf", "pydantic"),
    *("click", "rich", "jinja2", "pytest", "psutil"),
)
_SHARED = "/dev/shm"  # noqa: S108 - looked at only
_MPS = ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server")
# Variables that change what CUDA, torch or Triton do.
_DECISIVE = ("CUDA", "NVIDIA", "TORCH", "PYTORCH", "TRITON", "CUBLAS")
_QUERY = "name,driver_version,memory.total,compute_mode,clocks.max.sm,power.limit"


def main() -> None:
    step = Step.from_argv("facts")
    step.put("device", step.device)
    step.put("is_tiny", not step.is_cuda)
    step.put("python", platform.python_version())
    step.put("executable", sys.executable)
    step.put("environment", {name: os.environ[name] for name in sorted(os.environ) if name.startswith(_DECISIVE)})
    step.put("packages", {name: _version(name) for name in _PACKAGES})
    step.put("compiler", shutil.which("g++") or shutil.which("clang++"))
    step.put("compiler_of_triton", os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang"))
    step.put("has_python_h", Path(sysconfig.get_paths()["include"], "Python.h").exists())
    step.put("free_gb", {path: _free_gb(path) for path in (tempfile.gettempdir(), _SHARED, os.path.expanduser("~"))})
    step.put("mps", [name for name in _MPS if shutil.which(name)])
    step.put("machine", _machine())
    if step.is_cuda:
        for name, value in describe_gpu(step.device).items():
            step.put(name, value)
            step.say(f"{name} {value}")
    for name, value in measure_rates(step).items():
        step.put(name, value)
        step.say(f"{name} {value}")
    step.put("nvidia_smi", _nvidia_smi())  # last: it can take long, and torch has said what matters


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _free_gb(path: str) -> float | None:
    try:
        return round(shutil.disk_usage(path).free / 1e9, 2)
    except OSError:
        return None


def _nvidia_smi() -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={_QUERY}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()


def _machine() -> dict[str, Any] | str:
    try:
        from minedraft.bench.report import machine_facts

        return machine_facts()
    except Exception as error:  # the facts are wanted most where nothing else works
        return f"{type(error).__name__}: {error}"


def describe_gpu(device: str) -> dict[str, Any]:
    """Return what a GPU is, whose "gpu" says to the summary that there is one.

    Raises:
        SystemExit: torch finds no such GPU.
    """
    import torch

    index, count = torch.device(device).index or 0, torch.cuda.device_count()
    if index >= count:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        sys.exit(f"torch {torch.__version__} finds {count} GPUs, not {device}; CUDA_VISIBLE_DEVICES is {visible}")
    torch.cuda.set_device(index)
    properties = torch.cuda.get_device_properties(index)
    free, total = torch.cuda.mem_get_info(index)
    return {
        "gpu": properties.name,
        "uuid": str(properties.uuid),
        "capability": [properties.major, properties.minor],
        "memory_gb": {"free": free / 1e9, "total": total / 1e9},
    }


def measure_rates(step: Step) -> dict[str, Any]:
    """Return the bytes per second of a copy on the device, read and written, and the operations of a matmul."""
    import torch

    from scripts.gpu.steps.clock import time_calls

    device, scale = torch.device(step.device), step.scale
    rates: dict[str, Any] = {}
    if step.is_cuda:
        torch.cuda.set_device(device)
    # On random numbers: zeros take less power, and so run faster.
    source = torch.rand(scale.copy_bytes // 4, device=device)
    target = torch.empty_like(source)
    copied = time_calls(lambda: target.copy_(source), device, warm=2, most=10, within_s=0.3)
    rates["copy_gb_per_s"] = round(2 * source.nbytes / copied.ms / 1e6, 1)
    n = scale.matmul_size
    x, w = (torch.randn(n, n, device=device).to(getattr(torch, scale.matmul_dtype)) for _ in range(2))
    multiplied = time_calls(lambda: x @ w, device, warm=2, most=10, within_s=0.3)
    rates["matmul_tflop_per_s"] = round(2 * n**3 / multiplied.ms / 1e9, 3)
    return rates


if __name__ == "__main__":
    main()
