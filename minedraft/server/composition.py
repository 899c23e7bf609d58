"""The scheduler process: connects to both workers, runs the pipeline, serves clients. No torch.

    python -m minedraft.server --target DIR --target-address unix:... --draft-address unix:...

`minedraft-launch` starts it; with workers that run already it can be started alone.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NoReturn

import click

from minedraft.address import Address
from minedraft.config import Settings, load_settings
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.slots import Connector, check_drafter, drafter_slot, fail_when_lost
from minedraft.errors import ConfigError, Draining, InternalError, ModelError
from minedraft.flags import UserPath, settings_flags
from minedraft.process.claim import ListenClaim
from minedraft.process.entry import run_logged, takes_parent
from minedraft.process.parent import exit_with_parent
from minedraft.rpc.channel import bind, client_server
from minedraft.rpc.connector import GrpcConnector
from minedraft.rpc.health import INFERENCE_SERVICE, SERVING, HealthServicer, add_health
from minedraft.server.grpc_door import GrpcDoor
from minedraft.server.service import InferenceService
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import WorkerInfo

logger = logging.getLogger("minedraft.server")

_FLUSH_S = 1.0  # for replies already written to reach clients after the drain
_ORPHAN_CHECK_S = 0.2


class Server:
    """One scheduler process from the first import to the last message.

    Args:
        connector: makes the links to the workers (a parameter for tests).

    Attributes:
        service, pipeline: None until they exist.
    """

    def __init__(self, settings: Settings, connector: Connector | None = None) -> None:
        self._settings = settings
        self._connector = connector or _grpc_connector(settings)
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        self._server = client_server()
        self.service: InferenceService | None = None
        self.pipeline: Pipeline | None = None

    def on_signal(self) -> None:
        """The first drains, the second ends everything at once."""
        if self._stop.is_set():
            self._force.set()
        else:
            self._stop.set()

    def end_now(self) -> None:
        self._stop.set()
        self._force.set()

    async def run(self) -> None:
        """Serve until a signal.

        Raises:
            ConfigError: the address or the models cannot be used.
            MineDraftError: what ended the service (WorkerLost: the verifier is gone).
        """
        settings = self._settings
        if settings.target is None:
            raise ConfigError("target", None, "the scheduler alone needs the folder of the target, for its tokenizer")
        with ListenClaim(settings.listen_address):
            self.service = service = InferenceService(settings, Tokenizer.load(settings.target))
            GrpcDoor(service).add_to(self._server)
            health = await add_health(self._server, INFERENCE_SERVICE)
            bind(self._server, settings.listen_address)
            await self._server.start()
            try:
                async with AsyncExitStack() as stack:
                    await self._serve(service, health, stack)
            finally:
                service.end_all(Draining("the service has stopped"))
                await health.close()
                await self._server.stop(_FLUSH_S)

    async def _serve(self, service: InferenceService, health: HealthServicer, stack: AsyncExitStack) -> None:
        opening = asyncio.create_task(self._open(service, stack))
        if not await self._is_done_before(self._stop, opening):
            return
        pipeline = opening.result()
        await health.set(INFERENCE_SERVICE, SERVING)
        logger.info("serving on %s", self._settings.listen)
        failed = asyncio.create_task(pipeline.failed.wait())
        if not await self._is_done_before(self._stop, failed):
            await health.enter_graceful_shutdown()
            draining = asyncio.create_task(service.drain(self._settings.drain_timeout_s))
            failed = asyncio.create_task(pipeline.failed.wait())
            await self._is_done_before(self._force, draining, failed)
        if pipeline.failure is not None:
            raise pipeline.failure

    async def _open(self, service: InferenceService, stack: AsyncExitStack) -> Pipeline:
        settings = self._settings
        async with asyncio.timeout(settings.load_timeout_s):
            verifier = await self._connector.connect_verifier()
            stack.push_async_callback(verifier.close)
            _check_tokenizer(service.tokenizer, verifier.info)
            drafter = await self._connector.connect_drafter(verifier.info)
        if drafter is not None:
            stack.push_async_callback(drafter.close)
            check_drafter(drafter.info, verifier.info)
        self.pipeline = pipeline = Pipeline(
            _limits(settings, verifier.info), verifier, drafter, observers=[service.metrics.observe]
        )
        watchers = [asyncio.create_task(fail_when_lost(pipeline, verifier))]
        if drafter is not None:
            watchers.append(asyncio.create_task(drafter_slot(pipeline, self._connector).run(drafter)))
        for watcher in watchers:  # before the links are closed here, which is no loss
            stack.push_async_callback(_cancel, watcher)
        await stack.enter_async_context(pipeline)
        await service.open(pipeline)
        return pipeline

    async def _is_done_before(self, event: asyncio.Event, *tasks: asyncio.Task[Any]) -> bool:
        """Wait for one of the tasks or the event; whatever did not happen is cancelled."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            return any(task.done() for task in tasks)
        finally:
            for task in (waiting, *tasks):
                await _cancel(task)


def _grpc_connector(settings: Settings) -> GrpcConnector:
    if settings.target_address is None:
        raise ConfigError("target_address", None, "the scheduler alone needs the address of a verifier that runs")
    draft = settings.draft_address
    return GrpcConnector(
        Address.parse(settings.target_address, "target_address"),
        None if draft is None else Address.parse(draft, "draft_address"),
    )


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _check_tokenizer(tokenizer: Tokenizer, verifier: WorkerInfo) -> None:
    if verifier.vocab_fingerprint != tokenizer.fingerprint:
        raise ModelError("target", verifier.model_name, "the verifier has another tokenizer than the target folder")
    if (eos_id := max(tokenizer.eos_ids, default=0)) >= verifier.vocab_size:
        limit = f"eos_token_id {eos_id} is no token of the verifier's: they are in [0, {verifier.vocab_size})"
        raise ModelError("target", verifier.model_name, limit)


def _limits(settings: Settings, verifier: WorkerInfo) -> SchedulerLimits:
    """What requests may ask for.

    Raises:
        ConfigError: a context was asked for that the verifier does not serve (one that was started elsewhere).
    """
    max_model_len = min(verifier.max_model_len, verifier.num_blocks * verifier.block_size)
    if settings.max_model_len is not None:
        if settings.max_model_len > max_model_len:
            limit = f"the verifier at {settings.target_address} serves {max_model_len} tokens"
            raise ConfigError("max_model_len", settings.max_model_len, limit)
        max_model_len = settings.max_model_len
    return SchedulerLimits(
        mode=settings.mode,
        max_batch_size=settings.max_batch_size,
        draft_len=settings.draft_len,
        prefill_chunk=settings.prefill_chunk,
        max_waiting=settings.max_waiting,
        max_model_len=max_model_len,
    )


async def _main(settings: Settings, parent_pid: int | None, run_folder: Path | None) -> None:
    server = Server(settings)
    loop = asyncio.get_running_loop()

    def on_term() -> None:
        server.on_signal()
        # It may be the kernel telling of the launcher's death, and that a moment before it is complete.
        end_if_orphaned()
        loop.call_later(_ORPHAN_CHECK_S, end_if_orphaned)

    def end_if_orphaned() -> None:
        if parent_pid is not None and os.getppid() != parent_pid:
            server.end_now()  # the launcher was killed, and the workers with it: nothing to wait for

    loop.add_signal_handler(signal.SIGTERM, on_term)
    loop.add_signal_handler(signal.SIGINT, server.on_signal)
    try:
        await server.run()
    except TimeoutError:
        limit = f"load_timeout_s {settings.load_timeout_s:g}"
        raise InternalError(f"the workers were not ready within {limit}") from None
    finally:
        if run_folder is not None:
            # Its owner, the launcher, may have been killed. Done while the signal handlers stand: the
            # kernel signals once for each of a dying parent's threads, and the next would end this.
            shutil.rmtree(run_folder, ignore_errors=True)


@click.command()
@settings_flags(Settings)
@click.option("--config", type=UserPath(), default=None, help="TOML file with the same settings.")
@takes_parent
@click.option("--run-folder", type=click.Path(path_type=Path), default=None, hidden=True)
def command(config: Path | None, parent_pid: int | None, run_folder: Path | None, **flags: object) -> None:
    """Run the scheduler alone, beside workers that are already running."""
    if parent_pid is not None:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        exit_with_parent(parent_pid, signal.SIGTERM)
    asyncio.run(_main(load_settings(flags, config), parent_pid, run_folder))


def main() -> NoReturn:
    """Entry point. Exit codes: 0 stopped by a signal, 70 internal error, 78 configuration."""
    sys.exit(run_logged(command, "python -m minedraft.server", "scheduler"))


if __name__ == "__main__":
    main()
