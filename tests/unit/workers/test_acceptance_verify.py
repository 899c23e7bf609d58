"""Verification as the verifier runs it: decisions, logprobs, bad numbers, and the law by chi-square."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.sampling.acceptance import (
    Outcome,
    VerifyRow,
    accept_prob,
    distribution,
    read_q,
    residual,
)
from minedraft_workers.sampling.choose import ChoiceRow, draw
from minedraft_workers.sampling.processors import process
from minedraft_workers.sampling.randomness import Purpose, uniform
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

CPU = torch.device("cpu")
PROMPT = [1, 2, 3]


def make_state(
    acceptance: Acceptance, seed: int = 7, tokens: Sequence[int] = PROMPT, **sampling: object
) -> SequenceState:
    params = SamplingParams(**{"temperature": 0.0 if acceptance is Acceptance.GREEDY else 1.0, **sampling})  # type: ignore[arg-type]
    return SequenceState(1, SequenceSpec(params, len(PROMPT), seed, acceptance, (0,)), tokens)


def random_rows(num_rows: int, vocab: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(num_rows, vocab, generator=torch.Generator().manual_seed(seed))


def model_row(context: Sequence[int], salt: int, vocab: int, scale: float = 1.5) -> torch.Tensor:
    seed = salt
    for token in context:
        seed = (seed * 31 + token + 1) % 1_000_003
    return random_rows(1, vocab, seed, scale)[0]


def run_round(
    sampler: Sampler,
    state: SequenceState,
    draft_len: int,
    vocab: int,
    draft_ids: torch.Tensor | None = None,
    top_m: int = 3,
) -> Outcome:
    """Draft and verify once with two context-dependent random models."""
    drafts: list[int] = []
    q_ids, q_probs = [], []
    for _ in range(draft_len):
        row = model_row([*state.tokens, *drafts], 2, vocab)
        row = row if draft_ids is None else row[draft_ids.long()]
        choice = sampler.choose_drafts(
            row[None], [ChoiceRow(state, len(state.tokens) + len(drafts), drafts)], draft_ids, top_m
        )
        drafts.append(choice.tokens[0])
        if choice.q_ids is not None and choice.q_probs is not None:
            q_ids.append(choice.q_ids)
            q_probs.append(choice.q_probs)
    logits = torch.stack([model_row([*state.tokens, *drafts[:i]], 1, vocab) for i in range(draft_len + 1)])
    if q_ids:
        return sampler.verify(logits, [VerifyRow(state, drafts, torch.cat(q_ids), torch.cat(q_probs))])[0]
    return sampler.verify(logits, [VerifyRow(state, drafts)])[0]


def generate(
    sampler: Sampler, state: SequenceState, draft_lens: Sequence[int], vocab: int, num_tokens: int, **options: object
) -> list[int]:
    rounds = 0
    while len(state.tokens) < len(PROMPT) + num_tokens:
        outcome = run_round(sampler, state, draft_lens[rounds % len(draft_lens)], vocab, **options)  # type: ignore[arg-type]
        state.tokens.extend(outcome.tokens)
        rounds += 1
    return state.tokens[len(PROMPT) : len(PROMPT) + num_tokens]


def chi_square_z(counts: torch.Tensor, expected: torch.Tensor) -> float:
    dof = len(counts) - 1
    ratio = float(((counts - expected) ** 2 / expected).sum()) / dof
    return (ratio ** (1 / 3) - 1 + 2 / (9 * dof)) / math.sqrt(2 / (9 * dof))


def test_greedy_accepts_while_drafts_are_the_argmax_and_adds_one_token(sampler: Sampler) -> None:
    logits = random_rows(4, 500)
    best = logits.argmax(-1).tolist()
    state = make_state(Acceptance.GREEDY)
    wrong = (best[1] + 1) % 500
    cases = {
        (best[0], best[1], best[2]): (3, best),
        (best[0], wrong, best[2]): (1, best[:2]),
        (wrong if wrong != best[0] else 499, best[1], best[2]): (0, best[:1]),
    }
    for drafts, (accepted_len, tokens) in cases.items():
        assert sampler.verify(logits, [VerifyRow(state, drafts)]) == [Outcome(accepted_len, tuple(tokens))]


def test_a_batch_of_greedy_requests_is_decided_row_by_row(sampler: Sampler) -> None:
    logits = random_rows(6, 130)
    best = logits.argmax(-1).tolist()
    state = make_state(Acceptance.GREEDY)
    rows = [VerifyRow(state, [best[0]]), VerifyRow(state), VerifyRow(state, [best[3], 129 - best[4] % 2])]
    outcomes = sampler.verify(logits, rows)
    assert outcomes[0] == Outcome(1, (best[0], best[1]))
    assert outcomes[1] == Outcome(0, (best[2],))
    assert outcomes[2].tokens[0] == best[3]


def test_the_fast_path_and_the_general_path_agree(sampler: Sampler) -> None:
    logits = random_rows(3, 400, 3)
    best = logits.argmax(-1).tolist()
    plain = sampler.verify(logits, [VerifyRow(make_state(Acceptance.GREEDY), best[:2])])[0]
    general = sampler.verify(logits, [VerifyRow(make_state(Acceptance.GREEDY, logprobs=0), best[:2])])[0]
    assert plain.tokens == general.tokens
    assert plain.accepted_len == general.accepted_len == 2


def test_greedy_with_penalties_gives_each_draft_its_own_context(sampler: Sampler) -> None:
    """The same row at every position: once a token is out, its frequency penalty bars it."""
    row = torch.tensor([0.0, 5.0, 4.5, 4.0])
    state = make_state(Acceptance.GREEDY, tokens=[0, 0, 0], frequency_penalty=2.0)
    outcome = sampler.verify(row.expand(4, 4), [VerifyRow(state, [1, 2, 3])])[0]
    assert outcome == Outcome(3, (1, 2, 3, 1))


def test_logprobs_are_the_models_own_whatever_the_processors(sampler: Sampler) -> None:
    logits = random_rows(2, 300, 4)
    reference = logits.log_softmax(-1)
    for acceptance in Acceptance:
        state = make_state(acceptance, logprobs=4, repetition_penalty=1.5, top_k=20, logit_bias={5: 2.0})
        outcome = sampler.verify(logits[:1], [VerifyRow(state)])[0]
        assert len(outcome.logprobs) == len(outcome.tokens) == 1
        logprobs = outcome.logprobs[0]
        assert logprobs.logprob == pytest.approx(float(reference[0, outcome.tokens[0]]), abs=1e-5)
        assert list(logprobs.top_ids) == reference[0].topk(4).indices.tolist()
        assert list(logprobs.top_logprobs) == pytest.approx(reference[0].topk(4).values.tolist(), abs=1e-5)


def test_logprobs_cover_every_committed_token_and_only_if_asked_for(sampler: Sampler) -> None:
    logits = random_rows(3, 300, 5)
    best = logits.argmax(-1).tolist()
    asked = sampler.verify(logits, [VerifyRow(make_state(Acceptance.GREEDY, logprobs=0), best[:2])])[0]
    assert len(asked.logprobs) == 3
    assert asked.logprobs[0].top_ids == ()
    assert sampler.verify(logits, [VerifyRow(make_state(Acceptance.GREEDY), best[:2])])[0].logprobs == ()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("acceptance", list(Acceptance))
def test_a_bad_row_fails_its_request_alone(sampler: Sampler, acceptance: Acceptance, bad: float) -> None:
    logits = random_rows(6, 150, 6)
    rows = [VerifyRow(make_state(acceptance, seed), [int(logits[2 * seed].argmax())]) for seed in range(3)]
    clean = sampler.verify(logits, rows)
    logits[2, 149] = bad
    dirty = sampler.verify(logits, rows)
    assert dirty[1] == Outcome(0, (), error="NUMERIC")
    assert dirty[0] == clean[0]
    assert dirty[2] == clean[2]


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_bad_row_behind_a_rejected_draft_is_not_used(sampler: Sampler, logprobs: int | None) -> None:
    logits = random_rows(3, 150, 7)
    logits[1:, 3] = math.nan
    best = int(logits[0].argmax())
    state = make_state(Acceptance.GREEDY, logprobs=logprobs)
    assert sampler.verify(logits, [VerifyRow(state, [(best + 1) % 150, 2])])[0].tokens == (best,)
    assert sampler.verify(logits, [VerifyRow(state, [best, 2])])[0].error == "NUMERIC"


@pytest.mark.parametrize(
    ("ids", "probs"),
    [
        ([5, 6], [0.0, 1.0]),
        ([6, 7], [0.5, 0.5]),
        ([-1, -1], [0.0, 0.0]),
        ([5, 10**6], [40.0, 2.0]),
        ([5, 5], [math.nan, math.inf]),
        ([5, 5], [-1.0, 1e-38]),
    ],
    ids=["zero on the draft", "without the draft", "empty", "wrong ids, not normalised", "not finite", "negative"],
)
def test_a_q_that_lies_neither_crashes_nor_yields_a_token_outside_the_support(
    sampler: Sampler, ids: list[int], probs: list[float]
) -> None:
    logits = random_rows(2, 40, 8)
    for seed in range(30):
        state = make_state(Acceptance.REJECTION, seed, top_k=4)
        row = VerifyRow(state, [5], torch.tensor([ids], dtype=torch.int32), torch.tensor([probs]))
        outcome = sampler.verify(logits, [row])[0]
        support = process(logits[0], state, [], columns_of(40, CPU)).columns
        assert support is not None
        assert outcome.tokens[0] in support.tolist()
        assert outcome.error == ""


@pytest.mark.parametrize("acceptance", list(Acceptance))
def test_a_draft_outside_the_vocabulary_is_rejected(sampler: Sampler, acceptance: Acceptance) -> None:
    for draft in (40, 2**31 - 1):
        outcome = sampler.verify(random_rows(2, 40, 9), [VerifyRow(make_state(acceptance), [draft])])[0]
        assert outcome.accepted_len == 0
        assert len(outcome.tokens) == 1


@pytest.mark.parametrize("sampling", [{}, {"top_k": 5, "presence_penalty": 0.8}], ids=str)
def test_rejection_decides_by_the_functions_whose_law_is_proven(sampler: Sampler, sampling: dict[str, float]) -> None:
    """Ties the enumerated law to the product: the same numbers, the same functions, in order."""
    vocab, drafts = 12, [4, 7]
    logits = random_rows(3, vocab, 12, scale=0.7)
    logits[0, 4] = logits[1, 7] = 1.2
    q_ids = torch.tensor([[4, 1, 0], [7, 4, -1]], dtype=torch.int32)
    q_probs = torch.tensor([[0.6, 0.3, 0.1], [0.75, 0.25, 0.0]])
    seen = set()
    for seed in range(150):
        state = make_state(Acceptance.REJECTION, seed, **sampling)
        expected: list[int] = []
        for index in range(3):
            p = distribution(process(logits[index], state, drafts[:index], columns_of(vocab, CPU)), vocab)
            u_target = uniform(seed, len(PROMPT) + index, Purpose.TARGET)
            if index == 2:
                expected.append(draw(p, u_target))
                break
            q = read_q(q_ids[index], q_probs[index], vocab)
            accept = accept_prob(float(p[drafts[index]]), q.of(drafts[index]))
            if uniform(seed, len(PROMPT) + index, Purpose.ACCEPT) >= accept:
                expected.append(draw(residual(p, q), u_target))
                break
            expected.append(drafts[index])
        seen.add(len(expected))
        outcome = sampler.verify(logits, [VerifyRow(state, drafts, q_ids, q_probs)])[0]
        assert outcome == Outcome(len(expected) - 1, tuple(expected))
    assert seen == {1, 2, 3}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "reduced"),
    [({}, False), ({"top_p": 0.8, "repetition_penalty": 1.3, "temperature": 0.7}, True)],
    ids=["plain", "processors, reduced draft vocabulary"],
)
def test_rejection_through_the_real_path_has_the_targets_law(
    sampler: Sampler, sampling: dict[str, float], reduced: bool
) -> None:
    vocab, num_runs = 4, 800
    draft_ids = torch.tensor([2, 0, 3], dtype=torch.int32) if reduced else None
    counts = torch.zeros(vocab, vocab, dtype=torch.float64)
    for seed in range(num_runs):
        state = make_state(Acceptance.REJECTION, seed, **sampling)
        first, second = generate(sampler, state, [2, 1], vocab, 2, draft_ids=draft_ids, top_m=2)
        counts[first, second] += 1
    columns = columns_of(vocab, CPU)
    state = make_state(Acceptance.REJECTION, **sampling)
    p_first = distribution(process(model_row(PROMPT, 1, vocab), state, [], columns), vocab)
    expected = torch.stack(
        [
            p_first[token]
            * distribution(process(model_row([*PROMPT, token], 1, vocab), state, [token], columns), vocab)
            for token in range(vocab)
        ]
    )
    possible = expected > 0
    assert counts[~possible].sum() == 0
    assert chi_square_z(counts[possible], expected[possible] * num_runs) < 3.5


@pytest.mark.parametrize("draft_lens", [[1], [3], [0, 2, 5]], ids=str)
@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("sampling", [{}, {"top_k": 6, "frequency_penalty": 0.7}], ids=str)
def test_coupled_output_is_that_of_the_target_alone_whatever_the_drafter(
    sampler: Sampler, draft_lens: list[int], reduced: bool, sampling: dict[str, float]
) -> None:
    draft_ids = torch.tensor([9, 4, 2, 7], dtype=torch.int32) if reduced else None
    for seed in (0, 5):
        alone = generate(sampler, make_state(Acceptance.COUPLED, seed, **sampling), [0], 12, 16)
        drafted = generate(
            sampler, make_state(Acceptance.COUPLED, seed, **sampling), draft_lens, 12, 16, draft_ids=draft_ids
        )
        assert drafted == alone


@pytest.mark.slow
def test_coupled_tokens_have_the_targets_law_over_seeds(sampler: Sampler) -> None:
    vocab, num_runs = 10, 2000
    logits = random_rows(1, vocab, 11)
    outcomes = [
        sampler.verify(logits, [VerifyRow(make_state(Acceptance.COUPLED, seed))])[0] for seed in range(num_runs)
    ]
    counts = torch.bincount(torch.tensor([outcome.tokens[0] for outcome in outcomes]), minlength=vocab)
    assert chi_square_z(counts.double(), logits[0].double().softmax(-1) * num_runs) < 3.5


def test_an_equal_drafter_is_always_accepted(sampler: Sampler) -> None:
    for acceptance in (Acceptance.COUPLED, Acceptance.REJECTION):
        for seed in range(20):
            state = make_state(acceptance, seed, top_k=5)
            row = random_rows(1, 90, seed)
            choice = sampler.choose_drafts(row, [ChoiceRow(state, 3)])
            verify_row = VerifyRow(state, choice.tokens, choice.q_ids, choice.q_probs)
            outcome = sampler.verify(torch.cat([row, row]), [verify_row])[0]
            if acceptance is Acceptance.COUPLED or choice.q_probs is None:
                assert outcome.accepted_len == 1
            else:
                assert outcome.accepted_len == 1 or float(choice.q_probs.max()) < 1.0


sampling_params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    top_k=st.sampled_from([0, 1, 3, 100]),
    top_p=st.sampled_from([0.1, 0.8, 1.0]),
    min_p=st.sampled_from([0.0, 0.2]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 1.0]),
    logit_bias=st.sampled_from([{}, {4: 100.0}, {2: -100.0}]),
    max_new_tokens=st.just(50),
    min_new_tokens=st.sampled_from([0, 2, 40]),
    logprobs=st.sampled_from([None, 2]),
)


@st.composite
def verify_rows(pick: st.DrawFn) -> VerifyRow:
    vocab = 9
    spec = SequenceSpec(
        pick(sampling_params), 2, pick(st.integers(0, 2**63 - 1)), pick(st.sampled_from(list(Acceptance))), (0, 1)
    )
    state = SequenceState(1, spec, pick(st.lists(st.integers(0, vocab - 1), min_size=2, max_size=6)))
    drafts = pick(st.lists(st.integers(0, vocab - 1), max_size=3))
    if not pick(st.booleans()):
        return VerifyRow(state, drafts)
    ids = torch.randint(-1, vocab + 1, (len(drafts), 3), generator=torch.Generator().manual_seed(len(drafts)))
    probs = torch.tensor([[0.5, 0.5, 0.0]] * len(drafts)).reshape(len(drafts), 3)
    return VerifyRow(state, drafts, ids.int(), probs)


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(st.lists(verify_rows(), min_size=1, max_size=5), st.randoms(use_true_random=False), st.integers(0, 1000))
def test_outcomes_are_well_formed_and_do_not_depend_on_batch_mates(
    sampler: Sampler, rows: list[VerifyRow], random, seed: int
) -> None:
    sizes = [len(row.drafts) + 1 for row in rows]
    parts = list(random_rows(sum(sizes), 9, seed).split(sizes))
    outcomes = sampler.verify(torch.cat(parts), rows)
    for row, part, outcome in zip(rows, parts, outcomes, strict=True):
        assert 0 <= outcome.accepted_len <= len(row.drafts)
        assert len(outcome.tokens) == outcome.accepted_len + 1
        assert list(outcome.tokens[:-1]) == list(row.drafts[: outcome.accepted_len])
        sampling = row.state.spec.sampling
        assert len(outcome.logprobs) == (0 if sampling.logprobs is None else len(outcome.tokens))
        for index, token in enumerate(outcome.tokens):
            if len(row.state.tokens) + index - 2 < sampling.min_new_tokens:
                assert token not in (0, 1)
            if row.state.spec.acceptance is not Acceptance.GREEDY and not sampling.is_greedy:
                kept = process(part[index], row.state, outcome.tokens[:index], columns_of(9, CPU)).columns
                assert kept is None or token in kept.tolist()
        assert sampler.verify(part, [row]) == [outcome]
    order = list(range(len(rows)))
    random.shuffle(order)
    assert sampler.verify(torch.cat([parts[i] for i in order]), [rows[i] for i in order]) == [
        outcomes[i] for i in order
    ]
