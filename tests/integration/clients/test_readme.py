"""The commands of the README and its pages that ask the HTTP door, run as printed there but for the address."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_COMMAND = re.compile(r"^ *(curl (?:.*\\\n)*.*)$", re.MULTILINE)
_ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
COMMANDS = sorted(
    {found for page in PAGES for found in _COMMAND.findall(page.read_text(encoding="utf-8")) if _ADDRESS.search(found)}
)


def test_there_are_commands() -> None:
    assert COMMANDS


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("command", COMMANDS)
def test_a_printed_command_answers(url: str, command: str) -> None:
    ran = subprocess.run(
        ["bash", "-c", _ADDRESS.sub(url, command)], capture_output=True, text=True, timeout=60, check=True
    )
    made = json.loads(ran.stdout)
    assert "error" not in made, made
    assert made["choices"][0]["finish_reason"] in ("stop", "length")
    assert made["usage"]["completion_tokens"] > 0
