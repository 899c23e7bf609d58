"""scripts/gpu_check: runs the steps one after the other, each in its own process and under its own limit.

Standard library only: it must say what is wrong on a machine where nothing else works.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scripts.gpu import wheels
from scripts.gpu.report import Report
from scripts.gpu.summary import summary_lines

LIMITS_S = {
    "facts": 20,
    "imports": 40,
    "gputests": 60,
    "law": 30,
    "exact": 50,
    "alone": 65,
    "pair": 90,
    "summary": 5,
}
TOTAL_S = 360
_CPU_PATIENCE = 3  # on a CPU, a few busy cores do the work of a GPU and sixteen
_GRACE_S = 3.0
_TAIL_LINES = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step's process ended. exit_code: negative for a signal. tail: its last lines."""

    exit_code: int
    seconds: float
    is_timed_out: bool
    tail: tuple[str, ...]

    @property
    def word(self) -> str:
        return "timed out" if self.is_timed_out else "ok" if self.exit_code == 0 else f"exit code {self.exit_code}"


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
        self._start_s = time.monotonic()
        self._say = say
        self._report = Report(out)
        self._log = out / "check.log"
        self._environment = dict(os.environ)

    def run(self, steps: list[str]) -> int:
        """Run the steps and print the table. Return the number of steps that failed."""
        self._log.write_text("", encoding="utf-8")
        with tempfile.TemporaryDirectory(prefix="minedraft-site-") as site:
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
        (site / "minedraft_workers").symlink_to(wheels.ROOT / "workers")
        quiet = {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        self._environment |= {"OMP_NUM_THREADS": "1"} | self._environment | quiet
        places = [str(site), str(wheels.ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment["PYTHONPATH"] = os.pathsep.join(place for place in places if place)
        if wheels.are_needed(self._environment):
            problem = wheels.unpack(site)
            self._write(f"== wheels\n{problem or 'unpacked'}")
            self._say(f"wheels: {problem or 'unpacked into a temporary folder'}")

    def _run_step(self, name: str) -> bool:
        """Run one step and record how it ended. Return whether it failed."""
        self._report.drop(name)
        left_s = self._patience * TOTAL_S - (time.monotonic() - self._start_s)
        limit_s = max(min(self._patience * LIMITS_S[name], left_s), 1.0)
        argv = [sys.executable, "-P", "-m", f"scripts.gpu.steps.{name}", "--device", self._device]
        argv += ["--out", str(self._out), "--limit", f"{limit_s:.1f}"]
        self._write(f"== {name}")
        outcome = run_limited(argv, limit_s, self._environment, self._log)
        found = {"result": outcome.word, "seconds": round(outcome.seconds, 1), "limit_s": round(limit_s, 1)}
        self._report.put("steps", name, {**found, "tail": list(outcome.tail)})
        self._say(f"{name}: {outcome.word}, {outcome.seconds:.0f} s of {limit_s:.0f}")
        for line in outcome.tail if outcome.word != "ok" else ():
            self._say(f"  {line}")
        return outcome.word != "ok"

    def _write(self, text: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{text}\n")


def run_limited(argv: list[str], limit_s: float, environment: dict[str, str], log: Path) -> Outcome:
    """Run a program with its output added to a log. End it, and what shares its session, after `limit_s` seconds."""
    start_s = time.monotonic()
    is_timed_out = False
    with log.open("ab") as output:
        start = output.tell()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment, start_new_session=True
        )
        try:
            process.wait(limit_s)
        except subprocess.TimeoutExpired:
            is_timed_out = True
        finally:
            end_group(process)
    with log.open("rb") as output:
        output.seek(start)
        tail = output.read().decode(errors="replace").splitlines()[-_TAIL_LINES:]
    return Outcome(process.returncode, time.monotonic() - start_s, is_timed_out, tuple(tail))


def end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and its group; its services end with it, as the kernel tells them."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is not None:
            return
        os.killpg(process.pid, signum)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            continue


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
    given = parser.parse_args()

    def say(text: str) -> None:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    if given.prepare:
        sys.exit(wheels.fetch(say, list(filter(None, given.there.split(",")))))
    # So that an end by a signal also ends the running step.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    steps = chosen_steps(os.environ.get("GPU_STEPS", ""))
    out = Path(os.environ.get("OUT") or wheels.ROOT / "build" / "gpu").resolve()
    sys.exit(1 if Check(given.device, out, say).run(steps) else 0)


if __name__ == "__main__":
    main()
