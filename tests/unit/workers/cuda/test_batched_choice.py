"""Choice and acceptance for all rows together, as on a GPU, against the functions that decide row by row."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.sampling import acceptance as one_by_one
from minedraft_workers.sampling.acceptance import Outcome, VerifyRow
from minedraft_workers.sampling.batched import law
from minedraft_workers.sampling.batched.rules import RowRules, RulePlace
from minedraft_workers.sampling.choose import ChoiceRow, DraftChoice, choose_drafts, draw, truncate_q
from minedraft_workers.sampling.processors import process
from minedraft_workers.sampling.randomness import Purpose, TokenNoise, noise_keys, random_bits64, random_bits64_of
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

CPU = torch.device("cpu")
TOGETHER = Sampler(is_batched=True)
NUM_CASES = 60


class Case:
    """A batch of random requests with random parameters over a random vocabulary."""

    def __init__(self, number: int) -> None:
        self.rng = random.Random(number)
        self.generator = torch.Generator().manual_seed(number)
        self.vocab = self.rng.choice([1, 7, 60, 257, 1500])
        self.states = [self.make_state() for _ in range(self.rng.randint(1, 7))]

    def make_state(self) -> SequenceState:
        rng, vocab = self.rng, self.vocab
        params = SamplingParams(
            temperature=rng.choice([0.0, 0.2, 0.7, 1.0, 1.0, 4.0]),
            top_k=rng.choice([0, 0, 1, 3, 40, 5000]),
            top_p=rng.choice([1.0, 1.0, 0.05, 0.6, 0.95]),
            min_p=rng.choice([0.0, 0.0, 0.05, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.4]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.7]),
            presence_penalty=rng.choice([0.0, 0.0, -0.4]),
            logit_bias=rng.choice([{}, {}, {0: 1.5, vocab - 1: -2.0}]),
            logprobs=rng.choice([None, None, 0, 3]),
            max_new_tokens=50,
            min_new_tokens=rng.choice([0, 0, 4]),
        )
        tokens = [rng.randrange(vocab) for _ in range(rng.randint(2, 8))]
        seed, kind = rng.getrandbits(63), rng.choice(list(Acceptance))
        return SequenceState(1, SequenceSpec(params, 2, seed, kind, (rng.randrange(vocab),)), tokens)

    def logits(self, num_rows: int, num_columns: int) -> torch.Tensor:
        rows = self.rng.choice([0.5, 2.0, 6.0]) * torch.randn(num_rows, num_columns, generator=self.generator)
        return rows.bfloat16().float() if self.rng.random() < 0.5 else rows  # with many equal logits, or few

    def draft(self, draft_len: int) -> tuple[list[VerifyRow], list[tuple[DraftChoice, DraftChoice]]]:
        """Let both ways draft. Return what is to be verified, and their choices."""
        ids = None
        if self.vocab > 7 and self.rng.random() < 0.4:
            ids = torch.tensor(sorted(self.rng.sample(range(self.vocab), self.vocab // 2)), dtype=torch.int64)
        drafts: list[list[int]] = [[] for _ in self.states]
        choices = []
        for _ in range(draft_len):
            rows = [ChoiceRow(s, len(s.tokens) + len(d), list(d)) for s, d in zip(self.states, drafts, strict=True)]
            logits = self.logits(len(rows), self.vocab if ids is None else len(ids))
            choices.append((choose_drafts(logits, rows, ids, 5), TOGETHER.choose_drafts(logits, rows, ids, 5)))
            for d, token in zip(drafts, choices[-1][0].tokens, strict=True):
                d.append(0 if token is None else token)
        verify_rows = []
        for index, (state, d) in enumerate(zip(self.states, drafts, strict=True)):
            row = VerifyRow(state, d[: self.rng.randint(0, len(d))])
            sides = [(choice.q_ids, choice.q_probs) for choice, _ in choices[: len(row.drafts)]]
            if sides and state.spec.acceptance is Acceptance.REJECTION and self.rng.random() < 0.8:
                q_ids, q_probs = (torch.stack([side[i][index] for side in sides]) for i in (0, 1))
                row = replace(row, q_ids=q_ids, q_probs=q_probs)
            verify_rows.append(row)
        return verify_rows, choices


def assert_same(found: Outcome, wanted: Outcome) -> None:
    assert replace(found, logprobs=()) == replace(wanted, logprobs=())
    assert len(found.logprobs) == len(wanted.logprobs)
    for mine, theirs in zip(found.logprobs, wanted.logprobs, strict=True):
        assert mine.logprob == pytest.approx(theirs.logprob, abs=1e-5)
        assert mine.top_logprobs == pytest.approx(theirs.top_logprobs, abs=1e-5)
        assert len(mine.top_ids) == len(theirs.top_ids)


@pytest.mark.parametrize("numbers", [range(first, first + 15) for first in range(0, NUM_CASES, 15)], ids=str)
def test_random_batches_are_drafted_and_decided_as_row_by_row(numbers: range) -> None:
    """With the same random numbers, so token by token."""
    accepted = 0
    for number in numbers:
        case = Case(number)
        rows, choices = case.draft(case.rng.choice([0, 1, 3, 5]))
        for wanted, found in choices:
            assert found.tokens == wanted.tokens, number
            assert (found.q_ids is None) == (wanted.q_ids is None)
            if found.q_ids is not None and wanted.q_ids is not None:
                assert torch.equal(found.q_ids, wanted.q_ids), number
                torch.testing.assert_close(found.q_probs, wanted.q_probs, rtol=1e-6, atol=1e-7)
        logits = case.logits(sum(len(row.drafts) + 1 for row in rows), case.vocab)
        before = logits.clone()
        outcomes = TOGETHER.verify(logits, rows)
        assert torch.equal(logits, before), "the model's own logits are not changed"
        for found, wanted in zip(outcomes, one_by_one.verify(logits, rows), strict=True):
            assert_same(found, wanted)
            accepted += found.accepted_len
    assert accepted > 0


def test_the_same_target_accepts_what_it_has_drafted_under_every_law() -> None:
    """Drafts of the target's own logits, with q of all of its tokens, are rejected by nobody."""
    vocab, logits = 20, torch.randn(4, 20, generator=torch.Generator().manual_seed(2))
    for kind in Acceptance:
        params = SamplingParams(temperature=0.0 if kind is Acceptance.GREEDY else 1.0)
        state = SequenceState(1, SequenceSpec(params, 2, 9, kind), [1, 2])
        drafts: list[int] = []
        sides: list[tuple[torch.Tensor, torch.Tensor]] = []
        for row in logits[:3]:
            choice = TOGETHER.choose_drafts(row[None], [ChoiceRow(state, 2 + len(drafts), list(drafts))], None, vocab)
            drafts.append(choice.tokens[0] or 0)
            if choice.q_ids is not None and choice.q_probs is not None:
                sides.append((choice.q_ids, choice.q_probs))
        q = tuple(torch.cat(side) for side in zip(*sides, strict=True)) if sides else (None, None)
        (outcome,) = TOGETHER.verify(logits, [VerifyRow(state, drafts, *q)])
        assert outcome.accepted_len == 3
        assert outcome.tokens[:3] == tuple(drafts)


def test_a_vocabulary_that_is_worked_on_in_parts_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [TOGETHER.verify(case.logits(sum(len(r.drafts) + 1 for r in rows), case.vocab), rows)
             for case in map(Case, range(12)) for rows in [case.draft(3)[0]]]  # fmt: skip
    monkeypatch.setattr(law, "_PART", 100)
    parts = [TOGETHER.verify(case.logits(sum(len(r.drafts) + 1 for r in rows), case.vocab), rows)
             for case in map(Case, range(12)) for rows in [case.draft(3)[0]]]  # fmt: skip
    assert parts == whole


def test_a_choice_and_a_verdict_are_one_copy_to_the_host_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU each copy makes the host wait."""
    copies: list[int] = []

    def count(*tensors: torch.Tensor) -> list[np.ndarray]:
        copies.append(sum(tensor.numel() for tensor in tensors))
        return download(*tensors)

    from minedraft_workers.sampling.batched.transfer import download

    for module in ("drafts", "verdicts"):
        monkeypatch.setattr(f"minedraft_workers.sampling.batched.{module}.download", count)
    case = Case(3)
    rows, choices = case.draft(2)
    assert len(copies) == len(choices) == 2
    copies.clear()
    for row in rows:
        row.state.spec = replace(row.state.spec, sampling=replace(row.state.spec.sampling, logprobs=None))
    TOGETHER.verify(case.logits(sum(len(row.drafts) + 1 for row in rows), case.vocab), rows)
    assert copies == [3 * len(rows)], "ids and counts, no logits"


def test_random_bits_of_many_places_are_those_of_each() -> None:
    seeds = np.array([0, 1, 7, 2**63 - 1, 2**64 - 1], np.uint64)
    positions = np.array([0, 3, 10**6, 5, 2**31], np.uint64)
    noise = TokenNoise(torch.arange(50))
    for purpose in Purpose:
        found = random_bits64_of(seeds, positions, purpose)
        pairs = list(zip(seeds.tolist(), positions.tolist(), strict=True))
        assert found.tolist() == [random_bits64(seed, position, purpose) for seed, position in pairs]
    keys = noise_keys(random_bits64_of(seeds, positions, Purpose.TOKEN_NOISE))
    together = noise.bits_by_key(torch.from_numpy(keys))
    for row, (seed, position) in zip(together, pairs, strict=True):
        assert torch.equal(row, noise.bits(seed, position))


@pytest.mark.parametrize("vocab", [1, 5, 256, 257, 700])
def test_rows_are_drawn_as_each_alone(vocab: int) -> None:
    weights = torch.randn(40, vocab, generator=torch.Generator().manual_seed(vocab)).exp()
    weights[:, vocab // 2 + 1 :: 3] = 0.0
    weights[:, : vocab // 3] = 0.0
    u = torch.linspace(0.0, math.nextafter(1.0, 0.0), 40, dtype=torch.float64)
    assert law.draw_rows(weights, u).tolist() == [draw(row, at) for row, at in zip(weights, u.tolist(), strict=True)]


def test_of_equally_likely_tokens_the_first_are_kept() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0, -0.0, 0.0], [0.0] * 7, [-1.0, -0.5, -2.0, -0.5, -9.0, -1.0, -3.0]])
    state = SequenceState(1, SequenceSpec(SamplingParams(temperature=1.0), 2, 3, Acceptance.REJECTION), [1, 2])
    rules = RowRules.make([RulePlace(state, 2)] * 3, 7, CPU, (Purpose.DRAFT,))
    peaks = logits.amax(dim=1)
    found, probs = law.largest_rows(logits, peaks, rules.temperatures, law.find_thresholds(logits, peaks, rules), 5)
    assert found.tolist() == [[1, 2, 4, 0, 3], [0, 1, 2, 3, 4], [1, 3, 0, 5, 2]]
    for row, columns, shares in zip(logits, found, probs, strict=True):
        kept, wanted = truncate_q(process(row, state, [], columns_of(7, CPU)), 5)
        assert torch.equal(kept, columns)
        assert torch.equal(wanted, shares)
