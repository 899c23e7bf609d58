"""Choosing tokens: searches, draws, shared noise, and one draft step of a mixed batch."""

from __future__ import annotations

import math

import pytest
import torch

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.sampling.choose import ChoiceRow, coupled_choice, draw, truncate_q
from minedraft_workers.sampling.processors import ProcessedRow, process
from minedraft_workers.sampling.randomness import Purpose, gumbel, uniform
from minedraft_workers.sampling.row_search import SearchedRow, argmax_rows
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

CPU = torch.device("cpu")
TOKENS = [1, 2, 3, 4]


def make_state(acceptance: Acceptance, seed: int = 7, **sampling: object) -> SequenceState:
    params = SamplingParams(**{"temperature": 1.0, **sampling})  # type: ignore[arg-type]
    return SequenceState(1, SequenceSpec(params, len(TOKENS), seed, acceptance, (0,)), TOKENS)


def random_rows(num_rows: int, vocab: int, seed: int = 0, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("vocab", [1, 63, 64, 65, 1000, 12288])
def test_searches_agree_with_plain_ones(vocab: int) -> None:
    rows = random_rows(6, vocab).round()  # rounding makes ties
    peaks, best = argmax_rows(rows)
    assert peaks == rows.amax(-1).tolist()
    assert best == rows.argmax(-1).tolist()
    for row in rows:
        searched = SearchedRow(row)
        assert searched.argmax() == int(row.argmax())
        for threshold in (-math.inf, 0.0, searched.peak, 100.0):
            assert torch.equal(searched.at_least(threshold), (row >= threshold).nonzero().squeeze(1))
        for k in (1, 2, 20, 50, vocab, vocab + 5):
            values, indices = searched.largest(k)
            assert torch.equal(values, row.sort(descending=True).values[:k])
            assert torch.equal(row[indices], values)
            assert len(set(indices.tolist())) == len(indices)


def test_a_nan_anywhere_shows_in_the_peak_of_its_row_only() -> None:
    rows = random_rows(3, 300)
    rows[1, 250] = math.nan
    peaks, _ = argmax_rows(rows)
    assert [math.isnan(peak) for peak in peaks] == [False, True, False]


@pytest.mark.parametrize("vocab", [1, 5, 256, 257, 700])
def test_draw_gives_each_index_a_share_of_the_unit_interval_equal_to_its_weight(vocab: int) -> None:
    weights = random_rows(1, vocab)[0].exp()
    weights[vocab // 2 + 1 :: 3] = 0.0
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), weights.cumsum(0, dtype=torch.float64)])
    edges /= edges[-1].clone()
    for index in range(vocab):
        if weights[index] > 0.0:
            low, high = float(edges[index]), float(edges[index + 1])
            inset = 1e-9 * (high - low) + 1e-13
            assert draw(weights, low + inset) == index
            assert draw(weights, high - inset) == index


@pytest.mark.parametrize("vocab", [4, 600])
def test_draw_never_returns_an_index_without_weight(vocab: int) -> None:
    weights = torch.zeros(vocab)
    weights[vocab // 2] = 0.3
    weights[vocab // 2 + 1] = 1e-30
    for u in (0.0, 0.5, 1.0 - 2.0**-53, math.nextafter(1.0, 0.0)):
        assert float(weights[draw(weights, u)]) > 0.0


@pytest.mark.parametrize("vocab", [5, 1000, 12288])
@pytest.mark.parametrize("temperature", [1e-30, 0.05, 0.7, 1.0, 30.0, 100.0])
def test_the_pruned_search_finds_the_winner_of_all_noisy_logits(vocab: int, temperature: float) -> None:
    columns = columns_of(vocab, CPU)
    for seed, scale in enumerate((0.0, 0.1, 1.0, 5.0, 1000.0)):
        row = random_rows(1, vocab, seed, scale)[0]
        row[vocab // 2] = -math.inf
        for position in range(8):
            noise = gumbel(columns.noise.bits(seed, position))
            expected = int((row.double() + temperature * noise).argmax())
            processed = ProcessedRow(row, None, float(row.max()), temperature)
            assert coupled_choice(processed, columns, seed, position) == expected


def test_truncation_of_the_support_does_not_change_the_noise_of_what_is_left() -> None:
    """The winner among the kept tokens is the winner of the whole row whenever it is kept."""
    row = random_rows(1, 3000, 5)[0]
    columns = columns_of(3000, CPU)
    agreed = 0
    for position in range(40):
        whole = coupled_choice(process(row, make_state(Acceptance.COUPLED), [], columns), columns, 7, position)
        processed = process(row, make_state(Acceptance.COUPLED, top_k=200), [], columns)
        assert processed.columns is not None
        if whole in processed.columns.tolist():
            agreed += 1
            assert coupled_choice(processed, columns, 7, position) == whole
    assert agreed > 10


def test_a_drafter_with_a_reduced_vocabulary_shares_the_noise_of_its_tokens(sampler: Sampler) -> None:
    ids = torch.randperm(4000, generator=torch.Generator().manual_seed(2))[:900].int()
    row = random_rows(1, 4000, 6)[0]
    masked = torch.full((4000,), -math.inf)
    masked[ids.long()] = row[ids.long()]
    for position in range(20):
        state = make_state(Acceptance.COUPLED, top_k=100)
        reduced = sampler.choose_drafts(row[ids.long()][None], [ChoiceRow(state, position)], ids).tokens
        whole = sampler.choose_drafts(masked[None], [ChoiceRow(state, position)]).tokens
        assert reduced == whole


@pytest.mark.parametrize("reduced", [False, True])
def test_q_is_the_renormalised_top_of_the_processed_row_and_what_was_sampled_from(
    sampler: Sampler, reduced: bool
) -> None:
    ids = torch.randperm(3000, generator=torch.Generator().manual_seed(3))[:500].int() if reduced else None
    row = random_rows(1, 500, 7)
    for sampling in ({}, {"top_k": 5}, {"top_p": 0.9, "temperature": 0.6}, {"min_p": 0.5}):
        state = make_state(Acceptance.REJECTION, **sampling)
        choice = sampler.choose_drafts(row, [ChoiceRow(state, 4)], ids, top_m=8)
        assert choice.q_ids is not None
        assert choice.q_probs is not None
        assert choice.q_ids.dtype == torch.int32
        assert choice.q_ids.shape == choice.q_probs.shape == (1, 8)
        processed = process(row[0], state, [], columns_of(500, CPU, ids))
        num_kept = 500 if processed.columns is None else len(processed.columns)
        used = choice.q_ids[0] >= 0
        assert int(used.sum()) == min(8, num_kept)
        assert float(choice.q_probs.sum()) == pytest.approx(1.0, abs=1e-6)
        assert bool((choice.q_probs[0][~used] == 0).all())
        top = processed.weights().sort(descending=True).values[: min(8, num_kept)]
        assert torch.allclose(choice.q_probs[0][used], top / top.sum(), rtol=1e-5)
        drawn = draw(choice.q_probs[0], uniform(7, 4, Purpose.DRAFT))
        assert choice.tokens == [int(choice.q_ids[0, drawn])]


def test_a_position_that_is_drafted_again_is_drawn_anew(sampler: Sampler) -> None:
    """As second draft of one round and first one of the next, from the same distribution."""
    rows, state = random_rows(1, 40, 11, scale=1.0), make_state(Acceptance.REJECTION)
    draws = [
        sampler.choose_drafts(rows, [ChoiceRow(state, position, drafts)]).tokens[0]
        for position in range(60)
        for drafts in ([], [5], [5, 5])
    ]
    by_index = [draws[index::3] for index in range(3)]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert sum(a == b for a, b in zip(by_index[one], by_index[other], strict=True)) < 20


def test_a_small_vocabulary_makes_a_narrow_q(sampler: Sampler) -> None:
    choice = sampler.choose_drafts(random_rows(1, 6), [ChoiceRow(make_state(Acceptance.REJECTION), 4)], None, top_m=32)
    assert choice.q_ids is not None
    assert choice.q_ids.shape == (1, 6)


def test_a_mixed_batch_gives_each_request_what_it_gets_alone(sampler: Sampler) -> None:
    rows = random_rows(6, 800, 8)
    states = [
        make_state(Acceptance.GREEDY, temperature=0.0),
        make_state(Acceptance.COUPLED, seed=1),
        make_state(Acceptance.REJECTION, seed=2),
        make_state(Acceptance.GREEDY, temperature=0.0, repetition_penalty=3.0),
        make_state(Acceptance.REJECTION, seed=3, temperature=0.0),
        make_state(Acceptance.COUPLED, seed=4, top_k=3, presence_penalty=1.0),
    ]
    extras = [[], [5], [5, 6], [5], [], [7]]
    requests = [ChoiceRow(state, len(TOKENS) + len(extra), extra) for state, extra in zip(states, extras, strict=True)]
    together = sampler.choose_drafts(rows, requests)
    assert together.tokens[0] == int(rows[0].argmax())
    assert None not in together.tokens
    assert together.q_ids is not None
    assert together.q_probs is not None
    assert bool((together.q_ids[[0, 1, 3, 5]] == -1).all())
    assert together.q_ids[4, 0] == together.tokens[4]
    assert together.q_probs[4, 0] == 1.0
    for order in ([5, 4, 3, 2, 1, 0], [2], [1, 3]):
        some = sampler.choose_drafts(rows[order], [requests[i] for i in order])
        assert some.tokens == [together.tokens[i] for i in order]
        if some.q_ids is not None:
            assert some.q_probs is not None
            assert torch.equal(some.q_ids, together.q_ids[order])
            assert torch.equal(some.q_probs, together.q_probs[order])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("acceptance", list(Acceptance))
def test_a_bad_row_has_no_draft_and_its_neighbours_are_untouched(
    sampler: Sampler, acceptance: Acceptance, bad: float
) -> None:
    temperature = 0.0 if acceptance is Acceptance.GREEDY else 1.0
    requests = [ChoiceRow(make_state(acceptance, seed, temperature=temperature), 4) for seed in range(3)]
    rows = random_rows(3, 200, 9)
    clean = sampler.choose_drafts(rows, requests)
    rows[1, 77] = bad
    dirty = sampler.choose_drafts(rows, requests)
    assert None not in clean.tokens
    assert dirty.tokens == [clean.tokens[0], None, clean.tokens[2]]
    if acceptance is Acceptance.REJECTION:
        assert dirty.q_ids is not None
        assert bool((dirty.q_ids[1] == -1).all())


def test_a_row_whose_every_token_is_masked_has_no_draft(sampler: Sampler) -> None:
    state = make_state(Acceptance.GREEDY, temperature=0.0, min_new_tokens=5)
    assert sampler.choose_drafts(random_rows(1, 1), [ChoiceRow(state, 4)]).tokens == [None]


def test_truncated_q_is_sorted_and_sums_to_one() -> None:
    row = random_rows(1, 5000, 10)[0]
    kept, probs = truncate_q(process(row, make_state(Acceptance.REJECTION), [], columns_of(5000, CPU)), 32)
    assert torch.equal(kept, row.topk(32).indices)
    assert torch.allclose(probs, row.topk(32).values.softmax(-1))
