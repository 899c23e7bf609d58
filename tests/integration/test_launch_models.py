"""The installed commands with real model folders: what `--check` asks the workers, and whose modules they load."""

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.errors import EXIT_CONFIG
from tests.integration.launch.launched import ROOT, Launched
from tests.support.tiny_heads import make_tiny_head
from tests.support.tiny_models import make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_check_says_what_only_the_workers_can_tell(tmp_path):
    whole, broken = make_tiny_model(tmp_path / "whole"), make_tiny_model(tmp_path / "broken")
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"pad_token_id": 400}))
    head = make_tiny_head(tmp_path / "head", whole)
    checks = [
        subprocess.Popen(
            [sys.executable, "-m", "minedraft.cli.launch", "--check", "--listen", f"unix:{draft}.sock",
             "--target", str(whole), "--draft", str(draft)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for draft in (whole, broken, head)
    ]  # fmt: skip
    (good, _), (_, said), (with_head, _) = (check.communicate(timeout=120) for check in checks)
    assert [check.returncode for check in checks] == [0, EXIT_CONFIG, 0]
    assert re.search(
        r"^verifier: torch kernels, \w+: .*; a request's tokens may depend on the batch it is in$", good, re.M
    )
    assert "all checks passed" in good
    assert re.search(
        r"^drafter: EAGLE-3 head, 1 layer, features of 0, 1, 2, drafts from 200 of 320 .*; \w+ kernels", with_head, re.M
    )
    assert re.search(r"minedraft-launch: drafter: model is '.*broken/config.json': .*Padding_idx", said), said
    assert "Traceback" not in said


def test_files_of_the_folder_one_happens_to_be_in_are_not_taken_for_modules(tmp_path):
    """The children are started with `-m`, which looks there first."""
    target = make_tiny_model(tmp_path / "target")
    here = tmp_path / "here"
    here.mkdir()
    for name in ("h11", "uuid", "queue", "random", "secrets"):
        (here / f"{name}.py").write_text("raise SystemExit('ran a file of the current folder')")
    launcher = subprocess.Popen(
        [Path(sys.executable).with_name("minedraft-launch"), "--target", target, "--mode", "ar",
         "--dtype", "float32", "--num-blocks", "64", "--target-device", "cpu", "--listen", "unix:../m.sock"],
        cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    launched = Launched(launcher, tmp_path)
    launched.wait_ready()
    code, said = launched.end(signal.SIGTERM)
    assert code == 0
    assert "current folder" not in said
