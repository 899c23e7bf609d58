"""A process that serves: its event loop, what the garbage collector no longer looks at, and gRPC's threads."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from minedraft.process.grpc_polling import poll_in_place
from minedraft.process.serving import run_serving

_SERVE = """
import asyncio
import os
import sys
import {package}
os.environ["GRPC_EXPERIMENTS"] += sys.argv[2]
from minedraft.address import Address
from minedraft.rpc.channel import bind, worker_server

async def serve():
    server = worker_server()
    bind(server, Address.parse(sys.argv[1]))
    await server.start()
    await server.stop(None)

asyncio.run(serve())
"""


@pytest.fixture(autouse=True)
def leave_the_rest_in_sight() -> Iterator[None]:
    yield
    gc.unfreeze()


def test_what_was_loaded_before_is_out_of_the_collectors_sight() -> None:
    loaded, made = ["weights"], []

    async def serve() -> list[int]:
        made.append(["request"])
        return [id(one) for one in gc.get_objects()]

    in_sight = run_serving(serve())
    assert id(loaded) not in in_sight
    assert id(made[0]) in in_sight


def test_it_serves_in_uvloop_and_returns_the_result() -> None:
    async def serve() -> type[asyncio.AbstractEventLoop]:
        return type(asyncio.get_running_loop())

    assert run_serving(serve()) is uvloop.Loop


@pytest.mark.parametrize("package", ["minedraft.server", "minedraft_workers"])
@pytest.mark.parametrize("more", ["", ",no_such_experiment"])  # of which gRPC complains, if it reads them at all
def test_the_installed_grpc_reads_and_knows_the_names(
    package: str, more: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    argv = [sys.executable, "-c", _SERVE.format(package=package), f"unix:{tmp_path}/w.sock", more]
    served = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert served.returncode == 0
    assert ("Unknown experiment" in served.stderr) is bool(more)


def test_what_the_operator_has_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRPC_EXPERIMENTS", "event_engine_client")
    poll_in_place()
    assert os.environ["GRPC_EXPERIMENTS"] == "event_engine_client"
