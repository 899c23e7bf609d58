"""How clients, scheduler and workers find each other: odd paths, proxies, restarts, pings."""

from __future__ import annotations

import asyncio
import gc
import os
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.errors import RequestAborted, Unavailable
from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.types import Role
from minedraft.v1 import inference_pb2_grpc
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeVerifier, continuation
from tests.support.processes import free_port
from tests.support.served_worker import served as served_worker

SETTINGS, PING, GOAWAY = 4, 6, 7  # frames of HTTP/2
PROMPT = [5, 6, 7]
ODD_NAMES = ["a#b", "a?b", "p%20q", "%", "%zz", "a b", "a:b", "é🎉", "'\"$`;&|\\", "a\nb", "[x]", "~x", "@x", "a+b=c"]


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for odd names: a socket's has at most 107 bytes."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    async with fake_service(tmp_path, verifier=verifier) as service:
        yield service


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_a_workers_socket_is_at_the_very_path_it_was_given_and_is_found_there(
    short_folder: Path, name: str
) -> None:
    (short_folder / name).mkdir()
    async with served_worker(Role.VERIFIER, short_folder / name) as worker:
        assert files_below(short_folder) == {name, f"{name}/verifier.sock"}
        async with await GrpcVerifier.connect(f"unix:{short_folder / name / 'verifier.sock'}") as link:
            assert link.info.role is Role.VERIFIER
        assert str(worker.address) == f"unix:{short_folder / name / 'verifier.sock'}"


async def test_clients_find_a_service_at_an_odd_path(short_folder: Path) -> None:
    path = short_folder / "p%20q#r?s é'\n" / "m.sock"
    async with fake_service(short_folder, listen=f"unix:{path}") as service:
        assert {f for f in files_below(short_folder) if f.endswith(".sock")} == {str(path.relative_to(short_folder))}
        async with AsyncClient(service.address, timeout_s=60) as client:
            assert (await client.status()).state == "serving"
        with Client(path, timeout_s=60) as blocking:
            assert (await asyncio.to_thread(blocking.status)).state == "serving"


@pytest.mark.parametrize("variable", ["http_proxy", "https_proxy", "grpc_proxy"])
async def test_no_proxy_of_the_environment_comes_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    listen = f"127.0.0.1:{free_port()}"
    async with fake_service(tmp_path, listen=listen):  # which waits for health
        async with AsyncClient(listen, timeout_s=60) as client:
            assert (await client.status()).state == "serving"
        with Client(listen, timeout_s=60) as blocking:
            assert (await asyncio.to_thread(blocking.status)).state == "serving"


async def test_a_client_looks_for_a_service_that_went_away_several_times_a_second(tmp_path: Path) -> None:
    num_tries = 0

    def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal num_tries
        num_tries += 1
        writer.close()

    listener = await asyncio.start_unix_server(hang_up, tmp_path / "m.sock")
    async with AsyncClient(tmp_path / "m.sock", timeout_s=1) as client, asyncio.timeout(60), listener:
        while num_tries < 5:  # after 0.1, 0.3, 0.5 and 1.0 s; with gRPC's own waits after 10 s
            with pytest.raises(Unavailable):
                await client.status()
            await asyncio.sleep(0)


class Stopping(inference_pb2_grpc.InferenceServicer):
    """Answers what gRPC does for a server that stops before it has looked at a call."""

    async def GetStatus(self, request: object, context: grpc.aio.ServicerContext) -> None:
        await context.abort(grpc.StatusCode.CANCELLED, "CANCELLED")


async def test_a_service_that_stops_is_unavailable_not_a_request_that_somebody_aborted(tmp_path: Path) -> None:
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(Stopping(), server)
    server.add_insecure_port(f"unix:{tmp_path}/m.sock")
    await server.start()
    async with AsyncClient(tmp_path / "m.sock", timeout_s=60) as client:
        with pytest.raises(Unavailable, match="the service has stopped"):
            await client.status()
    with Client(tmp_path / "m.sock", timeout_s=60) as blocking, pytest.raises(Unavailable, match="has stopped"):
        await asyncio.to_thread(blocking.status)
    await server.stop(None)


async def test_a_blocking_call_whose_client_is_closed_is_aborted(tmp_path: Path) -> None:
    async with fake_service(tmp_path) as service:
        service.verifier.hold = asyncio.Event().wait
        with Client(service.address, timeout_s=60) as client:
            call = asyncio.create_task(asyncio.to_thread(client.complete, [5, 6], SamplingParams(max_new_tokens=9)))
            await service.until(lambda: service.server.pipeline.scheduler.requests)
            client.close()
            with pytest.raises(RequestAborted, match="the client was closed"):
                await call
        service.server.end_now()
        await service.task


async def test_closing_the_client_ends_its_calls_with_an_error_not_with_a_cancelled_task(served: FakeService) -> None:
    client = AsyncClient(served.address, timeout_s=60)
    stream = client.generate(PROMPT, SamplingParams(max_new_tokens=1500))
    await anext(stream)
    await client.close()
    with pytest.raises(RequestAborted, match="closed"):
        [piece async for piece in stream]
    assert (await client.status()).state == "serving", "a later call connects anew"
    await client.close()


async def test_one_client_serves_one_event_loop_after_another(served: FakeService) -> None:
    client = AsyncClient(served.address, timeout_s=60)

    def talk() -> None:
        for _ in range(2):
            answer = asyncio.run(client.complete(PROMPT, SamplingParams(max_new_tokens=12)))
            assert list(answer.token_ids) == continuation(PROMPT, 12)

    async with client:
        await client.status()
        await asyncio.to_thread(talk)
        assert (await client.status()).state == "serving"


async def test_clients_may_ping_as_often_as_they_like(tmp_path: Path) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2_frame(SETTINGS)
    async with fake_service(tmp_path), asyncio.timeout(60):
        reader, writer = await asyncio.open_unix_connection(tmp_path / "s.sock")
        writer.write(preface)
        for _ in range(20):
            writer.write(h2_frame(PING, bytes(8)))
            kind = None
            while kind != PING:
                head = await reader.readexactly(9)
                await reader.readexactly(int.from_bytes(head[:3]))
                kind = head[3]
                assert kind != GOAWAY, "too many pings"
        writer.close()


def h2_frame(kind: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3) + bytes([kind, 0]) + bytes(4) + payload


async def test_a_closed_client_that_left_a_stream_early_keeps_no_connection_open(served: FakeService) -> None:
    """It must not wait for the garbage collector: a program that opens many clients would run out of files."""
    before = len(os.listdir("/proc/self/fd"))
    gc.disable()
    try:
        for _ in range(8):
            async with AsyncClient(served.address, timeout_s=60) as client:
                async for _ in client.generate(PROMPT, SamplingParams(max_new_tokens=100)):
                    break
        await served.until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    finally:
        gc.enable()
