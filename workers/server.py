"""A worker's gRPC server, from its start to the exit code of the process."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

from minedraft.address import Address
from minedraft.errors import EXIT_INTERNAL, EXIT_OK
from minedraft.process.entry import die_of
from minedraft.process.heartbeat import feed_watchdog
from minedraft.process.notify import Notifier
from minedraft.rpc.channel import bind, worker_server
from minedraft.rpc.health import HealthServicer, add_health
from minedraft.security.tls import ServerTls
from minedraft_workers.rounds.loop_failure import watch_loop, watch_task
from minedraft_workers.rounds.runtime import WorkerRuntime

logger = logging.getLogger("minedraft.worker")

_STOP_GRACE_S = 1.0  # for calls that are running
_CRASH_GRACE_S = 0.5  # to get the INTERNAL replies out
_THREAD_GRACE_S = 0.3


async def start(
    handler: grpc.GenericRpcHandler[Any, Any], address: Address, tls: ServerTls | None = None
) -> tuple[grpc.aio.Server, HealthServicer]:
    """Return a started server and its health service, which says serving.

    Raises:
        ConfigError: the server cannot listen at the address.
    """
    server = worker_server()
    server.add_generic_rpc_handlers((handler,))
    health = await add_health(server)
    bind(server, address, tls)
    await server.start()
    return server, health


async def serve_worker(
    runtime: WorkerRuntime,
    handler: grpc.GenericRpcHandler[Any, Any],
    address: Address,
    *,
    tls: ServerTls | None = None,
    on_ready: Callable[[], None] = lambda: None,
    notifier: Notifier | None = None,
) -> int:
    """Serve until SIGTERM, SIGINT or a failure of device thread or event loop. Return the exit code.

    It returns within two seconds of the signal, even during a forward; a second signal ends the
    process immediately. It raises as `start`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    watch_loop(loop, runtime.fail)
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, _on_signal, signum, stop)
    notifier = notifier or Notifier()
    server, health = await start(handler, address, tls)
    on_ready()
    notifier.ready()
    notifier.status(f"ready: {runtime.info.model_name}")
    ends = [asyncio.create_task(stop.wait()), asyncio.create_task(runtime.crashed.wait())]
    watches = [
        asyncio.create_task(runtime.watch()),
        asyncio.create_task(feed_watchdog(notifier, lambda: runtime.progress)),
    ]
    for watch in watches:
        watch_task(watch, runtime.fail)
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    notifier.stopping()
    for task in (*ends, *watches):
        task.cancel()
    has_crashed = runtime.crashed.is_set()
    await health.enter_graceful_shutdown()
    await health.close()
    await server.stop(_grace_s(runtime))
    if not runtime.stop(_THREAD_GRACE_S):
        logger.info("stopped during a forward pass")
    return EXIT_INTERNAL if has_crashed else EXIT_OK


def _grace_s(runtime: WorkerRuntime) -> float | None:
    """Return the seconds that open calls have to end; None to end them immediately."""
    if runtime.crashed.is_set():
        return _CRASH_GRACE_S
    if runtime.num_open:
        return _STOP_GRACE_S
    return None  # an idle scheduler's stream would not end by itself


def _on_signal(signum: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        die_of(signum)
    logger.info("%s: stopping", signal.Signals(signum).name)
    stop.set()
