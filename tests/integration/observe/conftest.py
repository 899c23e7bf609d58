"""A real service with tiny models that shows everything it can, run once for all tests of what it has shown."""

from __future__ import annotations

import json
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minedraft import Client, SamplingParams
from minedraft.errors import InvalidRequest
from minedraft.local import serve
from tests.support.processes import free_port
from tests.support.tiny_models import make_tiny_model

ANSWERS = 3
NEW_TOKENS = 12
SECRET = "the cat sleeps"  # of every prompt


@dataclass(frozen=True)
class Observed:
    """What a service has shown: the text of its metrics page, idle after its answers, the path of its trace, and the
    lines of its log, in JSON from level DEBUG on."""

    page: str
    trace_path: Path
    lines: tuple[str, ...]

    @property
    def trace(self) -> list[dict[str, Any]]:
        records = json.loads(self.trace_path.read_text())
        assert isinstance(records, list)
        return records


def fetch(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as reply:
        assert reply.headers["Content-Type"].startswith("text/plain")
        return str(reply.read().decode())


@pytest.fixture(scope="session")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder = tmp_path_factory.mktemp("observed")
    model = make_tiny_model(folder / "tiny", vocab_size=70, seed=3)
    port = free_port()
    settings = {"mode": "minedraft", "draft_len": 3, "num_blocks": 64, "dtype": "float32"}
    shown = {"metrics": f"127.0.0.1:{port}", "trace": folder / "run.json", "log_format": "json", "log_level": "debug"}
    lines: list[str] = []
    with serve(model, model, on_line=lines.append, **settings, **shown) as client:
        assert isinstance(client, Client)
        params = SamplingParams(max_new_tokens=NEW_TOKENS, ignore_eos=True)
        for n in range(ANSWERS):
            client.complete(f"{SECRET} {n}", params, request_id=f"job-{n}")
        with suppress(InvalidRequest):
            client.complete(SECRET * 1000, params, request_id="too-long")
        page = fetch(port)
    return Observed(page, folder / "run.json", tuple(lines))
