"""Worker processes as the launcher sees them: start, refusal to start, death, and what they leave behind."""

from __future__ import annotations

import asyncio
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from minedraft.errors import EXIT_CONFIG, EXIT_INTERNAL, EXIT_OK, MineDraftError, WorkerLost
from minedraft.messages import VerifyCommand, VerifySpan
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.types import Batch, Role, RoundId
from tests.support.processes import Elapsed
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import NULL, WorkerProcess, worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Run a worker that must refuse to start, and return its one line."""

    def run(*arguments: str) -> str:
        process = WorkerProcess("-X", "importtime", "-m", "minedraft_workers.main", *arguments, log=tmp_path / "log")
        assert process.wait(60) == EXIT_CONFIG
        lines = [line for line in process.said.splitlines() if not line.startswith("import time:")]
        assert len(lines) == 1, lines
        assert not re.search(r"\| +torch$", process.said, re.MULTILINE), "torch was imported before the checks"
        return lines[0]

    return run


def socket_address(folder: Path) -> str:
    return f"unix:{folder}/worker.sock"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "/nowhere"), ("model", "/nowhere", "no such folder")),
        (("--device", "cpu:4095"), ("device", "cpu:4095", "core 4095")),
        (("--device", "tpu"), ("device", "tpu", "cuda:0")),
        (("--listen", "unix:"), ("listen", "path")),
        (("--listen", "0.0.0.0:7777"), ("listen", "0.0.0.0:7777", "requires worker_tls")),
        (("--listen", "[::]:7777"), ("listen", "[::]:7777", "requires worker_tls")),
        (("--max-model-len", "4096"), ("max_model_len", "4096", "512")),
        (("--max-model-len", "512", "--num-blocks", "8"), ("max_model_len is 512", "num_blocks 8", "128 tokens")),
        (("--block-size", "0"), ("block_size", "0", "greater than or equal to 1")),
        (("--dtype", "int4"), ("dtype", "int4", "bfloat16")),
        (("--what",), ("--what",)),
    ],
)
def test_a_bad_setting_is_one_line_before_torch_is_imported(
    refused: Callable[..., str], model: Path, tmp_path: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    line = refused("verifier", "--model", str(model), "--listen", socket_address(tmp_path), *arguments)
    assert re.match(r"\d\d:\d\d:\d\d\.\d{3} ERROR minedraft\.verifier ", line)
    assert all(word in line for word in words), line


def test_a_port_in_use_is_refused(refused: Callable[..., str], model: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        assert "listening there" in refused("verifier", "--model", str(model), "--listen", address)


def test_a_live_worker_s_socket_is_refused_and_a_dead_one_s_reclaimed(
    refused: Callable[..., str], model: Path, tmp_path: Path
) -> None:
    async def shake_hands(address: str) -> None:
        await (await GrpcVerifier.connect(address, connect_timeout_s=100)).close()

    with worker("verifier", tmp_path, program=NULL) as first:
        asyncio.run(shake_hands(first.address))
        line = refused("verifier", "--model", str(model), "--listen", first.address)
        assert f"process {first.pid} is listening there" in line
        asyncio.run(shake_hands(first.address))
        first.kill()
        first.wait(60)
    assert (tmp_path / "verifier.sock").is_socket()
    with worker("verifier", tmp_path, program=NULL) as second:
        asyncio.run(shake_hands(second.address))


async def test_a_killed_worker_fails_every_waiter_within_a_second(tmp_path: Path) -> None:
    with worker("drafter", tmp_path, program=NULL) as process:
        async with await GrpcDrafter.connect(process.address, connect_timeout_s=100) as link:
            process.kill()
            elapsed = Elapsed()
            async with asyncio.timeout(60):
                await link.lost.wait()
            assert elapsed.seconds < 1
            with pytest.raises(WorkerLost, match="drafter at unix:"):
                await link.release([1])


@pytest.mark.parametrize(
    ("role", "where"),
    [
        (Role.DRAFTER, "reply"),
        (Role.VERIFIER, "reply"),
        (Role.DRAFTER, "watchdog"),
        (Role.VERIFIER, "command"),
        (Role.VERIFIER, "handshake"),
    ],
)
async def test_a_worker_whose_event_loop_fails_says_so_and_exits_with_70(
    role: Role, where: str, tmp_path: Path
) -> None:
    link_type = GrpcDrafter if role is Role.DRAFTER else GrpcVerifier
    with worker(role.value, tmp_path, program=("-m", "tests.fakes.broken_worker", where)) as process:
        with suppress(MineDraftError):  # the handshake fails already, or the release
            async with await link_type.connect(process.address, connect_timeout_s=100) as link:
                with suppress(WorkerLost):
                    await link.release([1])
                await asyncio.wait_for(link.lost.wait(), 30)
        assert await asyncio.to_thread(process.wait, 30) == EXIT_INTERNAL
        assert process.said.count("the event loop failed, exiting: RuntimeError") == 1
        assert "the dog ate the loop" in process.said


async def test_a_stopped_worker_is_noticed_by_the_pings(tmp_path: Path) -> None:
    with worker("verifier", tmp_path, program=NULL) as process:
        async with await GrpcVerifier.connect(process.address, connect_timeout_s=100) as link:
            process.send_signal(signal.SIGSTOP)
            command = VerifyCommand(RoundId(link.info.epoch, Batch.A, 1), (VerifySpan(1, 4, (5,)),))
            elapsed = Elapsed()
            with pytest.raises(WorkerLost, match="verifier at unix:"):
                await link.verify(command)
            assert elapsed.seconds < 10, "pings every 2 s, answered within 3 s"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_it_cleanly_and_its_socket_goes(tmp_path: Path, signum: int) -> None:
    with worker("verifier", tmp_path, program=NULL) as process:
        async with await GrpcVerifier.connect(process.address, connect_timeout_s=100):
            process.send_signal(signum)
            assert await asyncio.to_thread(process.wait, 5) == EXIT_OK
    assert os.listdir(tmp_path) == ["verifier.log"]


async def test_who_watches_its_health_is_sent_away_and_nothing_is_said(tmp_path: Path) -> None:
    with worker("verifier", tmp_path, program=NULL) as process:
        async with grpc.aio.insecure_channel(process.address) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), wait_for_ready=True)
            async for reply in watch:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    process.send_signal(signal.SIGTERM)
            assert await watch.code() is grpc.StatusCode.OK
            assert await asyncio.to_thread(process.wait, 5) == EXIT_OK
    assert process.said == ""


async def test_the_product_worker_says_when_it_is_ready_and_stops_on_a_signal(model: Path, tmp_path: Path) -> None:
    arguments = ("--model", str(model), "--draft-method", "ngram", "--exit-with-parent", str(os.getpid()))
    with worker("drafter", tmp_path, *arguments) as process:
        async with await GrpcDrafter.connect(process.address, connect_timeout_s=100) as link:
            assert link.info.draft_method == "ngram"
            assert link.info.max_model_len == 512
            socket_file = tmp_path / "drafter.sock"
            assert socket_file.stat().st_mode & 0o077 == 0, "the socket is for its user only"
            process.terminate()
            assert await asyncio.to_thread(process.wait, 5) == EXIT_OK
    for line in process.said.splitlines():
        assert re.match(r"\d\d:\d\d:\d\d\.\d{3} (INFO|WARNING) minedraft\.drafter \S", line), line
    assert "ready on unix:" in process.said


def test_it_ends_when_its_parent_does(model: Path, tmp_path: Path) -> None:
    script = (
        "import os, subprocess, sys; "
        "child = subprocess.Popen([sys.executable, '-m', 'minedraft_workers.main', *sys.argv[1:], "
        "'--exit-with-parent', str(os.getpid())], stderr=subprocess.PIPE, text=True); "
        "print(child.pid, flush=True); "
        "next(line for line in child.stderr if ' ready on ' in line); print('ready', flush=True); sys.stdin.read()"
    )
    arguments = ("drafter", "--draft-method", "ngram", "--model", str(model), "--listen", socket_address(tmp_path))
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        child_pid = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        child = os.pidfd_open(child_pid)
        parent.kill()
        assert _ended(child, timeout_s=2)


def _ended(pidfd: int, timeout_s: float) -> bool:
    readable, _, _ = select.select([pidfd], [], [], timeout_s)
    os.close(pidfd)
    return bool(readable)
