"""The log of a real service with tiny models: every line of every process is JSON, and none has a prompt's text."""

from __future__ import annotations

import json

import pytest

from tests.integration.observe.conftest import ANSWERS, SECRET, Observed

pytestmark = pytest.mark.slow


def test_every_line_of_the_three_processes_is_an_object_with_the_same_keys(observed: Observed) -> None:
    lines = [json.loads(line) for line in observed.lines if line.startswith("{")]
    others = [line for line in observed.lines if not line.startswith("{")]
    assert all(line.startswith(("ready on ", "  minedraft generate")) for line in others), "what users read is text"
    assert {line["process"] for line in lines} == {"launcher", "scheduler", "drafter", "verifier"}
    for line in lines:
        assert {"time", "level", "process", "message"} <= line.keys()


def test_the_life_of_each_request_is_told_by_its_id(observed: Observed) -> None:
    lines = [json.loads(line) for line in observed.lines if line.startswith("{")]
    for n in range(ANSWERS):
        about = [line["message"] for line in lines if line.get("request_id") == f"job-{n}"]
        assert len(about) == 3, about
        assert about[0].startswith("queued as number")
        assert about[1].startswith("has a seat in batch")
        assert about[2] == "ended: length, 12 tokens"


def test_no_line_has_text_of_a_prompt(observed: Observed) -> None:
    assert [line for line in observed.lines if SECRET.split()[1] in line] == []
    assert [line for line in observed.lines if "Traceback" in line] == []
