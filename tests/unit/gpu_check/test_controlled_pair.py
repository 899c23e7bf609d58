"""The controlled models in the product's executor and actors: greedy is the map, acceptance is what it predicts."""

from __future__ import annotations

import numpy as np
import pytest

from minedraft.device import Device, usable_cores
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.verifier import VerifierActor
from scripts.gpu.controlled.actors import make_actor
from scripts.gpu.controlled.executor import make_executor
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.token_map import TokenMap

DRAFT_LEN = 4
NUM_IDS = SHAPES["tiny"].vocab_size
MAP = TokenMap.make(NUM_IDS, 0.8)
ROUND = RoundId(0, Batch.A, 0)
SPEC = SequenceSpec(SamplingParams(max_new_tokens=16), 1, 0, Acceptance.GREEDY)


def make(shape: str, successors: np.ndarray, dtype: str, kernels: str = "auto") -> Executor:
    device = Device.parse(f"cpu:{usable_cores()[0]}")
    sizes = {"dtype": dtype, "num_blocks": NUM_IDS + 8, "kernels": kernels}
    return make_executor(shape, SHAPES[shape], successors, device, **sizes)


@pytest.mark.parametrize("kernels", ["transformers", "torch", "auto"])
@pytest.mark.parametrize("shape", ["tiny", "tiny-qwen"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_greedy_is_the_map_for_every_id(dtype: str, shape: str, kernels: str) -> None:
    executor = make(shape, MAP.target, dtype, kernels)
    logits = executor.forward([ForwardSpan(i, 0, [i], 1) for i in range(NUM_IDS)])
    assert logits.argmax(-1).tolist() == MAP.target.tolist()
    best, second = logits.topk(2).values.unbind(-1)
    assert float((best - second).min()) > 2, "no rounding and no other kernel can turn this round"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_acceptance_by_position_is_exactly_what_the_map_predicts(dtype: str) -> None:
    drafter = make_actor(Role.DRAFTER, make("tiny-draft", MAP.draft, dtype))
    verifier = make_actor(Role.VERIFIER, make("tiny", MAP.target, dtype))
    assert isinstance(drafter, DrafterActor)
    assert isinstance(verifier, VerifierActor)
    command = DraftCommand(ROUND, tuple(DraftSpan(i, 0, (i,), DRAFT_LEN, SPEC) for i in range(NUM_IDS)))
    drafts = [proposal.tokens for proposal in drafter.draft(command).rows]
    assert drafts == [tuple(MAP.drafts(i, DRAFT_LEN)) for i in range(NUM_IDS)]
    spans = tuple(VerifySpan(i, 0, (i,), drafts[i], spec=SPEC) for i in range(NUM_IDS))
    verdicts = verifier.verify(VerifyCommand(ROUND, spans)).rows
    assert [list(verdict.tokens) for verdict in verdicts] == [
        MAP.answer(i, verdict.accepted_len + 1) for i, verdict in enumerate(verdicts)
    ]
    shares = [sum(v.accepted_len > position for v in verdicts) / NUM_IDS for position in range(DRAFT_LEN)]
    assert shares == MAP.acceptance(range(NUM_IDS), DRAFT_LEN)
    assert shares[0] == round(0.8 * NUM_IDS) / NUM_IDS
