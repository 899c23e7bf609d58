"""Step imports: every part of the product can be imported with this machine's packages, each with its time."""

from __future__ import annotations

import importlib
import sys
import threading
import time

from scripts.gpu.step import Step

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
    # Compilers work beside the imports; the drafter on CPU cores needs what they make.
    building = threading.Thread(target=_build_kernels, args=(step,), daemon=True)
    building.start()
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
    building.join(max(step.left_s, 0.0))
    sys.exit(1 if failed else 0)


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
