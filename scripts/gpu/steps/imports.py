"""Step imports: every part of the product can be imported with this machine's packages, each with its time.

Meanwhile compilers make what later steps need: the native kernels, and the programs of a GPU.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time

from scripts.gpu.step import Step
from scripts.gpu.steps.devices import two_cores

_MODULES = (
    "minedraft.v1.worker_pb2_grpc",
    "minedraft.settings.loading",
    "minedraft.client",
    "minedraft.bench.runner",
    "minedraft.cli.launch",
    "minedraft.server.composition",
    "minedraft_workers.main",
    "minedraft_workers.server",
    "minedraft_workers.servicer",
    "minedraft_workers.verifier",
    "minedraft_workers.drafter",
    "minedraft_workers.proposers.ngram",
    "minedraft_workers.proposers.draft_model",
    "tests.support.tiny_models",
)


def main() -> None:
    step = Step.from_argv("imports")
    building = threading.Thread(target=_build_kernels, args=(step,), daemon=True)
    building.start()
    warming = _start_warming(step)
    failed = {}
    seconds = {}
    for name in _MODULES:
        start_s = time.monotonic()
        try:
            importlib.import_module(name)
        except Exception as error:  # each is told, not only the first
            failed[name] = f"{type(error).__name__}: {error}"
            step.say(f"{name}: {failed[name]}")
        seconds[name] = round(time.monotonic() - start_s, 2)
        step.put("seconds", seconds)
        step.put("failed", failed)
    step.put("warmed", {name: _end_warming(step, name, process) for name, process in warming.items()})
    building.join(max(step.left_s, 0.0))
    sys.exit(1 if failed else 0)


def _start_warming(step: Step) -> dict[str, subprocess.Popen[str]]:
    """Start a process for each shape and dtype whose programs are compiled."""
    device = step.device if step.is_cuda else two_cores()[0]
    command = [sys.executable, "-P", "-m", "scripts.gpu.warm"]
    return {
        f"{shape} {dtype}": subprocess.Popen(
            [*command, shape, dtype, device], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for shape, dtype in step.scale.warmed
    }


def _end_warming(step: Step, name: str, process: subprocess.Popen[str]) -> str:
    """Wait for a process while there is time. Return its last line, or that it has not ended; it is ended then."""
    try:
        lines = process.communicate(timeout=max(step.left_s, 0.1))[0].splitlines()
    except subprocess.TimeoutExpired:
        process.kill()
        return "no time left"
    finally:
        process.wait()
    for line in lines if process.returncode else ():
        step.say(f"{name}: {line}")
    return lines[-1] if lines else f"exit code {process.returncode}"


def _build_kernels(step: Step) -> None:
    """Build the native kernels. Without a compiler there are none, and cores compute by torch."""
    start_s = time.monotonic()
    try:
        from minedraft_workers.native.build import find_library

        find_library()
        done = "built"
    except Exception as error:
        done = f"{type(error).__name__}: {error}"
    step.say(f"native kernels: {done}, {time.monotonic() - start_s:.1f} s")


if __name__ == "__main__":
    main()
