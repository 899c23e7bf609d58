"""Clients and suites that other people have written, each in its own process against one real service."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.integration.clients.conftest import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROGRAMS = Path(__file__).parent / "programs"


def run(command: list[str | Path], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a client in a folder of its own, without a proxy or this process's packages."""
    inherited = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    inherited.pop("PYTHONPATH", None)
    env = inherited | {"HOME": str(folder)} | variables
    return subprocess.run(
        [str(part) for part in command], cwd=folder, env=env, capture_output=True, text=True, timeout=200, check=False
    )


def test_langchain(url: str, environment: Path, tmp_path: Path) -> None:
    ran = run([environment / "bin/python", PROGRAMS / "langchain_chat.py", url, MODEL], tmp_path)
    assert ran.returncode == 0, ran.stderr[-2000:]


def test_llm(url: str, environment: Path, tmp_path: Path) -> None:
    """Simon Willison's command line, told of the server as its manual says."""
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: ours\n  model_name: {MODEL}\n  api_base: {url}/v1\n  api_key_name: none\n"
    )
    command: list[str | Path] = [
        environment / "bin/llm",
        "-m",
        "ours",
        "-o",
        "temperature",
        "0",
        "-o",
        "max_tokens",
        "9",
    ]
    settings = {"LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    streamed = run([*command, "Hello"], tmp_path, **settings)
    whole = run([*command, "--no-stream", "Hello"], tmp_path, **settings)
    assert streamed.returncode == whole.returncode == 0, streamed.stderr + whole.stderr
    assert streamed.stdout == whole.stdout != ""


# A model of random numbers often says more than it may, and now and then nothing at all.
CHANCE = {
    "expected status='completed', got 'incomplete'",
    "finish_reason: expected 'stop', got 'length'",
    "finish_reason: expected 'tool_calls', got 'length'",
    "no streaming chunk contained delta.content",
}


@pytest.mark.parametrize(
    ("form", "refused"),
    [
        ("openai-chat", {"chat-image-input"}),
        ("open-responses", {"image-input", "tool-calling"}),
    ],
)
def test_the_official_schema(url: str, environment: Path, tmp_path: Path, form: str, refused: set[str]) -> None:
    """All but what is refused by name: images, and tools in responses."""
    command = [environment / "bin/llm-comply", "-u", f"{url}/v1", "-k", "none", "-m", MODEL, "--format", form, "--json"]
    ran = run(command, tmp_path)
    results = json.loads(ran.stdout)["results"]
    failed = {each["id"]: each["errors"] for each in results if each["status"] == "failed"}
    assert {name for name, errors in failed.items() if set(errors) - CHANCE} == refused, failed
    assert len(results) > 8


def test_our_own_schema(url: str, environment: Path, tmp_path: Path) -> None:
    """Whatever a client sends, the answer is one that /openapi.json describes, and never the door's own failure."""
    command = [environment / "bin/schemathesis", "run", f"{url}/openapi.json", "--max-examples", "8", "--seed", "5",
               "--phases", "examples,coverage,fuzzing", "--checks",
               "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance",
               "--request-timeout", "60", "--exclude-path-regex", "metrics"]  # fmt: skip
    ran = run(command, tmp_path)
    assert ran.returncode == 0, ran.stdout[-6000:]


@pytest.mark.parametrize("program", ["openai_client.mjs", "vercel_ai.mjs"])
def test_node(url: str, environment: Path, tmp_path: Path, program: str) -> None:
    if not (environment / "node_modules").is_dir():
        pytest.skip("needs node, when the environment is made")
    (tmp_path / "node_modules").symlink_to(environment / "node_modules")
    (tmp_path / program).write_text((PROGRAMS / program).read_text(encoding="utf-8"))
    ran = run(["node", tmp_path / program, url, MODEL], tmp_path)
    assert (ran.returncode, ran.stdout) == (0, "ok\n"), ran.stderr[-2000:]
