"""What systemd hears from the real processes, started by the command lines of the installed units."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from minedraft import Client, SamplingParams
from scripts.systemd.install import Places, assemble_unit
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import REPO

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODULES = {
    "minedraft-launch": "minedraft.cli.launch",
    "minedraft-scheduler": "minedraft.server",
    "minedraft-worker": "minedraft_workers.main",
}
WITHIN_S = 250.0


class Unit:
    """A running service of a unit, and what it has told systemd so far. A thread reads it, as systemd reads all units:
    a socket holds ten messages."""

    def __init__(self, process: subprocess.Popen[bytes], receiver: socket.socket) -> None:
        self.process = process
        self.heard: list[str] = []
        self._receiver = receiver
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def until(self, line: str, num_times: int = 1) -> None:
        """Return once the service has said this so often."""
        deadline_s = time.monotonic() + WITHIN_S
        with self._news:
            while not self._news.wait_for(lambda: self.heard.count(line) >= num_times, 0.2):
                is_over = self.process.poll() is not None or time.monotonic() > deadline_s
                assert not is_over, f"no {line}, exit code {self.process.poll()}, only {self.heard}"

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while data := self._receiver.recv(4096):
                with self._news:
                    self.heard += data.decode().splitlines()
                    self._news.notify_all()

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        self.until("STOPPING=1")
        return self.process.wait(WITHIN_S)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Places:
    """The places of an installation whose commands run this checkout."""
    folder = tmp_path_factory.mktemp("installed")
    for name, module in MODULES.items():
        (folder / name).write_text(f'#!/bin/sh\ncd {REPO}\nexec {sys.executable} -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return Places(folder, folder, folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    target, draft = make_tiny_model(folder / "target"), make_tiny_model(folder / "draft", layers=1, seed=1)
    return {"MINEDRAFT_TARGET": str(target), "MINEDRAFT_DRAFT": str(draft)}


@pytest.fixture
def run() -> Iterator[Path]:
    """A folder with a path as short as /run: that of a socket is limited."""
    with tempfile.TemporaryDirectory(prefix="md") as folder:
        yield Path(folder)


@contextmanager
def started(name: str, places: Places, run: Path, variables: dict[str, str]) -> Iterator[Unit]:
    """Run a unit's command as systemd does, with %t being `run`."""
    text = assemble_unit(name, places).replace("\\\n", " ").replace("%t", str(run))
    keys = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and not line.startswith("#"))
    argv: list[str] = []
    for word in keys["ExecStart"].split():
        if word.startswith("${"):
            argv.append(variables[word[2:-1]])
        elif word.startswith("$"):
            argv += shlex.split(variables.get(word[1:], ""))
        else:
            argv.append(word)
    (run / keys["RuntimeDirectory"]).mkdir(mode=0o750)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(run / f"{name}.notify"))
        told = {"NOTIFY_SOCKET": str(run / f"{name}.notify"), "WATCHDOG_USEC": "30000000"}
        environment = os.environ | {"XDG_RUNTIME_DIR": str(run / keys["RuntimeDirectory"])} | told
        with subprocess.Popen(argv, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                yield Unit(process, receiver)
            finally:
                process.kill()
                receiver.shutdown(socket.SHUT_RD)


def test_three_units_say_when_they_are_ready_that_they_live_and_that_they_stop(places, models, run):
    flags = "--device cpu --dtype float32 --num-blocks 256"
    variables = models | {"VERIFIER_FLAGS": flags, "DRAFTER_FLAGS": flags, "SCHEDULER_FLAGS": "--mode sd"}
    with ExitStack() as stack:
        scheduler, drafter, verifier = (
            stack.enter_context(started(f"minedraft-{role}.service", places, run, variables))
            for role in ("scheduler", "drafter", "verifier")
        )
        for unit in (verifier, drafter, scheduler):
            unit.until("READY=1")
            before = unit.heard[: unit.heard.index("READY=1")]
            assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in before)
            assert "WATCHDOG=1" not in before
            states = [line.removeprefix("STATUS=") for line in before if line.startswith("STATUS=")]
            is_scheduler = unit is scheduler
            assert states[-1] == ("starting" if is_scheduler else "warming up")
            assert is_scheduler or states[0] == "loading torch"
        with Client(f"unix:{run}/minedraft/minedraft.sock", timeout_s=60) as client:
            status = client.status()  # READY=1 came after a generation through both workers
            assert min(status.output_tokens, status.verified_drafts) > 0
            assert client.complete("Hello", SamplingParams(max_new_tokens=5)).token_ids
        for unit in (scheduler, drafter, verifier):
            unit.until("WATCHDOG=1")
        scheduler.until("STATUS=serving")
        assert [unit.stop() for unit in (scheduler, drafter, verifier)] == [0, 0, 0]
        assert all("STATUS=stopping" in unit.heard for unit in (scheduler, drafter, verifier))


def test_the_launchers_unit_says_when_it_is_ready_that_it_lives_and_that_it_stops(places, models, run):
    (places.etc / "minedraft.toml").write_text(
        f"target = '{models['MINEDRAFT_TARGET']}'\ndraft = '{models['MINEDRAFT_DRAFT']}'\n"
        f"listen = 'unix:{run}/minedraft/minedraft.sock'\ndtype = 'float32'\nnum_blocks = 256\n"
        "target_device = 'cpu'\ndraft_device = 'cpu'\n"
    )
    with started("minedraft.service", places, run, {}) as unit:
        unit.until("READY=1")
        unit.until("STATUS=serving")
        unit.until("WATCHDOG=1")
        assert unit.stop() == 0
    assert not list((run / "minedraft").iterdir())
