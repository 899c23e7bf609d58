"""The scheduler process: connects to both workers, runs the pipeline, serves clients. No torch."""

from __future__ import annotations

import asyncio
import logging
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from minedraft.address import Address
from minedraft.core.limits import SchedulerLimits
from minedraft.engine.pairing import PairingConnector
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.readiness import Readiness
from minedraft.engine.slots import Connector, check_drafter, check_mode, drafter_slot, verifier_slot
from minedraft.engine.workers import Drafter
from minedraft.errors import ConfigError, Draining, ModelError, Unauthenticated
from minedraft.messages import WorkerInfo
from minedraft.process.claim import ListenClaim
from minedraft.process.heartbeat import feed_watchdog
from minedraft.process.notify import Notifier
from minedraft.rpc.channel import bind, client_server
from minedraft.rpc.connector import GrpcConnector
from minedraft.rpc.health import HTTP_SERVICE, INFERENCE_SERVICE, NOT_SERVING, SERVING, HealthServicer, add_health
from minedraft.rpc.reflection import add_reflection
from minedraft.rpc.token_check import TokenCheck
from minedraft.server.doors import watch_doors
from minedraft.server.grpc_door import GrpcDoor
from minedraft.server.policies import choose_policies, choose_scores
from minedraft.server.progress import SchedulerProgress
from minedraft.server.service import InferenceService
from minedraft.server.views import Views
from minedraft.server.watching import watched
from minedraft.settings.door import door_tls, door_tokens
from minedraft.settings.service import Settings
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger("minedraft.server")

_FLUSH_S = 1.0  # after the drain, for written replies to reach their clients
_DRAFTER_PATIENCE_S = 60.0  # beyond the verifier's start
_EXTEND_PERIOD_S = 2.0
_EXTENSION_S = 30.0  # asked of the supervisor while the workers load
_STATE_PERIOD_S = 0.5


class Server:
    """One scheduler process.

    Args:
        connector: makes the links to the workers (a parameter for tests).
        notifier: tells the supervisor of this process.
        own_door: where the launcher asks for its health beside the clients' address, which may have TLS.

    Attributes:
        service, pipeline: None until they are made.
    """

    def __init__(
        self,
        settings: Settings,
        connector: Connector | None = None,
        notifier: Notifier | None = None,
        own_door: Address | None = None,
        run_folder: Path | None = None,
    ) -> None:
        self._settings = settings
        self._notifier = notifier or Notifier()
        self._progress = SchedulerProgress()
        self._own_door = own_door
        self._run_folder = run_folder
        self._connector = PairingConnector(connector or _grpc_connector(settings), settings.channel)
        self._stop = asyncio.Event()
        self._force = asyncio.Event()
        tokens = door_tokens(settings)
        self._server = client_server(None if tokens is None else TokenCheck(tokens, self._on_refused))
        self._views = Views(settings)
        self.service: InferenceService | None = None
        self.pipeline: Pipeline | None = None

    def on_signal(self) -> None:
        """Drain at the first signal, stop without waiting at the second."""
        if self._stop.is_set():
            self._force.set()
        else:
            self._stop.set()

    def end_now(self) -> None:
        """Stop without waiting for live requests."""
        self._stop.set()
        self._force.set()

    async def run(self) -> None:
        """Serve until a signal.

        Raises:
            ConfigError: the address or the models cannot be used.
            MineDraftError: the error that ended the service.
        """
        settings = self._settings
        if settings.target is None:
            raise ConfigError("target", None, "must be given: the scheduler needs the tokenizer in the target folder")
        with ListenClaim(settings.listen_address):
            self.service = service = InferenceService(settings, Tokenizer.load(settings.target))
            GrpcDoor(service, settings.slow_client_timeout_s, settings.stream_tokens).add_to(self._server)
            health = await add_health(self._server, INFERENCE_SERVICE)
            if settings.reflection:
                add_reflection(self._server)
            bind(self._server, settings.listen_address, door_tls(settings))
            if self._own_door is not None:
                bind(self._server, self._own_door)
            await self._server.start()
            try:
                async with self._views.shown(service), AsyncExitStack() as stack:
                    await self._serve(service, health, _readiness(health), stack)
            finally:
                service.end_all(Draining("the service has stopped"))
                await health.close()
                await self._server.stop(_FLUSH_S)

    async def _serve(
        self, service: InferenceService, health: HealthServicer, readiness: Readiness, stack: AsyncExitStack
    ) -> None:
        telling = asyncio.create_task(self._tell_supervisor(service))
        stack.push_async_callback(_cancel, telling)
        opening = asyncio.create_task(self._open(service, readiness, stack))
        if not await self._is_done_before(self._stop, opening):
            return
        pipeline = opening.result()
        self._notifier.ready()  # before health: the launcher then knows both
        feeding = asyncio.create_task(feed_watchdog(self._notifier, self._progress.look))
        stack.push_async_callback(_cancel, feeding)
        if self._run_folder is not None and self._settings.http is not None:

            async def set_health(is_open: bool) -> None:
                await health.set(HTTP_SERVICE, SERVING if is_open else NOT_SERVING)

            watching = asyncio.create_task(watch_doors(service, set_health, self._run_folder))
            stack.push_async_callback(_cancel, watching)
        await readiness.open()
        logger.info("serving on %s", self._settings.listen)
        failed = asyncio.create_task(pipeline.failed.wait())
        if not await self._is_done_before(self._stop, failed):
            self._notifier.stopping()
            self._notifier.extend_timeout(self._settings.drain_timeout_s + _EXTENSION_S)
            await health.enter_graceful_shutdown()
            draining = asyncio.create_task(service.drain(self._settings.drain_timeout_s))
            failed = asyncio.create_task(pipeline.failed.wait())
            await self._is_done_before(self._force, draining, failed)
        if pipeline.failure is not None:
            raise pipeline.failure

    async def _open(self, service: InferenceService, readiness: Readiness, stack: AsyncExitStack) -> Pipeline:
        settings = self._settings
        async with asyncio.timeout(settings.load_timeout_s):
            verifier = await self._connector.connect_verifier()
            stack.push_async_callback(verifier.close)
            _check_tokenizer(service.tokenizer, verifier.info)
            drafter, is_late = await self._find_drafter(verifier.info)
        if drafter is not None:
            stack.push_async_callback(drafter.close)
            check_drafter(drafter.info, verifier.info)
            check_mode(settings.first_mode, drafter.info)
        policies = choose_policies(settings)
        service.board.explain_mode = policies.explain_mode
        self.pipeline = pipeline = Pipeline(
            _limits(settings, verifier.info),
            verifier,
            drafter,
            observers=[
                service.board.observe,
                service.pace.observe,
                policies.experience.observe,
                self._progress.observe,
                readiness.observe,
                *self._views.observers,
            ],
            verifier_returns=True,
            **watched(settings, policies.draft, policies.mode),
        )
        self._progress.watch(pipeline)
        target_slot = verifier_slot(pipeline, self._connector, settings.verifier_wait_s)
        watchers = [asyncio.create_task(target_slot.run(verifier))]
        if drafter is not None or is_late:
            watchers.append(asyncio.create_task(drafter_slot(pipeline, self._connector).run(drafter)))
        for watcher in watchers:  # before the links are closed here: that close is not a loss
            stack.push_async_callback(_cancel, watcher)
        await stack.enter_async_context(pipeline)
        await service.open(pipeline)
        policies.experience.acceptance.begin_anew()  # the first generation is no text that anybody asks for
        return pipeline

    async def _find_drafter(self, verifier: WorkerInfo) -> tuple[Drafter | None, bool]:
        """Return the drafter, None if there is none; and whether it is late: the service starts without it, and takes
        it when it comes. So another scheduler can serve while the drafter cannot be started."""
        try:
            async with asyncio.timeout(_DRAFTER_PATIENCE_S):
                return await self._connector.connect_drafter(verifier), False
        except TimeoutError:
            logger.warning("the drafter is not there yet: starting without drafts")
            return None, True

    async def _tell_supervisor(self, service: InferenceService) -> None:
        """Say each new state and, until the first generation, that the start takes longer."""
        loop, last_state, extend_at_s = asyncio.get_running_loop(), "", 0.0
        while True:
            if (state := service.state) != last_state:
                self._notifier.status(state)
                last_state = state
            if state == "starting" and loop.time() >= extend_at_s:
                self._notifier.extend_timeout(_EXTENSION_S)
                extend_at_s = loop.time() + _EXTEND_PERIOD_S
            await asyncio.sleep(_STATE_PERIOD_S)

    def _on_refused(self, error: Unauthenticated) -> None:
        if self.service is not None:
            self.service.board.count_error(error)

    async def _is_done_before(self, event: asyncio.Event, *tasks: asyncio.Task[Any]) -> bool:
        """Wait for the event or one of the tasks and cancel the others. Return whether a task is done."""
        waiting = asyncio.create_task(event.wait())
        try:
            await asyncio.wait({waiting, *tasks}, return_when=asyncio.FIRST_COMPLETED)
            return any(task.done() for task in tasks)
        finally:
            for task in (waiting, *tasks):
                await _cancel(task)


def _readiness(health: HealthServicer) -> Readiness:
    async def tell(is_ready: bool) -> None:  # of no effect once a drain has begun
        await health.set(INFERENCE_SERVICE, SERVING if is_ready else NOT_SERVING)

    return Readiness(tell)


def _grpc_connector(settings: Settings) -> GrpcConnector:
    if settings.target_address is None:
        raise ConfigError("target_address", None, "must be given: the scheduler connects to a running verifier")
    draft = settings.draft_address
    return GrpcConnector(
        Address.parse(settings.target_address, "target_address"),
        None if draft is None else Address.parse(draft, "draft_address"),
        settings.worker_tls,
    )


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _check_tokenizer(tokenizer: Tokenizer, verifier: WorkerInfo) -> None:
    if verifier.vocab_fingerprint != tokenizer.fingerprint:
        raise ModelError("target", verifier.model_name, "the verifier's tokenizer differs from the target folder's")
    if (eos_id := max(tokenizer.eos_ids, default=0)) >= verifier.vocab_size:
        limit = f"eos_token_id {eos_id} is not a token of the verifier; its tokens are in [0, {verifier.vocab_size})"
        raise ModelError("target", verifier.model_name, limit)


def _limits(settings: Settings, verifier: WorkerInfo) -> SchedulerLimits:
    """Return the scheduler's limits.

    Raises:
        ConfigError: `max_model_len` exceeds what the verifier serves (a verifier that was started elsewhere).
    """
    max_model_len = min(verifier.max_model_len, verifier.num_blocks * verifier.block_size)
    if settings.max_model_len is not None:
        if settings.max_model_len > max_model_len:
            limit = f"the verifier at {settings.target_address} serves {max_model_len} tokens"
            raise ConfigError("max_model_len", settings.max_model_len, limit)
        max_model_len = settings.max_model_len
    return SchedulerLimits(
        mode=settings.first_mode,
        max_batch_size=settings.max_in_flight // settings.first_mode.num_batches,
        draft_len=settings.max_draft_len,
        extra_drafts=0 if settings.draft_policy == "fixed" else settings.extra_drafts,
        scores=choose_scores(settings),
        prefill_chunk=settings.prefill_chunk,
        max_waiting=settings.max_waiting,
        max_waiting_tokens=settings.max_waiting_tokens,
        max_model_len=max_model_len,
        max_replays=settings.max_replays,
        branches=settings.branches,
        max_steps=settings.max_steps,
    )
