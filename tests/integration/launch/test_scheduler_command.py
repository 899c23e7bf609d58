"""`minedraft-scheduler` as a command: what it refuses, in one go and without loading anything."""

import subprocess
import sys

import pytest

from tests.integration.launch.launched import ROOT
from tests.support.tiny_models import write_tiny_tokenizer

pytestmark = pytest.mark.slow


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-P", "-X", "importtime", "-m", "minedraft.server", *arguments]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    imports = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert not [line for line in imports if line.rpartition("|")[2].strip() in ("torch", "transformers")]
    done.stderr = "\n".join(line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    return done


def test_help_teaches():
    done = run("--help")
    assert done.returncode == 0
    for word in ("minedraft-scheduler --target DIR", "minedraft-worker verifier", "Exit codes:", "--check"):
        assert word in done.stdout


def test_everything_that_is_missing_is_told_at_once():
    done = run("--draft-len", "99")
    assert done.returncode == 78
    assert "draft_len is 99" in done.stderr
    done = run()
    assert done.returncode == 78
    assert [line.partition("scheduler ")[2].partition(":")[0] for line in done.stderr.splitlines()] == [
        "target", "target_address", "draft_address",
    ]  # fmt: skip


def test_a_check_connects_to_nothing_and_needs_a_tokenizer(tmp_path):
    addresses = ("--target-address", "unix:/nowhere/v.sock", "--draft-address", "unix:/nowhere/d.sock")
    flags = ("--check", "--target", str(tmp_path), *addresses, "--listen", f"unix:{tmp_path}/s.sock")
    assert run(*flags).returncode == 78
    write_tiny_tokenizer(tmp_path)
    done = run(*flags)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all checks passed\n", "")
    assert not list(tmp_path.glob("s.sock*"))
