"""The plugin in vLLM's OpenAI server, found by its entry points: answers, /metrics and the status route."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.support.worker_process import REPO, WorkerProcess
from tests.vllm.engines import MAX_LEN, engine, generate, greedy, plugin, tokens

_START_S = 300.0


def _install(folder: Path) -> None:
    """Write what an installation leaves of the package's entry points."""
    groups = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "minedraft-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minedraft\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join([f"{k} = {v}\n" for k, v in names.items()]) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@contextmanager
def _server(target: Path, address: str, folder: Path) -> Iterator[str]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    _install(folder / "site")
    options = plugin(address)
    argv = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(target)]
    argv += ["--served-model-name", "target", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    argv += ["--dtype", "float32", "--max-model-len", str(MAX_LEN), "--scheduler-cls", options["scheduler_cls"]]
    argv += ["--speculative-config", json.dumps(options["speculative_config"])]
    argv += ["--additional-config", json.dumps(options["additional_config"])]
    path = os.pathsep.join([str(folder / "site"), str(REPO), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "VLLM_PLUGINS": "minedraft", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (
        (folder / "server.log").open("w") as log,
        subprocess.Popen(argv, env=environment, stdout=log, stderr=log) as own,
    ):
        try:
            _wait(f"http://127.0.0.1:{port}/health", own, folder / "server.log")
            yield f"http://127.0.0.1:{port}"
        finally:
            own.terminate()


def _wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and process.poll() is None:
        try:
            with urlopen(url):
                return
        except (URLError, ConnectionError):
            process.poll()
            time.sleep(0.2)
    raise AssertionError(f"the server does not start: {log.read_text()[-2000:]}")


def _get(url: str, body: dict[str, Any] | None = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    with urlopen(Request(url, data, {"Content-Type": "application/json"})) as reply:
        return str(reply.read().decode())


def test_the_server_answers_as_vllm_alone_and_shows_the_plugins_numbers(
    target: Path, drafter: WorkerProcess, prompts: list[list[int]], tmp_path: Path
):
    with engine(target) as llm:
        alone = [sample for (sample,) in tokens(generate(llm, prompts[:3], greedy()))]
    body = {"model": "target", "prompt": prompts[:3], "max_tokens": 24, "temperature": 0}
    with _server(target, drafter.address, tmp_path) as url:
        reply = json.loads(_get(f"{url}/v1/completions", body | {"ignore_eos": True, "return_token_ids": True}))
        assert [choice["token_ids"] for choice in reply["choices"]] == alone
        until_s = time.monotonic() + 30
        while True:  # the numbers are renewed every second
            (status,) = json.loads(_get(f"{url}/minedraft/status"))["engines"].values()
            if sum(status["tried"]) or time.monotonic() > until_s:
                break
            time.sleep(0.2)
        assert sum(status["accepted"]) > 0
        assert status["drafter_up"] == 1
        metrics = _get(f"{url}/metrics")
    assert 'minedraft_vllm_accepted_drafts_total{engine="0",position="0"}' in metrics
    for name in ("overlap_efficiency", "exposed_seconds_total", "blocked_steps_total", "steps_total"):
        assert f'minedraft_vllm_{name}{{engine="0"}}' in metrics
    assert "vllm:spec_decode_num_accepted_tokens_total" in metrics
