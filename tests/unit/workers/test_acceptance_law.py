"""The output has exactly the target's law, by enumeration: every draft that can be sampled, every way
acceptance can go and every replacement is followed with its probability, computed by the functions
that the workers themselves use."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.ngram import LEAST_RATE, PromptLookup
from minedraft_workers.sampling.acceptance import SparseQ, accept_prob, distribution, read_q, residual
from minedraft_workers.sampling.batched import law
from minedraft_workers.sampling.batched.adjusting import RowContext, adjust_rows
from minedraft_workers.sampling.batched.drafts import choose_rows
from minedraft_workers.sampling.batched.rules import RowRules, RulePlace
from minedraft_workers.sampling.choose import truncate_q
from minedraft_workers.sampling.processors import process
from minedraft_workers.sampling.randomness import Purpose
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

CPU = torch.device("cpu")
VOCAB = 5
PROMPT = [0, 1, 2, 0, 1]
STOP_ID = 3

Law = dict[tuple[int, ...], float]
Proposal = tuple[list[int], list[SparseQ], float]  # drafts, the q of each, probability


def logits_after(context: Sequence[int], salt: int, width: int) -> torch.Tensor:
    """A language model: a fixed random row for each context."""
    seed = salt
    for token in context:
        seed = (seed * 31 + token + 1) % 1_000_003
    return 1.5 * torch.randn(width, generator=torch.Generator().manual_seed(seed))


@dataclass(frozen=True)
class Drafter:
    """A source of drafts. ids: tokens of its output layer; None: all."""

    ids: Sequence[int] | None = None
    top_m: int = VOCAB
    has_lookup: bool = False
    has_model: bool = True


class Enumeration:
    """Target and drafter of one request whose outcomes can be listed with their probabilities."""

    def __init__(self, sampling: SamplingParams, drafter: Drafter) -> None:
        draft_ids = drafter.ids
        self.spec = SequenceSpec(sampling, len(PROMPT), 1, Acceptance.REJECTION, (STOP_ID,))
        self.draft_ids = torch.tensor(draft_ids if draft_ids is not None else range(VOCAB), dtype=torch.int32)
        self.whole = columns_of(VOCAB, CPU)
        self.reduced = columns_of(len(self.draft_ids), CPU, self.draft_ids)
        self.drafter = drafter

    def p(self, committed: Sequence[int], drafts: Sequence[int]) -> torch.Tensor:
        row = logits_after([*committed, *drafts], 1, VOCAB)
        state = SequenceState(1, self.spec, committed)
        return distribution(process(row, state, drafts, self.whole), VOCAB)

    def q(self, committed: Sequence[int], drafts: Sequence[int]) -> SparseQ:
        """What the verifier reads from the wire for the model's draft after `drafts`."""
        row = logits_after([*committed, *drafts], 2, len(self.draft_ids))
        state = SequenceState(1, self.spec, committed)
        kept, probs = truncate_q(process(row, state, drafts, self.reduced), self.drafter.top_m)
        columns = process(row, state, drafts, self.reduced).columns
        ids = self.draft_ids[kept if columns is None else columns[kept]]
        return read_q(ids, probs, VOCAB)

    def proposals(self, committed: Sequence[int], draft_len: int) -> Iterator[Proposal]:
        """Every draft sequence with its q and probability."""

        def extend(drafts: list[int], qs: list[SparseQ], prob: float) -> Iterator[Proposal]:
            if len(drafts) == draft_len:
                yield drafts, qs, prob
                return
            q = self.q(committed, drafts)
            for token, q_token in zip(q.ids.tolist(), q.probs.tolist(), strict=True):
                yield from extend([*drafts, token], [*qs, q], prob * q_token)

        if looked_up := self.look_up(committed, draft_len):
            # A draft that was not sampled has no q on the wire: it is 1 on the draft.
            yield looked_up, [read_q(torch.tensor([draft]), torch.ones(1), VOCAB) for draft in looked_up], 1.0
        elif self.drafter.has_model:
            yield from extend([], [], 1.0)
        else:
            yield [], [], 1.0

    def look_up(self, committed: Sequence[int], draft_len: int) -> list[int]:
        """The drafts that prompt lookup gives; the choice of the source sees committed tokens only."""
        if not self.drafter.has_lookup or not draft_len:
            return []
        lookup, row = PromptLookup(), DraftRow(SequenceState(1, self.spec), 0, committed, draft_len)
        lookup.read(row)
        return row.drafts if lookup.find(row, LEAST_RATE) else []

    def round(self, committed: Sequence[int], draft_len: int) -> Law:
        """The law of the tokens that one draft and verify commits."""
        law: Law = defaultdict(float)
        for drafts, qs, prob in self.proposals(committed, draft_len):
            alive = prob
            for index, (draft, q) in enumerate(zip(drafts, qs, strict=True)):
                p = self.p(committed, drafts[:index])
                accept = self.accept(float(p[draft]), q.of(draft))
                rest = self.rest(p, q)
                rest = rest / rest.sum()
                for token in range(VOCAB):
                    law[(*drafts[:index], token)] += alive * (1.0 - accept) * float(rest[token])
                alive *= accept
            p = self.p(committed, drafts)
            for token in range(VOCAB):
                law[(*drafts, token)] += alive * float(p[token])
        return law

    def accept(self, p_draft: float, q_draft: float) -> float:
        return accept_prob(p_draft, q_draft)

    def rest(self, p: torch.Tensor, q: SparseQ) -> torch.Tensor:
        return residual(p, q)

    def first_tokens(self, num_tokens: int, draft_len: int, committed: tuple[int, ...] = ()) -> Law:
        """The law of the first `num_tokens` output tokens over as many rounds as they take."""
        law: Law = defaultdict(float)
        for tokens, prob in self.round([*PROMPT, *committed], draft_len).items():
            output = (*committed, *tokens)
            if prob == 0.0:
                continue
            if len(output) >= num_tokens:
                law[output[:num_tokens]] += prob
            else:
                for longer, share in self.first_tokens(num_tokens, draft_len, output).items():
                    law[longer] += prob * share
        return law

    def target_alone(self, num_tokens: int) -> Law:
        law: Law = {}
        for tokens in itertools.product(range(VOCAB), repeat=num_tokens):
            prob = 1.0
            for index in range(num_tokens):
                prob *= float(self.p([*PROMPT, *tokens[:index]], [])[tokens[index]])
            law[tokens] = prob
        return law


class EnumerationTogether(Enumeration):
    """The same by the functions that decide about all rows together; each has a neighbour here."""

    def p(self, committed: Sequence[int], drafts: Sequence[int]) -> torch.Tensor:
        context = RowContext(SequenceState(1, self.spec, committed), drafts)
        logits = adjust_rows(logits_after([*committed, *drafts], 1, VOCAB).repeat(2, 1), [context] * 2, self.whole)
        peaks, rules = logits.amax(dim=1), self.rules(context, VOCAB)
        thresholds = law.find_thresholds(logits, peaks, rules)
        return law.distributions(law.weigh(logits, peaks, rules.temperatures, thresholds))[1]

    def q(self, committed: Sequence[int], drafts: Sequence[int]) -> SparseQ:
        width, context = len(self.draft_ids), RowContext(SequenceState(1, self.spec, committed), drafts)
        row = logits_after([*committed, *drafts], 2, width)
        logits = adjust_rows(row.repeat(2, 1), [context] * 2, self.reduced)
        chosen = choose_rows(logits, self.rules(context, width), self.reduced, self.drafter.top_m)
        assert chosen.q_columns is not None
        assert chosen.q_probs is not None
        assert int(chosen.columns[0]) in chosen.q_columns[0].tolist()
        columns = chosen.q_columns[:1]
        ids = torch.where(columns < 0, columns, self.draft_ids[columns.clamp(min=0)].long())
        return self.read(ids, chosen.q_probs[:1].double())

    def rules(self, context: RowContext, width: int) -> RowRules:
        place = RulePlace(context.state, len(context.state.tokens) + len(context.drafts))
        return RowRules.make([place, place], width, CPU, (Purpose.DRAFT,))

    def read(self, ids: torch.Tensor, probs: torch.Tensor) -> SparseQ:
        read_ids, read_probs = law.read_q_rows(ids, probs, VOCAB)
        return SparseQ(read_ids[0], read_probs[0])

    def accept(self, p_draft: float, q_draft: float) -> float:
        p, q = torch.tensor([p_draft, q_draft], dtype=torch.float64)
        return float(law.accept_probs(p, q))

    def rest(self, p: torch.Tensor, q: SparseQ) -> torch.Tensor:
        return law.residual_rows(p[None], q.ids[None], q.probs[None])[0]


SAMPLINGS = {
    "plain": SamplingParams(temperature=1.0),
    "temperature": SamplingParams(temperature=0.4),
    "top-k": SamplingParams(temperature=1.0, top_k=3),
    "top-p": SamplingParams(temperature=1.3, top_p=0.7),
    "min-p": SamplingParams(temperature=1.0, min_p=0.2),
    "penalties and bias": SamplingParams(
        temperature=1.0,
        repetition_penalty=1.4,
        presence_penalty=0.6,
        frequency_penalty=0.3,
        logit_bias={4: 1.0, 0: -2.0},
    ),
    "minimum length": SamplingParams(temperature=1.0, min_new_tokens=2),
    "all": SamplingParams(
        temperature=0.8, top_k=4, top_p=0.9, min_p=0.05, repetition_penalty=1.2, frequency_penalty=0.5, min_new_tokens=1
    ),
}
DRAFTERS = {
    "whole vocabulary": Drafter(),
    "truncated q": Drafter(top_m=2),
    "one token of q": Drafter(top_m=1),
    "reduced vocabulary": Drafter([4, 1, 3], 2),
    "prompt lookup": Drafter(top_m=1, has_lookup=True, has_model=False),
    "prompt lookup, else a model": Drafter(top_m=2, has_lookup=True),
}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "draft_len"), [*((Enumeration, k) for k in range(4)), (EnumerationTogether, 2)])
@pytest.mark.parametrize("drafter", DRAFTERS)
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_the_output_law_is_the_targets_law(
    kind: type[Enumeration], sampling: str, drafter: str, draft_len: int
) -> None:
    case = kind(SAMPLINGS[sampling], DRAFTERS[drafter])
    num_tokens = 1 if draft_len == 3 and case.drafter.top_m == VOCAB else 2
    law = case.first_tokens(num_tokens, draft_len)
    alone = case.target_alone(num_tokens)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    for tokens, prob in alone.items():
        assert law.get(tokens, 0.0) == pytest.approx(prob, abs=1e-12)


@pytest.mark.parametrize("drafter", DRAFTERS)
def test_a_round_commits_at_least_one_token_and_never_a_masked_one(drafter: str) -> None:
    case = Enumeration(SAMPLINGS["minimum length"], DRAFTERS[drafter])
    for tokens, prob in case.round(PROMPT, 2).items():
        assert 1 <= len(tokens) <= 3
        if STOP_ID in tokens[:2]:
            assert prob == 0.0


def test_acceptance_is_the_overlap_of_p_and_q() -> None:
    p = torch.tensor([0.5, 0.3, 0.2, 0.0], dtype=torch.float64)
    q = read_q(torch.tensor([0, 3]), torch.tensor([0.75, 0.25]), 4)
    accepted = sum(q.of(token) * accept_prob(float(p[token]), q.of(token)) for token in range(4))
    assert accepted == pytest.approx(0.5)
    assert residual(p, q).tolist() == pytest.approx([0.0, 0.3, 0.2, 0.0])


def test_a_residual_that_rounding_leaves_empty_is_the_target() -> None:
    p = torch.tensor([0.25, 0.75], dtype=torch.float64)
    assert torch.equal(residual(p, SparseQ(torch.tensor([0, 1]), p.clone())), p)


def test_a_draft_that_q_excludes_is_rejected_and_nothing_divides_by_zero() -> None:
    assert accept_prob(0.5, 0.0) == 0.0
    assert accept_prob(0.0, 0.0) == 0.0
    assert accept_prob(0.0, 0.5) == 0.0
    assert accept_prob(0.5, 0.25) == 1.0


def test_what_is_no_distribution_is_cleaned_before_it_is_used() -> None:
    nan, inf = float("nan"), float("inf")
    q = read_q(torch.tensor([2, -1, 9, 2, 1, 0, 0, 0]), torch.tensor([1.0, 5.0, 5.0, 2.0, 1.0, nan, inf, -3.0]), 4)
    assert q.ids.tolist() == [1, 2]
    assert q.probs.tolist() == [0.25, 0.75]
    assert q.of(3) == 0.0
    nothing = read_q(torch.tensor([-1, -1]), torch.zeros(2), 4)
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    assert nothing.of(0) == 0.0
    assert torch.equal(residual(p, nothing), p)
