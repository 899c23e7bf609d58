"""An HTTP door that cannot be opened again: who asks over gRPC does not need it."""

from __future__ import annotations

import asyncio
import signal
import socket

import grpc.aio
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from minedraft import Client
from minedraft.rpc.health import HTTP_SERVICE, NOT_SERVING, SERVING
from tests.fakes.workers import continuation
from tests.integration.launch.launched import PROMPT, Launched, answers, greedy
from tests.support.processes import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_door_that_cannot_be_opened_again_leaves_the_service_degraded_and_answering(start, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    log = tmp_path / "log"
    with log.open("w") as stderr:
        launched = start("--http", f"127.0.0.1:{port}", stderr=stderr)
    with Client(launched.address, timeout_s=30) as client:
        assert (client.status().state, client.status().absent) == ("serving", "")
        assert health_of_door(launched) == SERVING
        stream = client.generate(PROMPT, greedy(400))
        tokens = list(next(stream).token_ids)
        with kill_and_take(launched, port):
            until(lambda: client.status().absent == "http", 40, "the door is missed")
            assert client.status().state == "degraded"
            until(lambda: health_of_door(launched) == NOT_SERVING, 10, "health says so")
            until(lambda: "http: exit code 78" in log.read_text(), 60, "the end of the door's successor")
            tokens += [token_id for piece in stream for token_id in piece.token_ids]
            assert tokens == continuation(PROMPT, 400)
            assert answers(client), "the service does not end with it"
    assert launched.end(signal.SIGTERM)[0] == 0
    assert "the service goes on by gRPC alone" in log.read_text()
    assert "degraded: no http" in log.read_text()


def kill_and_take(launched: Launched, port: int) -> socket.socket:
    """Kill the door and listen in its place, before the launcher knows."""
    door = launched.child("minedraft.http.main")
    launched.process.send_signal(signal.SIGSTOP)
    try:
        door.kill()
        until(lambda: door.status() == psutil.STATUS_ZOMBIE, 10, "the end of the door")
        return socket.create_server(("127.0.0.1", port))
    finally:
        launched.process.send_signal(signal.SIGCONT)


def health_of_door(launched: Launched) -> int:
    async def ask() -> int:
        async with grpc.aio.insecure_channel(launched.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=HTTP_SERVICE))
            return int(reply.status)

    return asyncio.run(ask())
