"""Step gputests: the tests of tests/gpu, without the plugins and settings of pyproject.toml.

The machine may lack the plugins, and its newer libraries may warn where ours do not.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from scripts.gpu.step import Step
from scripts.gpu.wheels import ROOT


def main() -> None:
    step = Step.from_argv("gputests")
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        settings, results = Path(folder) / "none.ini", Path(folder) / "results.xml"
        settings.touch()
        flags = ["-q", "-ra", "-c", str(settings), f"--rootdir={ROOT}", "-W", "ignore", f"--junitxml={results}"]
        flags += ["-p", "no:cacheprovider", "-o", "pythonpath=."]
        environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        command = [sys.executable, "-P", "-m", "pytest", *flags, "tests/gpu"]
        done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
        step.put("exit_code", done.returncode)
        if results.exists():
            for name, value in count_results(results).items():
                step.put(name, value)
    sys.exit(done.returncode)


def count_results(path: Path) -> dict[str, object]:
    """Return the numbers of passed, failed and skipped tests of pytest's XML file, and the names of failed ones."""
    cases = list(ElementTree.parse(path).getroot().iter("testcase"))  # noqa: S314 - our own file
    failed = [str(case.get("name")) for case in cases if {child.tag for child in case} & {"failure", "error"}]
    num_skipped = sum(any(child.tag == "skipped" for child in case) for case in cases)
    return {
        "passed": len(cases) - len(failed) - num_skipped,
        "skipped": num_skipped,
        "failed": failed,
    }


if __name__ == "__main__":
    main()
