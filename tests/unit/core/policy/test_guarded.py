"""Policies decide as far as their answers make sense; a policy that fails costs speed and nothing else."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from minedraft.carriers import Carrier
from minedraft.core.policy.base import DraftOffer, ModeDecision
from minedraft.core.policy.guarded import GuardedDraftPolicy, GuardedModePolicy
from minedraft.core.request import NewRequest, Request
from minedraft.core.rounds import shorten
from minedraft.messages import Proposal, Tensor, TensorRef, TruncatedQ
from minedraft.sampling_params import SamplingParams
from minedraft.types import LoanTerms, Mode

REQUEST = Request.create(1, NewRequest((1, 2), SamplingParams()))
OFFERS = [DraftOffer(1, 4), DraftOffer(2, 2)]


class Says:
    """A policy that gives these answers; an exception is raised."""

    def __init__(self, draft_len: object = 0, lens: object = (), terms: object = None) -> None:
        self.answers = {"draft_len": draft_len, "select": lens, "wanted": terms}

    def _answer(self, name: str) -> object:
        answer = self.answers[name]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> object:
        return self._answer("draft_len")

    def select(self, offers: Sequence[DraftOffer]) -> object:
        return self._answer("select")

    def wanted(self, now_s: float) -> object:
        return self._answer("wanted")

    def observe(self, event: object, now_s: float) -> None:
        pass


@pytest.mark.parametrize(("answer", "used"), [(2, 2), (0, 0), (-3, 0), (99, 5)])
def test_a_number_of_drafts_out_of_range_is_the_nearest_in_range(answer: int, used: int) -> None:
    failures: list[str] = []
    assert GuardedDraftPolicy(Says(answer), failures.append).draft_len(REQUEST, 3, 5) == used
    assert not failures


@pytest.mark.parametrize("answer", [None, 1.5, True, "3", KeyError("x")])
def test_an_answer_that_is_no_number_replaces_the_policy(answer: object) -> None:
    failures: list[str] = []
    policy = GuardedDraftPolicy(Says(answer), failures.append)
    assert policy.draft_len(REQUEST, 3, 16) == 3, "few drafts never cost much"
    assert policy.draft_len(REQUEST, 3, 2) == 2
    assert len(failures) == 1, "it is asked no more"
    assert failures[0].startswith("Says.draft_len: ")


@pytest.mark.parametrize(
    ("answer", "used", "fails"),
    [((1, 2), [1, 2], False), ((9, -1), [4, 0], False), ((1,), [4, 2], True), (None, [4, 2], True),
     (("a", "b"), [4, 2], True), (OSError("x"), [4, 2], True)],
)  # fmt: skip
def test_what_to_verify_is_a_number_for_each_offer(answer: object, used: list[int], fails: bool) -> None:
    failures: list[str] = []
    assert list(GuardedDraftPolicy(Says(lens=answer), failures.append).select(OFFERS)) == used
    assert bool(failures) is fails


@pytest.mark.parametrize(
    "terms",
    [ModeDecision(LoanTerms(Mode.SD, 0, 1), ""), ModeDecision(LoanTerms(Mode.SD, 1, 99), ""), "sd", ValueError("x")],
)
def test_terms_that_cannot_be_replace_the_policy(terms: object) -> None:
    failures: list[str] = []
    policy = GuardedModePolicy(Says(terms=terms), failures.append)
    assert policy.wanted(0.0) is None
    assert policy.wanted(1.0) is None
    assert len(failures) == 1


def test_a_shortened_proposal_keeps_the_rows_of_q_of_the_drafts_it_keeps() -> None:
    ids = Tensor("int32", (3, 2), array("i", range(6)).tobytes())
    probs = Tensor("float32", (3, 2), array("f", range(6)).tobytes())
    short = shorten(Proposal(1, 9, (5, 6, 7), TruncatedQ(ids, probs)), 2)
    assert short.tokens == (5, 6)
    assert short.q is not None
    assert (short.q.ids.shape, short.q.ids.data) == ((2, 2), array("i", range(4)).tobytes())
    assert (short.q.probs.shape, short.q.probs.data) == ((2, 2), array("f", range(4)).tobytes())
    assert shorten(short, 0) == Proposal(1, 9, ())
    assert shorten(short, 5) is short


def test_a_shortened_reference_is_the_first_rows_of_the_same_lease() -> None:
    lease = TensorRef(Carrier.SHM, 5, 64, 9, 24)
    q = TruncatedQ(Tensor("int32", (3, 2), reference=lease), Tensor("float32", (3, 2), reference=lease))
    short = shorten(Proposal(1, 9, (5, 6, 7), q), 2).q
    assert short == TruncatedQ(Tensor("int32", (2, 2), reference=lease), Tensor("float32", (2, 2), reference=lease))
    assert short is not None
    assert short.ids.reference is lease  # the same object: it is free when no value holds it
