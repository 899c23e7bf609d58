"""scripts/gpu_check: runs the steps one after the other, each in its own process and under its own limit.

Standard library only: it must say what is wrong on a machine where nothing else works.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from scripts.gpu import wheels
from scripts.gpu.report import Report
from scripts.gpu.running import run_limited
from scripts.gpu.summary import summary_lines
from scripts.gpu.surroundings import ROOT, make_environment

# A step may also use what those before it have left.
LIMITS_S = {
    "facts": 25,
    "imports": 45,
    "gputests": 55,
    "law": 25,
    "exact": 50,
    "alone": 70,
    "pair": 85,
    "summary": 5,
}
TOTAL_S = 360
_CPU_PATIENCE = 3  # on a CPU, a few busy cores do the work of a GPU and sixteen


class Check:
    """One run of the check.

    Args:
        out: folder of check.json and check.log; an earlier check.json is kept, but for the steps that run now.
    """

    def __init__(self, device: str, out: Path, say: Callable[[str], object]) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self._device = device
        self._patience = 1 if device.startswith("cuda") else _CPU_PATIENCE
        self._out = out
        self._say = say
        self._report = Report(out)
        self._log = out / "check.log"
        self._environment: dict[str, str] = {}
        self._end_s = time.monotonic()  # at the latest, of the steps so far

    def run(self, steps: list[str]) -> int:
        """Run the steps and print the table. Return the number of steps that failed."""
        self._log.write_text("", encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="minedraft-site-", ignore_cleanup_errors=True) as site:
            self._prepare(Path(site))
            self._report.drop("steps")
            num_failed = sum(self._run_step(name) for name in steps if name != "summary")
        lines = summary_lines(self._report.read())
        self._write("\n".join(["== summary", *lines]))
        for line in lines:
            self._say(line)
        return num_failed

    def _prepare(self, site: Path) -> None:
        """Put the product, and what it lacks here, on the path of every step."""
        self._environment = make_environment(site, os.environ, is_cuda=self._device.startswith("cuda"))
        self._say(f"Python {sys.version.split()[0]}, {sys.executable}")
        if wheels.find_lack(self._environment):
            problem = wheels.unpack(site) or wheels.find_lack(self._environment)
            self._write(f"== wheels\n{problem or 'unpacked'}")
            self._say(f"wheels: {problem or 'unpacked into a temporary folder'}")

    def _run_step(self, name: str) -> bool:
        """Run one step and record how it ended. Return whether it failed."""
        self._report.drop(name)
        self._end_s += self._patience * LIMITS_S[name]
        limit_s = max(self._end_s - time.monotonic(), 1.0)
        argv = [sys.executable, "-P", "-m", f"scripts.gpu.steps.{name}", "--device", self._device]
        argv += ["--out", str(self._out), "--limit", f"{limit_s:.1f}"]
        self._write(f"== {name}")
        outcome = run_limited(argv, limit_s, self._environment, self._log)
        found: dict[str, object] = {"result": outcome.word, "seconds": round(outcome.seconds, 1)}
        found |= {"limit_s": round(limit_s, 1), "num_left": outcome.num_left}
        self._report.put("steps", name, {**found, "tail": list(outcome.tail)})
        left = f", {outcome.num_left} processes ended that it left" if outcome.num_left else ""
        self._say(f"{name}: {outcome.word}, {outcome.seconds:.0f} s of {limit_s:.0f}{left}")
        for line in outcome.tail if outcome.word != "ok" else ():
            self._say(f"  {line}")
        return outcome.word != "ok"

    def _write(self, text: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")


def chosen_steps(text: str) -> list[str]:
    """Return the named steps in their order; all of them for an empty text.

    Raises:
        SystemExit: there is no such step.
    """
    named = text.split() or list(LIMITS_S)
    if unknown := sorted(set(named) - LIMITS_S.keys()):
        sys.exit(f"GPU_STEPS is {text!r}: there is no step {unknown[0]}; steps: {' '.join(LIMITS_S)}")
    return [name for name in LIMITS_S if name in named]


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/gpu_check")
    parser.add_argument("--device", default="cuda:0", help="cuda:0, or cpu for tiny sizes")
    parser.add_argument("--prepare", action="store_true", help="fetch wheels into .whl/")
    parser.add_argument(
        "--there", default="", help="with --prepare: packages that the machine has, separated by commas"
    )
    parser.add_argument("--python", default=wheels.PYTHON, help="with --prepare: the machine's Python, such as 3.12")
    given = parser.parse_args()

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    if given.prepare:
        sys.exit(wheels.fetch(say, list(filter(None, given.there.split(","))), given.python))
    # So that an end by a signal also ends the running step.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    steps = chosen_steps(os.environ.get("GPU_STEPS", ""))
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu").resolve()
    sys.exit(1 if Check(given.device, out, say).run(steps) else 0)


if __name__ == "__main__":
    main()
