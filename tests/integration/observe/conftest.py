"""A real service with tiny models that shows everything it can, run once for all tests of what it has shown."""

from __future__ import annotations

import json
import socket
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minedraft import Client, SamplingParams
from minedraft.local import serve
from tests.support.tiny_models import make_tiny_model

ANSWERS = 3
NEW_TOKENS = 12


@dataclass(frozen=True)
class Observed:
    """What a service has shown: the text of its metrics page, idle after its answers, and the path of its trace."""

    page: str
    trace_path: Path

    @property
    def trace(self) -> list[dict[str, Any]]:
        records = json.loads(self.trace_path.read_text())
        assert isinstance(records, list)
        return records


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain")
        return str(reply.read().decode())


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("observed")
    model = make_tiny_model(folder / "tiny", vocab_size=70, seed=3)
    port = free_port()
    settings = {"mode": "minedraft", "draft_len": 3, "num_blocks": 64, "dtype": "float32"}
    with serve(model, model, metrics=f"127.0.0.1:{port}", trace=folder / "run.json", **settings) as client:
        assert isinstance(client, Client)
        for n in range(ANSWERS):
            client.complete([5 + n, 6, 7], SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True))
        page = fetch(port)
    return Observed(page, folder / "run.json")
