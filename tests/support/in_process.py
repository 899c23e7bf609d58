"""The real actors with real models, called directly: the product without processes and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from minedraft.device import Device, usable_cores
from minedraft.errors import WorkerLost
from minedraft.messages import DraftCommand, DraftReply, LinkStats, Timing, VerifyCommand, VerifyReply, WorkerInfo
from minedraft.models.folder import check_model_folder
from minedraft.models.heads.folder import check_head_folder
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role
from minedraft_workers.composition import Plan, load_actors
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.eagle.head import EagleHead
from minedraft_workers.execution.eagle.loading import load_head
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.proposers.combined import CombinedProposer
from minedraft_workers.proposers.draft_model import ModelProposer
from minedraft_workers.proposers.eagle import EagleProposer
from minedraft_workers.proposers.ngram import NgramProposer
from minedraft_workers.rounds.following import Follower
from minedraft_workers.sampling.guides import Guides
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.verifier import VerifierActor
from tests.fakes.loopback import deliver_draft, deliver_verify


def load_actor(plan: Plan) -> DrafterActor | VerifierActor:
    """Return the actor of a worker with one session, whose tensors travel in messages."""
    (actor,) = load_actors(plan, [None])
    return actor


def load_executor(folder: Path, *, num_blocks: int = 256, block_size: int = 4, dtype: str = "float32") -> Executor:
    options = LoadOptions(_one_core(), dtype=dtype, num_blocks=num_blocks, block_size=block_size)
    return Executor.load(folder, options)


def load_tiny_head(folder: Path, target: Path, *, num_blocks: int = 256, dtype: str = "float32") -> EagleHead:
    info = check_head_folder(folder, check_model_folder(target, "target"), "draft")
    return load_head(info, LoadOptions(_one_core(), dtype=dtype, num_blocks=num_blocks, block_size=4))


def _one_core() -> Device:
    """Return a device on which kernels compute in the calling thread: threads that wait for each other take a hundred
    times as long on a busy machine."""
    return Device("cpu", usable_cores()[:1])


def make_info(role: Role, executor: Executor | EagleHead) -> WorkerInfo:
    if isinstance(executor, EagleHead):
        layers, size = executor.feature_layers, executor.feature_size
    else:
        is_target = role is Role.VERIFIER
        layers, size = (executor.find_feature_layers(), executor.hidden_size) if is_target else ((), 0)
    return WorkerInfo(
        role=role,
        epoch=1,
        protocol_version=PROTOCOL_VERSION,
        vocab_size=executor.vocab_size,
        vocab_fingerprint="tiny",
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        max_model_len=executor.max_model_len,
        model_name=executor.model_name,
        device=executor.device_name,
        dtype=executor.dtype_name,
        feature_layers=layers,
        feature_size=size,
    )


class _InProcess:
    """A link that is never lost."""

    actor: DrafterActor | VerifierActor

    def __init__(self) -> None:
        self.stats = LinkStats()
        self.lost = asyncio.Event()
        self.lost_error: WorkerLost | None = None

    def give_up(self, cause: str) -> None:
        raise AssertionError(f"given up: {cause}")

    async def close(self) -> None:
        pass

    async def configure(self, cores: Sequence[int]) -> Timing:
        raise AssertionError("it keeps its cores")

    async def release(self, request_ids: Sequence[int]) -> int:
        self.actor.release(request_ids)
        return self.actor.num_free_blocks


class InProcessVerifier(_InProcess):
    actor: VerifierActor

    def __init__(self, executor: Executor, sampler: Sampler | None = None, guides: Guides | None = None) -> None:
        super().__init__()
        self.info = make_info(Role.VERIFIER, executor)
        self.actor = VerifierActor(executor, self.info, sampler, guides=guides)
        self._follower = Follower(self.actor.verify, self.actor.release)
        self.executor = executor

    def curtail(self, number: int) -> None:
        self._follower.curtail(self.info.epoch, number)

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        await asyncio.sleep(0)
        return deliver_verify(command, self.info, self._run)

    def _run(self, command: VerifyCommand) -> VerifyReply:
        return VerifyReply(command.round, self._follower.verify(command).rows, Timing(), self.actor.num_free_blocks)


class InProcessDrafter(_InProcess):
    actor: DrafterActor

    def __init__(
        self,
        executor: Executor | EagleHead | None,
        verifier: InProcessVerifier,
        *,
        ngram: bool = False,
        lookup: bool = False,
        guides: Guides | None = None,
        as_on_gpu: bool = False,
    ) -> None:
        """as_on_gpu: with a draft model, keep the tokens of a round on the device, and choose for all rows together."""
        super().__init__()
        if executor is None or ngram:
            no_model = {"num_blocks": 0, "draft_method": DraftMethod.NGRAM, "feature_layers": (), "feature_size": 0}
            self.info = replace(verifier.info, role=Role.DRAFTER, **no_model)
            self.actor = DrafterActor(NgramProposer(), self.info, guides=guides)
        elif isinstance(executor, EagleHead):
            self.info = make_info(Role.DRAFTER, executor)
            self.actor = DrafterActor(EagleProposer(executor), self.info, guides=guides)
        else:
            self.info = replace(make_info(Role.DRAFTER, executor), draft_method=DraftMethod.MODEL)
            sampler = Sampler(is_batched=True) if as_on_gpu else None
            model = ModelProposer(executor, sampler, loops_on_device=as_on_gpu)
            self.actor = DrafterActor(CombinedProposer(model) if lookup else model, self.info, guides=guides)
        self.actor.reset(verifier.info.vocab_size)  # as a handshake does

    async def draft(self, command: DraftCommand) -> DraftReply:
        await asyncio.sleep(0)
        return deliver_draft(command, self.info, self._run)

    prefill = draft

    def _run(self, command: DraftCommand) -> DraftReply:
        work = self.actor.draft(command)
        return DraftReply(command.round, work.rows, Timing(), self.actor.num_free_blocks, work.num_not_finite)
