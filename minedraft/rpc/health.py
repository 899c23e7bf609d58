"""Standard gRPC health (grpc.health.v1): the names we serve, and waiting for a peer to serve one."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio
from grpc_health.v1 import _async, health_pb2, health_pb2_grpc

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.rpc.channel import client_channel
from minedraft.security.tls import Access

__all__ = [
    "HTTP_SERVICE",
    "INFERENCE_SERVICE",
    "LIVE",
    "NOT_SERVING",
    "SERVING",
    "HealthServicer",
    "add_health",
    "wait_serving",
]

_OPEN = Access()
_CLOSE_S = 0.5  # ample for sending a status; the server's stop ends a connection that takes none

LIVE = ""
"""Serving while the process answers."""

INFERENCE_SERVICE = "minedraft.v1.Inference"
"""Serving from the first real generation through both workers until draining starts."""

HTTP_SERVICE = "minedraft.http"
"""Serving while the HTTP door is open; known where the service has one."""

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class HealthServicer(_async.HealthServicer):  # type: ignore[misc]
    """grpc.health.v1 with a way to end all Watch streams. gRPC logs an error for a stream that is still open
    when the event loop ends."""

    def __init__(self) -> None:
        super().__init__()
        self._closed = asyncio.Event()
        self._watches: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """End every present and future Watch; return when the present ones have ended."""
        self._closed.set()
        if self._watches:
            await asyncio.wait(self._watches, timeout=_CLOSE_S)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:  # noqa: ANN401
        call = asyncio.current_task()
        assert call is not None, "a running coroutine belongs to a task"
        self._watches.add(call)
        call.add_done_callback(self._watches.discard)
        ends = [asyncio.create_task(super().Watch(request, context)), asyncio.create_task(self._closed.wait())]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)


async def add_health(server: grpc.aio.Server, *later: str) -> HealthServicer:
    """Serve health on this server: LIVE is serving at once, the services `later` once their state is set."""
    servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.set(LIVE, SERVING)
    for service in later:
        await servicer.set(service, NOT_SERVING)
    return servicer


async def wait_serving(address: Address, service: str, access: Access = _OPEN) -> None:
    """Return once the peer says that the service is serving; wait without limit for the peer to appear.

    The caller sets the deadline and watches the peer process.

    Raises:
        ConfigError: the server at the address is not MineDraft, or refuses the token of `access`.
    """
    async with client_channel(address, access.tls) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        while True:
            request = health_pb2.HealthCheckRequest(service=service)
            call = stub.Watch(request, wait_for_ready=True, metadata=access.metadata)
            try:
                # Not `async for`: if left early, its iterator would keep the connection open.
                while (reply := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
                    if reply.status == SERVING:
                        return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.UNAUTHENTICATED:
                    raise ConfigError("token_file", None, f"the server at {address} refuses its token") from None
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    limit = f"the server there is not MineDraft: {error.details()}"
                    raise ConfigError("address", str(address), limit) from None
            finally:
                call.cancel()
            await asyncio.sleep(0.05)  # no busy loop while the peer keeps ending the stream
