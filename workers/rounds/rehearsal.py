"""A command of each kind, run before the first one that counts."""

from __future__ import annotations

from typing import cast

from minedraft.messages import DraftCommand, DraftSpan, Features, Tensor, VerifyCommand, VerifySpan, WorkerInfo
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.rounds.actors import Actor, DraftingActor, VerifyingActor


def rehearse(actor: Actor) -> None:
    """Run a command of each kind, in the device thread: the handles of CUDA's libraries are per thread, and a kernel is
    loaded when it is first used. So the first requests wait for neither.

    Raises:
        MemoryExhausted: the device has no room for such a command.
    """
    name, tokens = RoundId(0, Batch.A, 0), (0,) * 4
    for kind in Acceptance:  # one by one: they fit in the smallest cache
        params = SamplingParams(temperature=0.0 if kind is Acceptance.GREEDY else 1.0)
        spec = SequenceSpec(params, len(tokens), 0, kind)
        if actor.info.role is Role.DRAFTER:
            cast(DraftingActor, actor).draft(
                DraftCommand(name, (DraftSpan(1, 0, tokens, 2, spec, _no_features(actor.info, 3)),))
            )
        else:
            cast(VerifyingActor, actor).verify(VerifyCommand(name, (VerifySpan(1, 0, tokens, (0, 0), spec=spec),)))
        actor.reset(0)


def _no_features(info: WorkerInfo, num_tokens: int) -> tuple[Features, ...]:
    """Return zeros for a drafter that reads features; nothing for another one."""
    shape = (num_tokens, info.feature_size)
    return (Features(0, Tensor("float32", shape, bytes(4 * num_tokens * info.feature_size))),) if shape[1] else ()
