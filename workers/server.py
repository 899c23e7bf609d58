"""A worker process from its first served call to its exit code."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from minedraft.address import Address
from minedraft.errors import EXIT_INTERNAL, EXIT_OK, ConfigError
from minedraft.rpc.channel import worker_server
from minedraft.rpc.health import HealthServicer
from minedraft_workers.runtime import WorkerRuntime

logger = logging.getLogger("minedraft.worker")

_STOP_GRACE_S = 1.0  # for calls that are running
_CRASH_GRACE_S = 0.5  # to get the INTERNAL replies out
_THREAD_GRACE_S = 0.3


async def start(handler: grpc.GenericRpcHandler[Any, Any], address: Address) -> tuple[grpc.aio.Server, HealthServicer]:
    """Listen and answer; health says that it serves.

    Raises:
        ConfigError: the address cannot be bound.
    """
    server = worker_server()
    health = HealthServicer()
    server.add_generic_rpc_handlers((handler,))
    add_HealthServicer_to_server(health, server)
    try:
        server.add_insecure_port(address.uri)
    except RuntimeError as error:
        raise ConfigError("listen", str(address), f"cannot be bound: {error}") from None
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    return server, health


async def serve(
    runtime: WorkerRuntime,
    handler: grpc.GenericRpcHandler[Any, Any],
    address: Address,
    *,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Serve until SIGTERM, SIGINT or a crash of the device thread; returns the exit code.

    It returns within two seconds of the signal, during a forward too; a second signal ends the
    process at once. Raises as `start`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _on_signal, signum, stop)
    server, health = await start(handler, address)
    on_ready()
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(runtime.crashed.wait())]
    watch = asyncio.create_task(runtime.watch())
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for task in (*ends, watch):
        task.cancel()
    has_crashed = runtime.crashed.is_set()
    await health.enter_graceful_shutdown()
    await health.close()
    # The stream of an idle scheduler would only make it wait.
    grace_s = _CRASH_GRACE_S if has_crashed else _STOP_GRACE_S if runtime.num_open else None
    await server.stop(grace_s)
    if not runtime.stop(_THREAD_GRACE_S):
        logger.info("stopped during a forward")
    return EXIT_INTERNAL if has_crashed else EXIT_OK


def _on_signal(signum: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(128 + signum)
    logger.info("%s: stopping", signal.Signals(signum).name)
    stop.set()
