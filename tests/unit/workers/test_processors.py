"""The processor chain, against transformers' own processors and by hand where it has none."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.sampling.acceptance import distribution
from minedraft_workers.sampling.processors import adjust, process
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

CPU = torch.device("cpu")
PROMPT = [3, 1, 4, 1, 5]
OUTPUT = [9, 2, 6, 5, 3, 5]


def make_state(
    tokens: Sequence[int] = (*PROMPT, *OUTPUT), stop_ids: tuple[int, ...] = (), **sampling: object
) -> SequenceState:
    params = SamplingParams(**{"temperature": 1.0, **sampling})  # type: ignore[arg-type]
    return SequenceState(1, SequenceSpec(params, len(PROMPT), 7, Acceptance.REJECTION, stop_ids), tokens)


def random_row(vocab: int, seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(vocab, generator=torch.Generator().manual_seed(seed))


def probabilities(row: torch.Tensor, state: SequenceState, drafts: Sequence[int] = ()) -> torch.Tensor:
    columns = columns_of(len(row), CPU)
    return distribution(process(row, state, drafts, columns), columns.num_columns)


CHAINS = [
    ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    ({"top_k": 5}, [TopKLogitsWarper(5)]),
    ({"top_k": 100}, [TopKLogitsWarper(100)]),
    ({"top_p": 0.9}, [TopPLogitsWarper(0.9)]),
    ({"top_p": 0.05}, [TopPLogitsWarper(0.05)]),
    ({"top_p": 0.999}, [TopPLogitsWarper(0.999)]),
    ({"min_p": 0.02}, [MinPLogitsWarper(0.02)]),
    ({"min_p": 1.0}, [MinPLogitsWarper(1.0)]),
    ({"repetition_penalty": 1.3}, [RepetitionPenaltyLogitsProcessor(1.3)]),
    ({"repetition_penalty": 0.5}, [RepetitionPenaltyLogitsProcessor(0.5)]),
    ({"top_k": 300, "top_p": 0.8}, [TopKLogitsWarper(300), TopPLogitsWarper(0.8)]),
    (
        {"repetition_penalty": 1.2, "temperature": 1.5, "top_k": 40, "top_p": 0.95, "min_p": 0.05},
        [
            RepetitionPenaltyLogitsProcessor(1.2),
            TemperatureLogitsWarper(1.5),
            TopKLogitsWarper(40),
            TopPLogitsWarper(0.95),
            MinPLogitsWarper(0.05),
        ],
    ),
]


@pytest.mark.parametrize("vocab", [50, 1000, 12289])
@pytest.mark.parametrize(("sampling", "chain"), CHAINS, ids=[str(sampling) for sampling, _ in CHAINS])
def test_the_chain_gives_the_distribution_of_transformers(
    sampling: dict[str, float], chain: list[object], vocab: int
) -> None:
    for seed, scale in ((1, 3.0), (2, 0.5), (3, 12.0)):
        row = random_row(vocab, seed, scale)
        ours = probabilities(row, make_state(**sampling))
        # float64, so that its own rounding at a boundary is not what is tested
        theirs = LogitsProcessorList(chain)(torch.tensor([[*PROMPT, *OUTPUT]]), row.double()[None])[0].softmax(-1)
        assert torch.equal(ours > 1e-12, theirs > 1e-12)
        assert torch.allclose(ours, theirs, rtol=2e-5, atol=1e-12)


def test_presence_and_frequency_penalties_count_the_output_and_the_drafts_before_the_position() -> None:
    row = random_row(20, 4)
    state = make_state(presence_penalty=0.5, frequency_penalty=0.25)
    drafts = [6, 17, 17]
    expected = row.clone()
    output = [*OUTPUT, *drafts]
    for token in set(output):
        expected[token] -= 0.5 + 0.25 * output.count(token)
    assert torch.allclose(adjust(row, state, drafts, columns_of(20, CPU)), expected)
    assert 4 in PROMPT
    assert expected[4] == row[4]


def test_repetition_penalty_covers_prompt_output_and_the_drafts_before_the_position() -> None:
    row = random_row(20, 5)
    penalised = adjust(row, make_state(repetition_penalty=2.0), [18], columns_of(20, CPU))
    changed = (penalised != row).nonzero().flatten().tolist()
    assert changed == sorted({*PROMPT, *OUTPUT, 18})


def test_the_order_is_penalties_then_bias_then_mask() -> None:
    row = random_row(20, 6)
    state = make_state(
        repetition_penalty=2.0,
        presence_penalty=0.5,
        logit_bias={9: 3.0, 2: -1.0, 19: 50.0},
        min_new_tokens=7,
        stop_ids=(19,),
    )
    adjusted = adjust(row, state, [], columns_of(20, CPU))
    repeated = row[9] / 2 if row[9] > 0 else row[9] * 2
    assert float(adjusted[9]) == pytest.approx(float(repeated) - 0.5 + 3.0)
    assert float(adjusted[19]) == -math.inf


def test_stop_tokens_are_masked_until_min_new_tokens_and_not_after() -> None:
    row = random_row(20, 7)
    state = make_state(min_new_tokens=8, stop_ids=(2, 11))
    for drafts, masked in (([], True), ([1], True), ([1, 1], False)):
        adjusted = adjust(row, state, drafts, columns_of(20, CPU))
        assert adjusted.isinf().nonzero().flatten().tolist() == ([2, 11] if masked else [])


def test_a_request_without_processors_gets_its_row_back_uncopied() -> None:
    row = random_row(500, 8)
    columns = columns_of(500, CPU)
    assert adjust(row, make_state(), [], columns) is row
    processed = process(row, make_state(), [], columns)
    assert processed.logits is row
    assert processed.columns is None


def test_processing_leaves_the_models_logits_unchanged() -> None:
    row = random_row(500, 9)
    before = row.clone()
    process(
        row, make_state(repetition_penalty=1.5, logit_bias={3: 1.0}, top_k=10, top_p=0.5), [1], columns_of(500, CPU)
    )
    assert torch.equal(row, before)


def test_tokens_tied_with_the_last_one_kept_are_kept() -> None:
    row = torch.tensor([1.0, 3.0, 2.0, 2.0, 2.0, 0.0])
    assert probabilities(row, make_state(top_k=2)).nonzero().flatten().tolist() == [1, 2, 3, 4]
    assert probabilities(row, make_state(top_p=0.6)).nonzero().flatten().tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("temperature", [1e-45, 1e-20, 1e-3, 100.0])
def test_extreme_temperatures_give_finite_probabilities(temperature: float) -> None:
    p = probabilities(random_row(300, 10), make_state(temperature=temperature, top_p=0.999, min_p=1e-4))
    assert bool(p.isfinite().all())
    assert float(p.sum()) == pytest.approx(1.0)
    if temperature < 1e-10:
        assert int((p > 0).sum()) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_with_nan_or_infinity_is_not_usable(bad: float) -> None:
    row = random_row(300, 11)
    row[200] = bad
    columns = columns_of(300, CPU)
    assert not process(row, make_state(top_k=5, top_p=0.9), [], columns).is_usable
    assert not process(torch.full((300,), -math.inf), make_state(), [], columns).is_usable


def test_a_reduced_vocabulary_is_processed_by_token_id() -> None:
    ids = torch.tensor([17, 2, 9, 5, 30, 4], dtype=torch.int32)
    row = random_row(40, 12)
    sampling = {
        "repetition_penalty": 1.4,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {30: 2.0, 8: 9.0, 17: -1.0},
        "min_new_tokens": 20,
    }
    state = make_state(stop_ids=(4, 39), **sampling)
    whole = adjust(row, state, [17, 33], columns_of(40, CPU))
    reduced = adjust(row[ids.long()], state, [17, 33], columns_of(6, CPU, ids))
    assert torch.equal(reduced, whole[ids.long()])


def test_ids_outside_the_vocabulary_are_ignored() -> None:
    row = random_row(20, 13)
    state = make_state(tokens=[*PROMPT, 25], repetition_penalty=1.1, min_new_tokens=9, stop_ids=(999,))
    assert bool(adjust(row, state, [2**31 - 1], columns_of(20, CPU)).isfinite().all())


@pytest.mark.parametrize("vocab", [64, 777, 12288])
def test_a_row_is_bit_equal_alone_and_in_any_batch(vocab: int) -> None:
    batch = torch.stack([random_row(vocab, seed) for seed in range(9)])
    state = make_state(repetition_penalty=1.1, temperature=0.8, top_k=60, top_p=0.9)
    alone = process(batch[4].clone(), state, [], columns_of(vocab, CPU))
    inside = process(batch[4], state, [], columns_of(vocab, CPU))
    assert alone.columns is not None
    assert inside.columns is not None
    assert torch.equal(alone.columns, inside.columns)
    assert torch.equal(alone.weights(), inside.weights())


def test_counts_follow_tokens_that_are_appended_resent_rolled_back_and_replaced() -> None:
    def counts(state: SequenceState, extra: Sequence[int] = ()) -> dict[int, float]:
        ids, times = state.seen_tokens(extra)
        return dict(zip(ids.tolist(), times.tolist(), strict=True))

    def expected(tokens: Sequence[int]) -> dict[int, float]:
        output = list(tokens[len(PROMPT) :])
        return {token: float(output.count(token)) for token in tokens}

    state = make_state()
    assert counts(state) == expected(state.tokens)
    assert counts(state, [3, 40, 40]) == expected([*state.tokens, 3, 40, 40])
    assert counts(state) == expected(state.tokens)
    state.tokens.append(9)
    assert counts(state) == expected([*PROMPT, *OUTPUT, 9])
    state.replace_from(10, [5, 9, 12])
    assert state.tokens == [*PROMPT, *OUTPUT, 9, 12]
    assert counts(state) == expected(state.tokens)
    state.replace_from(6, [8])
    assert counts(state) == expected([*PROMPT, 9, 8])
    state.replace_from(2, [1, 1, 1, 1, 1, 7])
    assert counts(state) == expected([3, 1, 1, 1, 1, 1, 1, 7])
    with pytest.raises(ValueError, match="beyond"):
        state.replace_from(9, [1])
