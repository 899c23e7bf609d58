"""Real worker processes for tests, started from a command line and always stopped."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minedraft.process.with_parent import bind_to_parent

REPO = Path(__file__).parents[2]
PRODUCT = ("-m", "minedraft_workers.main")
NULL = ("-m", "scripts.lib.null_worker")
FAKE = ("-m", "tests.fakes.fake_worker")


class WorkerProcess(subprocess.Popen[str]):
    """A worker process; its stderr goes to a file, so that no pipe can fill up. It ends with this process, whose main
    thread must start it."""

    def __init__(self, *arguments: str, log: Path, address: str = "") -> None:
        self.address = address
        self.log = log
        with log.open("w") as stderr:
            super().__init__(
                bind_to_parent([sys.executable, *arguments]),
                cwd=REPO,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                text=True,
            )

    @property
    def said(self) -> str:
        """The whole stderr so far."""
        return self.log.read_text()


@contextmanager
def worker(role: str, folder: Path, *arguments: str, program: tuple[str, ...] = PRODUCT) -> Iterator[WorkerProcess]:
    """Run a worker of `role` that listens on a socket in `folder`; kill it when the block ends."""
    address = f"unix:{folder / role}.sock"
    with WorkerProcess(
        *program, role, "--listen", address, *arguments, log=folder / f"{role}.log", address=address
    ) as process:
        try:
            yield process
        finally:
            process.kill()
