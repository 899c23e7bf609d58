"""A server is started, asked and ended: with a small one of our own in place of a peer."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from minedraft.errors import StartFailed
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.engines.affinity import family, keep_on
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.http_engine import http_server

pytestmark = pytest.mark.slow

CELL = Cell(CellKind.FIXED, 2, None, 3)
# Answers a prompt [7] with 8, 9 and 10; refuses an empty one; has a child of its own, as vLLM does.
SERVER = r"""
import http.server, json, socketserver, subprocess, sys
subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        prompt = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["prompt"]
        self.send_response(200 if prompt else 400)
        self.end_headers()
        for token in range(prompt[-1] + 1, prompt[-1] + 4) if prompt else ():
            self.wfile.write(f'data: {{"token": {token}}}\n\n'.encode())
        self.wfile.write(b"data: [DONE]\n\n" if prompt else b"no prompt")

    def address_string(self):
        return "client"

    def log_message(self, *words):
        pass

class Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True

Server(sys.argv[1], Handler).serve_forever()
"""


class Tokens:
    path = "/complete"

    def body(self, prompt: Sequence[int], cell: Cell) -> dict[str, Any]:
        return {"prompt": list(prompt)}

    def tokens(self, event: Mapping[str, Any]) -> Sequence[int]:
        return [event["token"]]

    def num_tokens(self, event: Mapping[str, Any], num_before: int) -> int:
        return 1


async def test_answers_come_in_order_and_nothing_is_left_running(tmp_path: Path):
    socket = tmp_path / "peer.sock"
    async with http_server("small", [sys.executable, "-c", SERVER, socket], socket, Tokens()) as engine:
        processes = family(engine.pid)
        first, second = await engine.answer([[7], [1, 2, 3]], CELL)
        with pytest.raises(PeerFailed, match="small: HTTP 400: no prompt"):
            await engine.answer([[]], CELL)
    assert first.token_ids == (8, 9, 10)
    assert (second.token_ids, second.num_prompt_tokens) == ((4, 5, 6), 3)
    assert first.sent_s < first.arrivals_s[0] <= first.arrivals_s[-1]
    assert len(processes) == 2
    _, alive = psutil.wait_procs(processes, timeout=10)
    assert not alive


async def test_its_processes_are_bound_to_the_cores(tmp_path: Path):
    socket, core = tmp_path / "peer.sock", psutil.Process().cpu_affinity()[-1]
    async with http_server("small", [sys.executable, "-c", SERVER, socket], socket, Tokens()) as engine:
        processes = family(engine.pid)
        keep_on(processes, [core])
        assert [process.cpu_affinity() for process in processes] == [[core], [core]]


async def test_a_server_that_does_not_start_says_why(tmp_path: Path):
    argv = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with pytest.raises(StartFailed, match="small did not start:\n  no such model"):
        async with http_server("small", argv, tmp_path / "peer.sock", Tokens()):
            pass


_CAUSE = "(EngineCore pid=7) ERROR 11-28 06:31:40 [core.py:12] minedraft.errors.ModelError: the cause"


async def test_the_first_error_is_shown_where_the_last_lines_do_not_have_it(tmp_path: Path):
    lines = [
        "print('(APIServer pid=6) WARNING 11-28 06:31:40 [system.py:255] it failed with Error: a limit')",
        f"print({_CAUSE!r})",
        "print('at\\n' * 40)",
        "raise SystemExit(1)",
    ]
    said = "; ".join(lines)
    with pytest.raises(StartFailed, match=re.escape(f"small did not start:\n  {_CAUSE}\n")):
        async with http_server("small", [sys.executable, "-c", said], tmp_path / "peer.sock", Tokens()):
            pass
