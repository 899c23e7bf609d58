"""The real processes with everything on: TLS and a token for clients, certificates for a worker on a port."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.fakes.certificates import certify, write_secret
from tests.fakes.workers import VOCAB_SIZE, continuation
from tests.support.processes import free_port, until
from tests.support.tiny_models import write_tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]
TOKEN = "the-token-of-this-test"


@contextmanager
def running(module: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *argv], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def cli(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "minedraft.cli.main", *argv], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def listeners(process: psutil.Process) -> set[tuple[str, int]]:
    """The TCP sockets on which a process and its children listen."""
    tree = [process, *process.children(recursive=True)]
    found = [c for member in tree for c in member.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN]
    return {(c.laddr.ip.removeprefix("::ffff:"), c.laddr.port) for c in found}


def test_a_service_on_ports_needs_what_it_was_told_to_ask_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    model = str(tmp_path / "model")
    write_tiny_tokenizer(tmp_path / "model", vocab_size=VOCAB_SIZE, eos=None)
    here, token = str(certify(tmp_path / "certs")), str(write_secret(tmp_path / "token", TOKEN))
    worker_port, port = free_port(), free_port()
    worker, service = f"127.0.0.1:{worker_port}", f"127.0.0.1:{port}"
    tls = ("--tls-cert", f"{here}/cert.pem", "--tls-key", f"{here}/key.pem", "--token-file", token)
    drafter = ("drafter", "--model", model, "--listen", worker, "--worker-tls", here)
    launch = ("--target", model, "--draft-address", worker, "--worker-tls", here, "--listen", service, *tls)
    with running("tests.fakes.fake_worker", *drafter), running("tests.fakes.launcher", *launch) as launcher:
        assert launcher.stdout is not None
        assert "ready on" in launcher.stdout.readline()
        assert f"--tls-ca FILE --token-file {token}" in launcher.stdout.readline()
        access = ("--server", service, "--tls-ca", f"{here}/ca.pem", "--token-file", token)
        answer = cli("generate", *access, "--token-ids", "--json", "--max-new-tokens", "6", "5 6 7")
        assert answer.returncode == 0, answer.stderr
        shown = [str(id) for id in continuation([5, 6, 7], 6)]
        assert all(id in answer.stdout for id in shown)
        refused = cli("status", "--server", service, "--tls-ca", f"{here}/ca.pem")
        assert (refused.returncode, "shows no valid token" in refused.stderr) == (1, True)
        process = psutil.Process(launcher.pid)
        assert listeners(process) == {("127.0.0.1", port)}
        shown_to_all = " ".join(word for child in process.children(recursive=True) for word in child.cmdline())
        assert TOKEN not in shown_to_all, "a command line is visible to every user"
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) == 0
        assert launcher.stderr is not None
        assert TOKEN not in launcher.stderr.read()
    until(lambda: not list((tmp_path / "run").iterdir()), 30, "an empty run folder")
