"""The product's actors over a controlled model."""

from __future__ import annotations

from pathlib import Path

from minedraft.messages import WorkerInfo
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.types import PROTOCOL_VERSION, DraftMethod, Role
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.executor import Executor
from minedraft_workers.proposers.draft_model import ModelProposer
from minedraft_workers.verifier import VerifierActor


def make_actor(role: Role, executor: Executor, tokenizer: Path | None = None) -> DrafterActor | VerifierActor:
    """Return the product's actor of the role.

    Args:
        tokenizer: folder of the tokenizer that it reports as its own; None where nobody asks.
    """
    info = WorkerInfo(
        role=role,
        epoch=0,  # set by the runtime
        protocol_version=PROTOCOL_VERSION,
        vocab_size=executor.vocab_size,
        vocab_fingerprint=vocab_fingerprint(tokenizer) if tokenizer is not None else "",
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        max_model_len=executor.max_model_len,
        model_name=executor.model_name,
        device=executor.device_name,
        dtype=executor.dtype_name,
        draft_method=DraftMethod.MODEL if role is Role.DRAFTER else None,
        kernels=executor.kernels,
        is_batch_invariant=executor.is_batch_invariant,
        weights_bytes=executor.weights_bytes,
    )
    if role is Role.VERIFIER:
        return VerifierActor(executor, info)
    return DrafterActor(ModelProposer(executor), info)
