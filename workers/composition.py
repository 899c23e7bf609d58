"""Puts a worker together: model folder and device, then executor, actor, runtime and server."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

from minedraft.device import Device
from minedraft.errors import ConfigError, MemoryExhausted
from minedraft.messages import WorkerInfo
from minedraft.models.folder import FolderInfo, check_model_folder
from minedraft.models.heads.folder import HeadInfo, check_head_folder, is_head_folder
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.process.notify import Notifier
from minedraft.process.serving import run_serving
from minedraft.process.start_extension import StartExtension
from minedraft.settings.door import worker_tls
from minedraft.settings.shared import MIN_BLOCKS
from minedraft.settings.worker import WorkerSettings
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role
from minedraft_workers.cores import WorkerCores
from minedraft_workers.device import enter_thread, pin
from minedraft_workers.rounds.rehearsal import rehearse

if TYPE_CHECKING:
    from minedraft_workers.channels.base import TokenChannel
    from minedraft_workers.channels.joined import JoinedChannel
    from minedraft_workers.drafter import DrafterActor
    from minedraft_workers.execution.eagle.head import EagleHead
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.proposers.base import Proposer
    from minedraft_workers.sampling.guides import Guides
    from minedraft_workers.sampling.sampler import Sampler
    from minedraft_workers.verifier import VerifierActor

logger = logging.getLogger("minedraft.worker")


@dataclass(frozen=True, slots=True)
class Plan:
    """A worker's settings, checked against this machine and the model folder. Made without torch.

    Attributes:
        folder: of the model; for a drafting head, the target's folder with the head's name and context.
        max_model_len: tokens per sequence; None for the model's own limit.
        max_cores: cores that the worker may be given while it runs; empty: it keeps those of the device.
        head: the drafting head, if the worker drafts with one.
    """

    settings: WorkerSettings
    folder: FolderInfo
    device: Device
    max_model_len: int | None
    max_cores: tuple[int, ...] = ()
    head: HeadInfo | None = None

    @classmethod
    def make(cls, settings: WorkerSettings) -> Self:
        """Return the plan, after a check of folder and machine.

        Raises:
            ModelError: the folder cannot be used. ConfigError: the device or the context cannot be used.
        """
        head = _find_head(settings)
        _check_sessions(settings)
        folder = check_model_folder(settings.model, "model") if head is None else head[0]
        device = Device.parse(settings.device).here()
        most: tuple[int, ...] = ()
        if settings.max_device is not None:
            most = Device.parse(settings.max_device, "max_device").here("max_device").cores
        info = None if head is None else head[1]
        return cls(settings, folder, device, _cap_context(settings, folder), most, info)

    @property
    def draft_method(self) -> DraftMethod:
        """How a drafter with this plan drafts."""
        if self.head is not None:
            return DraftMethod.EAGLE
        return self.settings.draft_method or DraftMethod.MODEL

    def check_model(self) -> str:
        """Build the model without its weights and return in one line what it will run on.

        Raises:
            ModelError: it cannot be built. ConfigError: dtype or kernels cannot be had here.
        """
        settings = self.settings
        if not settings.has_model:
            return "no model, n-grams of the request"
        if self.head is not None:
            from minedraft_workers.execution.eagle.loading import foresee_head

            return foresee_head(self.head, dtype=settings.dtype, kernels=settings.kernels, device=self.device)
        from minedraft_workers.execution.choice import foresee_kernels

        return foresee_kernels(self.folder.path, dtype=settings.dtype, kernels=settings.kernels, device=self.device)

    def run(self, notifier: Notifier) -> int:
        """Load the model and serve until a signal, and tell the supervisor. Return the exit code.

        Raises:
            ConfigError: device, model, memory or address cannot be used.
        """
        start_s = time.monotonic()
        with StartExtension(notifier, "loading torch"):
            pin(self.device)
            from minedraft_workers.channels.joined import JoinedChannel
            from minedraft_workers.channels.opening import Opener

            logger.info("torch imported on %s in %.1f s", self.device, time.monotonic() - start_s)
            notifier.status(f"loading {self.folder.name}")
            # One opener for each session: what an opener allocates once, its ends fill from the start.
            openers = [Opener(self.device) for _ in range(self.settings.sessions)]
            channels = [JoinedChannel(opener.open) for opener in openers]
            actors = load_actors(self, channels)
            for actor, opener in zip(actors, openers, strict=True):
                actor.info = replace(actor.info, channels=opener.offers())
        return run_serving(_serve(self, actors, channels, notifier, start_s))


def load_actors(plan: Plan, channels: Sequence[TokenChannel | None]) -> Sequence[DrafterActor | VerifierActor]:
    """Return the actors of the worker's role, one for each session, with the model loaded if there is one.

    Args:
        channels: of each session.

    Raises:
        ModelError: the model cannot run here. ConfigError: model or KV cache do not fit in the memory.
    """
    from minedraft_workers.drafter import DrafterActor

    settings = plan.settings
    if not settings.has_model:
        from minedraft_workers.proposers.ngram import NgramProposer

        info, guides = _make_info(plan, None), _make_guides(plan)
        return [DrafterActor(NgramProposer(), info, channel, guides) for channel in channels]
    import torch

    from minedraft_workers.execution.eagle.head import EagleHead
    from minedraft_workers.execution.memory import check_context, first_sentence
    from minedraft_workers.verifier import VerifierActor

    start_s = time.monotonic()
    try:
        model = _load_model(plan)
    except torch.OutOfMemoryError as error:
        raise _no_memory(plan, first_sentence(error)) from error
    logger.info(
        "%s loaded as %s (%.0f MB) in %.1f s; %s kernels: %s",
        model.model_name,
        model.dtype_name,
        model.weights_bytes / 1e6,
        time.monotonic() - start_s,
        model.kernels,
        model.kernels_reason,
    )
    sampler = _make_sampler(plan, model)
    if settings.role is Role.VERIFIER:
        assert not isinstance(model, EagleHead), "a head drafts"
        check_context(plan.max_model_len, plan.folder.max_context, model.num_blocks * model.block_size)
        info = _make_info(plan, model)
        _want_features(plan, model)
        return [VerifierActor(model, info, sampler, channels[0], _make_guides(plan))]
    guides = _make_guides(plan)
    parts = [model] if len(channels) == 1 else model.divide(len(channels))
    return [
        DrafterActor(_make_proposer(plan, part, sampler), _make_info(plan, part), channel, guides, _resizer(part))
        for part, channel in zip(parts, channels, strict=True)
    ]


def _load_model(plan: Plan) -> Executor | EagleHead:
    from minedraft_workers.execution.eagle.loading import load_head
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.execution.options import LoadOptions

    settings = plan.settings
    options = LoadOptions(
        device=plan.device,
        dtype=settings.dtype,
        kernels=settings.kernels,
        max_model_len=plan.max_model_len,
        num_blocks=settings.num_blocks,
        block_size=settings.block_size,
        memory_share=settings.memory_share,
        max_requests=settings.max_requests,
    )
    return Executor.load(plan.folder.path, options) if plan.head is None else load_head(plan.head, options)


def _want_features(plan: Plan, model: Executor) -> None:
    """Have the model prepared for the head that will read its features, if it is known."""
    if plan.settings.head is not None:
        model.want_features(check_head_folder(plan.settings.head, plan.folder, "head").feature_layers)


def _make_guides(plan: Plan) -> Guides:
    """Return what makes guides from grammars; a head has no tokenizer of its own."""
    from minedraft_workers.sampling.guides import Guides

    return Guides(plan.folder.path if plan.head is None or plan.settings.target is None else plan.settings.target)


def _make_proposer(plan: Plan, model: Executor | EagleHead, sampler: Sampler) -> Proposer:
    from minedraft_workers.execution.eagle.head import EagleHead
    from minedraft_workers.proposers.combined import CombinedProposer
    from minedraft_workers.proposers.draft_model import ModelProposer
    from minedraft_workers.proposers.eagle import EagleProposer

    proposer: Proposer
    proposer = EagleProposer(model, sampler) if isinstance(model, EagleHead) else ModelProposer(model, sampler)
    return CombinedProposer(proposer) if plan.settings.lookup else proposer


async def _serve(
    plan: Plan,
    actors: Sequence[DrafterActor | VerifierActor],
    channels: Sequence[JoinedChannel],
    notifier: Notifier,
    start_s: float,
) -> int:
    from minedraft_workers.drafter import DrafterActor
    from minedraft_workers.rounds.runtime import WorkerRuntime
    from minedraft_workers.server import serve_worker
    from minedraft_workers.servicer import drafter_handler, verifier_handler

    actor = actors[0]
    runtime = WorkerRuntime(actor, cores=_make_cores(actors), others=actors[1:])
    if plan.settings.has_model:
        try:
            with StartExtension(notifier, "warming up"):
                await runtime.prepare(lambda: prepare_actor(plan.device, actor, notifier.status))
        except MemoryExhausted as error:
            raise _no_memory(plan, str(error)) from error
        for other in actors[1:]:
            other.info = replace(other.info, kernels=actor.info.kernels)
    if isinstance(actor, DrafterActor):
        others = [each for each in actors[1:] if isinstance(each, DrafterActor)]
        handler = drafter_handler(actor, runtime, channels[0], list(zip(others, channels[1:], strict=True)))
    else:
        handler = verifier_handler(actor, runtime, channels[0])
    info = actor.info

    def on_ready() -> None:
        logger.info(
            "ready on %s after %.1f s: %s, %s, %s%d KV blocks of %d tokens, context %d",
            plan.settings.listen_address,
            time.monotonic() - start_s,
            info.model_name,
            info.device,
            f"for each of {len(actors)} schedulers " if len(actors) > 1 else "",
            info.num_blocks,
            info.block_size,
            info.max_model_len,
        )

    address, tls = plan.settings.listen_address, worker_tls(plan.settings)
    return await serve_worker(runtime, handler, address, tls=tls, on_ready=on_ready, notifier=notifier)


def _make_cores(actors: Sequence[DrafterActor | VerifierActor]) -> WorkerCores | None:
    """Return the worker's cores if they can change; those of a worker with several sessions cannot."""
    info = actors[0].info
    return WorkerCores(info.cores, info.max_cores, actors[0].resize) if info.max_cores else None


def prepare_actor(
    device: Device, actor: DrafterActor | VerifierActor, say: Callable[[str], object] = lambda text: None
) -> None:
    """Make the device the device thread's own, capture CUDA graphs where there are some, and rehearse.

    Args:
        say: told how far it has got.

    Raises:
        MemoryExhausted: the device has no room for that.
    """
    enter_thread(device)
    graphs = actor.graphs
    if graphs is not None:
        graphs.capture(say)
        actor.info = replace(actor.info, kernels=graphs.kernels)
    rehearse(actor)


def _no_memory(plan: Plan, cause: str) -> ConfigError:
    limit = f"{plan.folder.name} does not fit on {plan.device}: {cause}; the other worker may have too large a share"
    return ConfigError("memory_share", plan.settings.memory_share, limit)


def _make_sampler(plan: Plan, model: Executor | EagleHead) -> Sampler:
    from minedraft_workers.sampling.sampler import Sampler

    if plan.settings.kernels in ("torch", "transformers") or plan.device.kind != "cpu":
        return Sampler()
    return Sampler.best(max(len(plan.device.cores), 1), model.pool)


def _resizer(model: Executor | EagleHead) -> Callable[[int], None] | None:
    return None if model.pool is None else model.pool.resize


def _make_info(plan: Plan, executor: Executor | EagleHead | None) -> WorkerInfo:
    settings, folder = plan.settings, plan.folder
    feature_layers, feature_size = _list_features(plan, executor)
    return WorkerInfo(
        role=settings.role,
        epoch=0,  # set by the runtime
        protocol_version=PROTOCOL_VERSION,
        vocab_size=executor.vocab_size if executor else folder.vocab_size,
        vocab_fingerprint=vocab_fingerprint(folder.path),
        num_blocks=executor.num_blocks if executor else 0,
        block_size=executor.block_size if executor else settings.block_size,
        max_model_len=executor.max_model_len if executor else plan.max_model_len or folder.max_context,
        model_name=executor.model_name if executor else plan.draft_method.value,
        device=str(plan.device),
        dtype=executor.dtype_name if executor else "none",
        draft_method=plan.draft_method if settings.role is Role.DRAFTER else None,
        kernels=executor.described_kernels if executor else "",
        is_batch_invariant=executor.is_batch_invariant if executor else True,
        weights_bytes=executor.weights_bytes if executor else 0,
        cores=plan.device.cores,
        max_cores=plan.max_cores if executor and executor.pool and settings.sessions == 1 else (),
        feature_layers=feature_layers,
        feature_size=feature_size,
    )


def _list_features(plan: Plan, executor: Executor | EagleHead | None) -> tuple[tuple[int, ...], int]:
    """Return the layers that a verifier can give the outputs of, with the numbers of one of them, or those that a
    drafter needs, with the numbers of all together."""
    if plan.head is not None:
        return plan.head.feature_layers, plan.head.feature_size
    if plan.settings.role is not Role.VERIFIER or executor is None:
        return (), 0
    from minedraft_workers.execution.executor import Executor

    assert isinstance(executor, Executor), "a verifier runs a model"
    return executor.find_feature_layers(), executor.hidden_size


def _find_head(settings: WorkerSettings) -> tuple[FolderInfo, HeadInfo] | None:
    """Return the drafting head in the model folder and, as the folder that says what it is for others, the target's
    with the head's name and context; None if the worker runs no head.

    Raises:
        ModelError: the folder holds no head, or none for this target. ConfigError: the target is missing, or not used.
    """
    method, target = settings.draft_method, settings.target
    if settings.role is Role.DRAFTER and settings.head is not None:
        raise ConfigError("head", str(settings.head), "only a verifier gives features to one")
    if settings.role is Role.DRAFTER and method is None and is_head_folder(settings.model):
        method = DraftMethod.EAGLE
    if settings.role is not Role.DRAFTER or method is not DraftMethod.EAGLE:
        if target is not None:
            raise ConfigError("target", str(target), "only a drafter with draft_method eagle needs it")
        return None
    if target is None:
        raise ConfigError("target", None, "required with draft_method eagle: the target's model folder")
    folder = check_model_folder(target, "target")
    head = check_head_folder(settings.model, folder, "model")
    return replace(folder, name=head.name, max_context=head.max_context), head


def _check_sessions(settings: WorkerSettings) -> None:
    """Raise ConfigError for more sessions than one where they cannot be."""
    sessions, num_blocks = settings.sessions, settings.num_blocks
    if sessions > 1 and settings.role is not Role.DRAFTER:
        raise ConfigError("sessions", sessions, "a verifier serves one scheduler; a drafter can serve several")
    if num_blocks is not None and num_blocks < sessions * MIN_BLOCKS:
        limit = f"each session needs {MIN_BLOCKS} KV blocks, and num_blocks is {num_blocks}"
        raise ConfigError("sessions", sessions, limit)


def _cap_context(settings: WorkerSettings, folder: FolderInfo) -> int | None:
    """Return the worker's maximum of tokens per sequence, None for the model's limit.

    If it is less than requested, a drafter serves less (near the end of the context nothing is drafted);
    for a verifier that raises ConfigError.
    """
    max_model_len = settings.max_model_len
    limit, why = folder.max_context, f"the context of {folder.name} is {folder.max_context} tokens"
    num_blocks = None if settings.num_blocks is None else settings.num_blocks // settings.sessions
    if num_blocks is not None and num_blocks * settings.block_size < limit:
        limit = num_blocks * settings.block_size
        why = f"num_blocks {num_blocks} of block_size {settings.block_size} hold {limit} tokens"
    if max_model_len is None or max_model_len <= limit:
        return max_model_len
    if settings.role is Role.DRAFTER:
        return limit
    raise ConfigError("max_model_len", max_model_len, why)
