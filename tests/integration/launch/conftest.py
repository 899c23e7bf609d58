from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import IO

import psutil
import pytest

from tests.fakes.workers import VOCAB_SIZE
from tests.integration.launch.launched import ROOT, Launched
from tests.support.processes import Elapsed, is_gone, until
from tests.support.tiny_models import write_tiny_tokenizer


@pytest.fixture
def start(tmp_path, monkeypatch) -> Iterator[Callable[..., Launched]]:
    """Starts launchers with fake workers; checks afterwards that nothing is left of them."""
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    write_tiny_tokenizer(tmp_path / "model", vocab_size=VOCAB_SIZE, eos=None)
    trees: list[tuple[Launched, list[psutil.Process]]] = []

    def start(
        *flags: str,
        module: str = "tests.fakes.launcher",
        is_ready: bool = True,
        prefix: tuple[str, ...] = (),
        stdout: int | IO[str] | IO[bytes] = subprocess.PIPE,
        stderr: int | IO[str] | IO[bytes] = subprocess.PIPE,
    ) -> Launched:
        model = str(tmp_path / "model")
        argv = [*prefix, sys.executable, "-m", module, "--listen", f"unix:{tmp_path}/run/m.sock"]
        if "--target" not in flags:
            argv += ["--target", model, "--draft", model]
        process = subprocess.Popen([*argv, *flags], cwd=ROOT, stdout=stdout, stderr=stderr, text=True)
        launched = Launched(process, tmp_path)
        if is_ready:
            launched.wait_ready()
            trees.append((launched, psutil.Process(process.pid).children()))
        return launched

    yield start
    elapsed = Elapsed()
    for launched, children in trees:
        if launched.process.poll() is None:
            launched.process.kill()
            launched.process.communicate()
        for child in children:
            until(lambda child=child: is_gone(child), 30, f"the end of process {child.pid}")
    until(lambda: not list((tmp_path / "run").iterdir()), 30, f"empty {list((tmp_path / 'run').iterdir())}")
    assert elapsed.seconds < 2
