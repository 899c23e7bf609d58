"""vLLM's OpenAI server as a process of its own, with the plugin found by its entry points."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

from tests.support.worker_process import REPO
from tests.vllm.engines import MAX_LEN, plugin
from tests.vllm.group import group_command

_START_S = 600.0  # on a machine with other work
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Server:
    """A server that runs.

    Attributes:
        process: the leader of a group with all its processes.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def get(self, path: str, body: dict[str, Any] | None = None) -> str:
        """Return what the server replies to GET, or to POST of a body."""
        data = None if body is None else json.dumps(body).encode()
        with urlopen(Request(self.url + path, data, {"Content-Type": "application/json"})) as reply:
            return str(reply.read().decode())

    def complete(self, prompts: Sequence[Sequence[int]], num_tokens: int = 24) -> list[list[int]]:
        """Return so many greedy tokens for each prompt."""
        reply = json.loads(self.get("/v1/completions", _body(prompts, num_tokens)))
        return [choice["token_ids"] for choice in reply["choices"]]

    def stream(self, prompt: Sequence[int], num_tokens: int) -> Iterator[list[int]]:
        """Yield the greedy tokens of an answer as they come."""
        data = json.dumps(_body([prompt], num_tokens) | {"stream": True}).encode()
        request = Request(f"{self.url}/v1/completions", data, {"Content-Type": "application/json"})
        with urlopen(request) as reply:
            for line in reply:
                if line.startswith(b"data: {"):
                    yield from [choice["token_ids"] for choice in json.loads(line[6:])["choices"]]

    def status(self) -> dict[str, Any]:
        """Return what the plugin tells of the one engine."""
        (status,) = json.loads(self.get("/minedraft/status"))["engines"].values()
        return dict(status)

    def until(self, is_met: Any, what: str) -> dict[str, Any]:
        """Return the first status for which `is_met` holds; the numbers are renewed every second."""
        until_s = time.monotonic() + _PATIENCE_S
        while time.monotonic() < until_s:
            if is_met(status := self.status()):
                return status
            time.sleep(0.1)
        raise AssertionError(f"not {what}: {status}")

    def kill(self) -> None:
        """End all processes of the server at once."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def install(folder: Path) -> None:
    """Write what an installation leaves of the package's entry points."""
    groups = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["entry-points"]
    info = folder / "minedraft-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: minedraft\nVersion: 0\n")
    lines = [f"[{group}]\n" + "".join([f"{k} = {v}\n" for k, v in names.items()]) for group, names in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))


@contextmanager
def starting(target: Path, address: str, folder: Path) -> Iterator[Server]:
    """Start a server with the plugin; it is killed when the block ends. It may not be ready yet: see `wait_ready`.

    Args:
        address: of the drafter.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    install(folder / "site")
    options = plugin(address)
    argv = group_command(sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(target))
    argv += ["--served-model-name", "target", "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    argv += ["--dtype", "float32", "--max-model-len", str(MAX_LEN), "--scheduler-cls", options["scheduler_cls"]]
    argv += ["--speculative-config", json.dumps(options["speculative_config"])]
    argv += ["--additional-config", json.dumps(options["additional_config"])]
    path = os.pathsep.join([str(folder / "site"), str(REPO), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": path, "VLLM_PLUGINS": "minedraft", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = folder / "server.log"
    with (
        log.open("w") as output,
        subprocess.Popen(argv, env=environment, stdout=output, stderr=output, start_new_session=True) as process,
    ):
        server = Server(f"http://127.0.0.1:{port}", process, log)
        try:
            yield server
        finally:
            with suppress(ProcessLookupError):
                server.kill()


def wait_ready(server: Server) -> None:
    """Return when the server answers."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and server.process.poll() is None:
        with suppress(URLError, ConnectionError):
            server.get("/health")
            return
        time.sleep(0.2)
    raise AssertionError(f"the server does not start: {server.log.read_text()[-2000:]}")


def _body(prompts: Sequence[Sequence[int]], num_tokens: int) -> dict[str, Any]:
    return {
        "model": "target",
        "prompt": [list(prompt) for prompt in prompts],
        "max_tokens": num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "return_token_ids": True,
    }
