"""Step gputests: the tests of tests/gpu, without the plugins and settings of pyproject.toml.

The machine may lack the plugins, and its newer libraries may warn where ours do not. On a GPU each file has a process
of its own, all at once: an error of CUDA is the end of its process, and must not be the end of the other files' tests.
What does not end in time is interrupted, and tells what it has found so far.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from scripts.gpu.step import Step
from scripts.gpu.surroundings import ROOT

_INTERRUPT_S = 5.0  # before the end of the step


@dataclass(slots=True)
class Counts:
    """How many tests passed and were skipped, and the names of those that failed."""

    passed: int = 0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)

    def add(self, path: Path) -> None:
        """Count the tests of pytest's XML file."""
        for case in ElementTree.parse(path).getroot().iter("testcase"):  # noqa: S314 - our own file
            tags = {child.tag for child in case}
            if tags & {"failure", "error"}:
                self.failed.append(str(case.get("name")))
            elif "skipped" in tags:
                self.skipped += 1
            else:
                self.passed += 1


class PytestRun:
    """pytest in a process, on some files."""

    def __init__(self, files: list[Path], folder: Path) -> None:
        self.name = " ".join(path.stem for path in files)
        self._results = folder / f"{files[0].stem}.xml"
        self._output = folder / f"{files[0].stem}.log"
        settings = folder / "none.ini"
        settings.touch()
        flags = ["-q", "-ra", "-c", str(settings), f"--rootdir={ROOT}", "-W", "ignore", f"--junitxml={self._results}"]
        flags += ["-p", "no:cacheprovider", "-o", "pythonpath=.", f"--basetemp={folder / files[0].stem}"]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-P", "-m", "pytest", *flags, *map(str, files)]
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output)

    def finish(self, limit_s: float, counts: Counts) -> int:
        """Wait until it ends, interrupt it after `limit_s` seconds, and count its tests. Return its exit code."""
        is_interrupted = False
        try:
            self._process.wait(max(limit_s, 0.0))
        except subprocess.TimeoutExpired:
            is_interrupted = True
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_INTERRUPT_S)
            self._process.kill()
        code = self._process.wait()
        if self._results.exists():
            counts.add(self._results)
            # The test that was interrupted is among them, without a failure.
            counts.passed -= is_interrupted and counts.passed > 0
        if code and not (self._results.exists() and counts.failed):
            counts.failed.append(f"{self.name} ended with exit code {code}")
        return code

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")


def main() -> None:
    step = Step.from_argv("gputests")
    files = sorted((ROOT / "tests" / "gpu").glob("test_*.py"))
    counts, codes = Counts(), {}
    with tempfile.TemporaryDirectory(prefix="minedraft-", ignore_cleanup_errors=True) as folder:
        runs = [PytestRun(group, Path(folder)) for group in ([[path] for path in files] if step.is_cuda else [files])]
        for run in runs:
            codes[run.name] = run.finish(step.left_s - _INTERRUPT_S, counts)
            step.say(run.output)
            for name in ("passed", "skipped", "failed"):
                step.put(name, getattr(counts, name))
            step.put("exit_codes", codes)
    sys.exit(max(map(abs, codes.values())))


if __name__ == "__main__":
    main()
