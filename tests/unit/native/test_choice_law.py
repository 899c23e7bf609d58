"""The law of the native choice, by enumeration.

A choice is a function of random numbers from 0 to 1, in steps. The reference says where the steps are; the
native kernels are asked on both sides of each. What they choose there they choose in between, so the law is
the reference's up to the width that is not asked about, which is EDGE for each step. That the reference's law is
the target's is shown in tests/unit/workers/test_acceptance_law.py, with the same models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.native.choosing import ChoiceRequest, ChoiceRule, ChoosingKernels, LogitRows
from minedraft_workers.native.library import ISAS
from minedraft_workers.sampling.acceptance import SparseQ, accept_prob, distribution, read_q, residual
from minedraft_workers.sampling.choose import coupled_choice, truncate_q
from minedraft_workers.sampling.processors import process, usable_temperature
from minedraft_workers.sampling.randomness import Purpose, random_bits64
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState
from tests.unit.native.conftest import open_choosing

CPU = torch.device("cpu")
EDGE = 1e-6
SAMPLINGS = {
    "plain": {},
    "temperature": {"temperature": 0.4},
    "top-k": {"top_k": 3},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
    "min-p": {"min_p": 0.2},
    "all": {"temperature": 0.8, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
}


@pytest.fixture(scope="module", params=ISAS)
def choosing(request: pytest.FixtureRequest) -> ChoosingKernels:
    return open_choosing(request.param)


class Case:
    """One position: its logits, and what the reference makes of them."""

    def __init__(self, num_columns: int, seed: int, sampling: dict[str, float]) -> None:
        self.logits = 1.5 * torch.randn(2, num_columns, generator=torch.Generator().manual_seed(seed))
        params = SamplingParams(**{"temperature": 1.0, **sampling})
        self.state = SequenceState(1, SequenceSpec(params, 1, 1, Acceptance.REJECTION), [0])
        self.columns = columns_of(num_columns, CPU)
        self.processed = process(self.logits[0], self.state, [], self.columns)
        self.p = distribution(self.processed, num_columns)

    def request(self, rule: ChoiceRule, u_first: float, u_second: float = 0.0) -> ChoiceRequest:
        sampling = self.state.spec.sampling
        numbers = np.array([[bits_of(u_first), bits_of(u_second)]], np.uint64)
        temperature = usable_temperature(sampling.temperature)
        limits = sampling.top_k, sampling.top_p, sampling.min_p
        return ChoiceRequest(LogitRows(self.logits), 0, rule, 0, 0, (), temperature, *limits, numbers=numbers)

    def choose(self, kernels: ChoosingKernels, request: ChoiceRequest, top_m: int = 0) -> int:
        return kernels.choose([request], self.columns.noise.hashes, top_m).tokens[0][0]


def bits_of(u: float) -> int:
    return int(u * 2**53) << 11


def steps(weights: torch.Tensor) -> Iterator[tuple[int, float]]:
    """(index, u) just inside both ends of every index's share of the unit interval."""
    shares = weights.double() / weights.double().sum()
    ends = shares.cumsum(0)
    for index, (share, end) in enumerate(zip(shares.tolist(), ends.tolist(), strict=True)):
        if share > 2 * EDGE:
            yield index, end - share + EDGE
            yield index, min(end, 1.0) - EDGE


@pytest.mark.parametrize("num_columns", [5, 700])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_draw_is_the_targets_law(choosing: ChoosingKernels, sampling: str, num_columns: int):
    case = Case(num_columns, 1, SAMPLINGS[sampling])
    for token, u in steps(case.p):
        assert case.choose(choosing, case.request(ChoiceRule.ACCEPT, 0.0, u)) == token


@pytest.mark.parametrize("num_columns", [5, 300])
@pytest.mark.parametrize("top_m", [1, 2, 4])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_proposal_is_a_draw_from_what_it_says(choosing: ChoosingKernels, sampling: str, top_m: int, num_columns: int):
    case = Case(num_columns, 2, SAMPLINGS[sampling])
    kept, probs = truncate_q(case.processed, top_m)
    wanted = kept if case.processed.columns is None else case.processed.columns[kept]
    for index, u in steps(probs):
        said = choosing.choose([case.request(ChoiceRule.PROPOSE, u)], case.columns.noise.hashes, top_m)
        assert said.tokens == [[int(wanted[index])]]
        assert said.kept[0, : len(wanted)].tolist() == wanted.tolist()
        assert said.probs[0, : len(probs)].tolist() == pytest.approx(probs.tolist(), abs=1e-7)


def some_q(ids: Sequence[int], probs: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([ids], dtype=torch.int32), torch.tensor([probs])


QS = {
    "certain": None,
    "several": some_q([4, 1, 3, -1], [0.5, 0.3, 0.2, 0.0]),
    "not normalised, twice the same, partly wrong": some_q([1, 3, 1, 9999], [1.0, 2.0, 3.0, 4.0]),
    "without the draft": some_q([0, 2], [0.5, 0.5]),
    "nothing": some_q([-1, -1], [0.0, 0.0]),
}


@pytest.mark.parametrize("num_columns", [5, 300])
@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_acceptance_and_residual_are_those_whose_law_is_proven(
    choosing: ChoosingKernels, sampling: str, q: str, num_columns: int
):
    case = Case(num_columns, 3, SAMPLINGS[sampling])
    sent = QS[q]
    for draft in (1, 3, num_columns):
        sparse = (
            read_q(torch.tensor([draft]), torch.ones(1), num_columns)
            if sent is None
            else read_q(sent[0][0], sent[1][0], num_columns)
        )
        p_draft = float(case.p[draft]) if draft < num_columns else 0.0
        check_position(choosing, case, draft, sent, accept_prob(p_draft, sparse.of(draft)), sparse)


def check_position(
    kernels: ChoosingKernels,
    case: Case,
    draft: int,
    sent: tuple[torch.Tensor, torch.Tensor] | None,
    accept: float,
    q: SparseQ,
) -> None:
    def decide(u_accept: float, u_target: float) -> list[int]:
        request = case.request(ChoiceRule.ACCEPT, u_accept, u_target)
        request.drafts = [draft]
        request.q_ids, request.q_probs = sent if sent is not None else (None, None)
        assert request.numbers is not None
        request.numbers = np.concatenate([request.numbers, request.numbers])
        return kernels.choose([request], case.columns.noise.hashes).tokens[0]

    if accept > EDGE:
        for u_accept in (0.0, accept - EDGE):
            tokens = decide(u_accept, 0.5)
            assert len(tokens) == 2
            assert tokens[0] == draft
    if accept < 1.0 - EDGE:
        rest = residual(case.p, q)
        for token, u in steps(rest):
            for u_accept in (accept + EDGE, 1.0 - EDGE):
                assert decide(u_accept, u)[0] == token


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_position_has_the_random_numbers_of_the_reference(choosing: ChoosingKernels, sampling: str):
    case = Case(300, 4, SAMPLINGS[sampling])
    for seed, position in ((0, 0), (7, 123), (2**63 - 1, 2**31)):
        request = case.request(ChoiceRule.COUPLED, 0.0)
        request.numbers, request.seed, request.position = None, seed, position
        assert case.choose(choosing, request) == coupled_choice(case.processed, case.columns, seed, position)
        for rule, purposes in (
            (ChoiceRule.PROPOSE, (Purpose.DRAFT, Purpose.DRAFT)),
            (ChoiceRule.ACCEPT, (Purpose.ACCEPT, Purpose.TARGET)),
        ):
            request = case.request(rule, 0.0)
            request.numbers = np.array([[random_bits64(seed, position, purpose) for purpose in purposes]], np.uint64)
            given = case.choose(choosing, request, 8)
            request.numbers, request.seed, request.position = None, seed, position
            assert case.choose(choosing, request, 8) == given
