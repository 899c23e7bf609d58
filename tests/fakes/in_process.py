"""The real actors with real models, called directly: all of the product but the processes and gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from minedraft_workers.device import Device
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.model import Executor
from minedraft_workers.model_proposer import ModelProposer
from minedraft_workers.ngram_proposer import NgramProposer
from minedraft_workers.verifier import VerifierActor

from minedraft.types import (
    PROTOCOL_VERSION,
    DraftCommand,
    DraftReply,
    Role,
    Timing,
    VerifyCommand,
    VerifyReply,
    WorkerInfo,
)


def load_executor(folder: Path, *, num_blocks: int = 256, block_size: int = 4, dtype: str = "float32") -> Executor:
    return Executor.load(folder, device=Device.parse("cpu"), dtype=dtype, num_blocks=num_blocks, block_size=block_size)


def _info(role: Role, executor: Executor) -> WorkerInfo:
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
    )


class InProcessVerifier:
    def __init__(self, executor: Executor) -> None:
        self.info = _info(Role.VERIFIER, executor)
        self.actor = VerifierActor(executor, self.info)
        self.executor = executor

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        await asyncio.sleep(0)
        work = self.actor.verify(command)
        return VerifyReply(command.round, work.rows, Timing(), self.actor.num_free_blocks)

    async def release(self, request_ids: Sequence[int]) -> int:
        self.actor.release(request_ids)
        return self.actor.num_free_blocks


class InProcessDrafter:
    def __init__(self, executor: Executor | None, verifier: InProcessVerifier, *, ngram: bool = False) -> None:
        if executor is None or ngram:
            self.info = verifier.info
            self.actor = DrafterActor(NgramProposer(self.info.num_blocks), self.info)
        else:
            self.info = _info(Role.DRAFTER, executor)
            self.actor = DrafterActor(ModelProposer(executor), self.info)

    async def draft(self, command: DraftCommand) -> DraftReply:
        await asyncio.sleep(0)
        work = self.actor.draft(command)
        return DraftReply(command.round, work.rows, Timing(), self.actor.num_free_blocks)

    prefill = draft

    async def release(self, request_ids: Sequence[int]) -> int:
        self.actor.release(request_ids)
        return self.actor.num_free_blocks
