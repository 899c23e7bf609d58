"""The drafter runs ahead with real models: what it prepares for a branch is what it would draft if the branch's
tokens were committed, and each branch can become the request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minedraft.device import Device
from minedraft.errors import InvalidRequest
from minedraft.messages import DraftCommand, DraftSpan, Proposal, RunAhead
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, RoundId, SequenceSpec
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.native import why_missing
from tests.support.tiny_models import make_tiny_model

PROMPT = (5, 17, 9, 80, 41, 5, 17)
NUM_BLOCKS = 64
KINDS = {
    "greedy": (Acceptance.GREEDY, SamplingParams()),
    "coupled": (Acceptance.COUPLED, SamplingParams(temperature=1.0, seed=3)),
    "rejection": (Acceptance.REJECTION, SamplingParams(temperature=1.0)),
    "penalties": (
        Acceptance.REJECTION,
        SamplingParams(temperature=1.0, repetition_penalty=1.3, frequency_penalty=0.4, min_new_tokens=4),
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("ahead") / "model", seed=4, head_dim=16)


class Drafter:
    """A drafter to ask span by span."""

    def __init__(self, executor: Executor | None, verifier_of: Executor | None = None) -> None:
        some = executor or verifier_of
        assert some is not None
        self.actor = InProcessDrafter(executor, InProcessVerifier(some)).actor
        self._number = 0

    def ask(self, *spans: DraftSpan, released: tuple[int, ...] = ()) -> Sequence[Proposal]:
        self._number += 1
        return self.actor.draft(DraftCommand(RoundId(1, Batch.A, self._number), spans, released)).rows

    def draft_anew(self, request_id: int, tokens: Sequence[int], draft_len: int, spec: SequenceSpec) -> Proposal:
        (proposal,) = self.ask(DraftSpan(request_id, 0, tuple(tokens), draft_len, spec))
        return proposal


def load(folder: Path, kernels: str) -> Executor:
    if kernels == "native" and why_missing():
        pytest.skip(why_missing())
    device = Device.parse("cpu").here()
    options = LoadOptions(device, dtype="float32", kernels=kernels, num_blocks=NUM_BLOCKS, block_size=4)
    return Executor.load(folder, options)


def same(a: Proposal, b: Proposal) -> bool:
    if (a.committed_len, a.tokens) != (b.committed_len, b.tokens) or (a.q is None) is not (b.q is None):
        return False
    if a.q is None or b.q is None:
        return True
    probs = (np.frombuffer(q.probs.data, "<f4") for q in (a.q, b.q))
    return a.q.ids == b.q.ids and np.allclose(*probs, atol=1e-5)


@pytest.mark.parametrize("kernels", ["torch", "native", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_prepared_for_a_branch_is_what_its_tokens_would_give(kind: str, kernels: str, folder: Path) -> None:
    acceptance, sampling = KINDS[kind]
    spec = SequenceSpec(sampling, len(PROMPT), 11, acceptance, (2,))
    drafter = Drafter(load(folder, kernels))
    drafts = drafter.draft_anew(1, PROMPT, 3, spec).tokens
    ahead = DraftSpan(1, len(PROMPT) - 1, (PROMPT[-1], *drafts), 3, ahead=RunAhead(3, 6))
    proposals = drafter.ask(ahead)
    assert len(proposals) > 2
    assert proposals[0].branch is not None
    assert proposals[0].branch.accepted_len == 3
    for index, proposal in enumerate(proposals):
        assert proposal.branch is not None
        lead = (*drafts[: proposal.branch.accepted_len], proposal.branch.token)
        anew = drafter.draft_anew(100 + index, (*PROMPT, *lead), 3, spec)
        assert same(replace(proposal, branch=None), anew)
    drafter.ask(released=(1, *range(100, 100 + len(proposals))))
    assert drafter.actor.num_free_blocks == NUM_BLOCKS


@pytest.mark.parametrize("kernels", ["torch", "native", "transformers"])
@pytest.mark.parametrize("draft_len", [1, 3, 6])
def test_every_branch_can_become_the_request_and_be_run_ahead_of_again(
    draft_len: int, kernels: str, folder: Path
) -> None:
    """Twice in a row, so that a branch grows from a branch; the next drafts are as if nothing had been prepared."""
    spec = SequenceSpec(SamplingParams(), len(PROMPT), 0, Acceptance.GREEDY)
    drafter = Drafter(load(folder, kernels))
    for choice in range(5):
        committed, drafts, branch = PROMPT, drafter.draft_anew(1, PROMPT, draft_len, spec).tokens, 0
        for _ in range(3):
            tokens = (committed[-1], *drafts)
            ahead = RunAhead(len(drafts), 5)
            proposals = drafter.ask(DraftSpan(1, len(committed) - 1, tokens, draft_len, branch=branch, ahead=ahead))
            branch = min(choice, len(proposals) - 1)
            taken = proposals[branch].branch
            assert taken is not None
            committed = (*committed, *drafts[: taken.accepted_len], taken.token)
            drafts = proposals[branch].tokens
        (after,) = drafter.ask(DraftSpan(1, len(committed) - 1, committed[-1:], draft_len, branch=branch))
        assert after.tokens == drafter.draft_anew(2, committed, draft_len, spec).tokens == drafts
        drafter.ask(released=(1, 2))
        assert drafter.actor.num_free_blocks == NUM_BLOCKS


def test_a_request_goes_on_from_its_own_tokens_if_no_branch_came_true(folder: Path) -> None:
    spec = SequenceSpec(SamplingParams(), len(PROMPT), 0, Acceptance.GREEDY)
    drafter = Drafter(load(folder, "torch"))
    drafts = drafter.draft_anew(1, PROMPT, 3, spec).tokens
    drafter.ask(DraftSpan(1, len(PROMPT) - 1, (PROMPT[-1], *drafts), 3, ahead=RunAhead(3, 4)))
    committed = (*PROMPT, *drafts[:1], 7)
    (proposal,) = drafter.ask(DraftSpan(1, len(committed) - 1, committed[-1:], 3))
    assert proposal.tokens == drafter.draft_anew(2, committed, 3, spec).tokens
    with pytest.raises(InvalidRequest, match="branch") as caught:
        drafter.ask(DraftSpan(1, len(committed) - 1, committed[-1:], 3, branch=1))
    assert caught.value.request_id == 1


def test_with_too_few_blocks_there_are_fewer_branches_and_the_request_is_intact(folder: Path) -> None:
    spec = SequenceSpec(SamplingParams(), len(PROMPT), 0, Acceptance.GREEDY)
    executor = load_executor(folder, num_blocks=5)
    drafter = Drafter(executor)
    drafts = drafter.draft_anew(1, PROMPT, 3, spec).tokens
    proposals = drafter.ask(DraftSpan(1, len(PROMPT) - 1, (PROMPT[-1], *drafts), 3, ahead=RunAhead(3, 6)))
    assert 0 < len(proposals) < 6
    drafter.ask(released=(1,))
    assert executor.num_free_blocks == 5


def test_near_the_end_of_the_context_a_branch_gets_the_drafts_that_fit(folder: Path) -> None:
    spec = SequenceSpec(SamplingParams(), 2, 0, Acceptance.GREEDY)
    executor = load_executor(folder, num_blocks=4)  # 16 tokens
    for prompt_len, num_drafts in ((8, 3), (11, 3), (12, 2), (13, 1), (14, 0)):
        prompt, drafter = tuple(range(3, 3 + prompt_len)), Drafter(executor)
        drafter.ask(DraftSpan(1, 0, prompt, 0, spec))
        proposals = drafter.ask(DraftSpan(1, prompt_len - 1, (prompt[-1], 9, 8), 3, ahead=RunAhead(2, 1)))
        assert [len(proposal.tokens) for proposal in proposals] == ([num_drafts] if num_drafts else [])
        drafter.ask(released=(1,))
        assert executor.num_free_blocks == 4


@pytest.mark.parametrize("kernels", ["torch", "native", "transformers"])
def test_a_fork_reads_its_requests_tokens_and_shares_no_later_one(kernels: str, folder: Path) -> None:
    executor = load(folder, kernels)
    tokens = list(range(3, 3 + 11))
    executor.forward([ForwardSpan(1, 0, tokens, 1)])
    for prefix_len in (1, 4, 7, 8, 11):
        fork = executor.fork(1, prefix_len)
        alone = executor.forward([ForwardSpan(2, 0, [*tokens[:prefix_len], 90, 91, 92, 93, 94], 1)])
        forked = executor.forward([ForwardSpan(fork, prefix_len, [90, 91, 92, 93, 94], 1)])
        assert (alone - forked).abs().max() < 1e-4
        again = executor.forward([ForwardSpan(2, 0, [*tokens, 70], 1)])
        assert (again - executor.forward([ForwardSpan(1, len(tokens), [70], 1)])).abs().max() < 1e-4
    executor.release(2)
    executor.adopt(1, fork)
    assert executor.cached_len(1) == 11 + 5
    executor.release(1)
    assert executor.num_free_blocks == NUM_BLOCKS


def test_prompt_lookup_prepares_what_followed_the_same_words(folder: Path) -> None:
    spec = SequenceSpec(SamplingParams(), 8, 0, Acceptance.GREEDY)
    drafter = Drafter(None, load_executor(folder))
    text = (1, 2, 3, 4, 5, 6, 1, 2)
    drafts = drafter.draft_anew(1, text, 2, spec).tokens
    assert drafts == (3, 4)
    (proposal,) = drafter.ask(DraftSpan(1, 7, (2, *drafts), 2, ahead=RunAhead(2, 4)))
    assert (proposal.committed_len, proposal.tokens) == (11, (6, 1))
    assert proposal.branch is not None
    assert proposal.branch.token == 5
    (after,) = drafter.ask(DraftSpan(1, 9, (3, 9), 2))  # the second draft was rejected
    assert after.committed_len == 11
    assert drafter.ask(DraftSpan(1, 10, (9, 77), 2, ahead=RunAhead(1, 4))) == ()
