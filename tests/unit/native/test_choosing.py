"""The native choice of tokens against the reference in minedraft_workers.sampling, and its promise about rows."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch

from minedraft.errors import ConfigError, InternalError
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.native.choosing import ChoiceRequest, ChoiceRule, ChoosingKernels, LogitRows
from minedraft_workers.native.library import ISAS
from minedraft_workers.sampling.acceptance import VerifyRow, verify
from minedraft_workers.sampling.choose import ChoiceRow, DraftChoice, choose_drafts
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState
from tests.unit.native.conftest import built_library, open_choosing

CPU = torch.device("cpu")
TOP_M = 8
NUM_CASES = 2000  # for each instruction set: each a draft, and a verification of up to four positions


@pytest.fixture(scope="module", params=ISAS)
def choosing(request: pytest.FixtureRequest) -> ChoosingKernels:
    return open_choosing(request.param)


def random_logits(rng: random.Random, num_rows: int) -> torch.Tensor:
    """Rows of many kinds: flat, steep, with ties, with -infinity, with one finite column, with NaN or infinity."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    num_columns = rng.choice([1, 2, 5, 31, 127, 128, 129, 300, 1000, 5000, 5000])
    rows = rng.choice([0, 0.1, 1, 3, 3, 10, 1000]) * torch.randn(num_rows, num_columns, generator=generator)
    if rng.random() < 0.3:
        rows = rows.round()
    if rng.random() < 0.2:
        rows[:, torch.rand(num_columns, generator=generator) < rng.choice([0.1, 0.9, 0.99])] = -math.inf
    if rng.random() < 0.05:
        rows[rng.randrange(num_rows), rng.randrange(num_columns)] = rng.choice([math.nan, math.inf, -math.inf])
    if rng.random() < 0.03:
        rows[0] = -math.inf
        rows[0, rng.randrange(num_columns)] = rng.choice([3.0, -1e30])
    # A part of wider rows: what lies beyond must not be read.
    wider = torch.full((num_rows, num_columns + 7), math.nan)
    wider[:, :num_columns] = rows
    return wider[:, :num_columns]


def random_state(rng: random.Random) -> SequenceState:
    params = SamplingParams(
        temperature=rng.choice([0, 1e-45, 1e-20, 1e-3, 0.3, 0.7, 1, 1, 1, 2, 30, 100]),
        top_k=rng.choice([0, 0, 1, 5, 50, 700, 10**6]),
        top_p=rng.choice([1, 1, 0.05, 0.5, 0.9, 0.99, 0.99999]),
        min_p=rng.choice([0, 0, 0.01, 0.2, 1]),
        repetition_penalty=rng.choice([1, 1, 1, 1.3]),
        min_new_tokens=rng.choice([0, 0, 3]),
        max_new_tokens=9,
    )
    spec = SequenceSpec(params, 2, rng.randrange(2**63), rng.choice(list(Acceptance)), (0,))
    return SequenceState(1, spec, [1] * rng.randrange(2, 50))


def random_row(rng: random.Random, logits: torch.Tensor) -> VerifyRow:
    """Drafts that are often likely, and what they may have been drawn from."""
    num_drafts, num_columns = len(logits) - 1, logits.shape[1]
    drafts = [rng.randrange(num_columns + 1) if rng.random() < 0.5 else int(row.argmax()) for row in logits[:-1]]
    if not num_drafts or rng.random() < 0.3:
        return VerifyRow(random_state(rng), drafts)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    ids = torch.randint(-1, num_columns + 1, (num_drafts, rng.choice([1, 3, 20])), generator=generator).int()
    probs = torch.rand(ids.shape, generator=generator) * torch.tensor(rng.choice([1.0, 1e-4]))
    if rng.random() < 0.8:
        ids[:, 0] = torch.tensor(drafts)
    if rng.random() < 0.1:
        probs[0, 0] = rng.choice([math.nan, math.inf, -1.0, 0.0])
    return VerifyRow(random_state(rng), drafts, ids, probs)


def same_choice(found: DraftChoice, wanted: DraftChoice) -> bool:
    """Equal tokens, and a q that is equal up to the rounding of a float32."""
    if wanted.q_ids is None or wanted.q_probs is None or found.q_ids is None or found.q_probs is None:
        return found.tokens == wanted.tokens and found.q_ids is wanted.q_ids is None
    same_q = torch.equal(found.q_ids, wanted.q_ids) and torch.allclose(found.q_probs, wanted.q_probs, atol=1e-6)
    return found.tokens == wanted.tokens and same_q


def test_native_and_reference_choose_the_same_tokens(choosing: ChoosingKernels):
    """Float32 rounding could decide otherwise, with a probability of about 1e-6 a row: here it does not."""
    sampler = Sampler(choosing)
    num_chosen = num_accepted = num_unusable = 0
    for seed in range(NUM_CASES):
        rng = random.Random(seed)
        logits = random_logits(rng, rng.choice([1, 1, 2, 4]))
        row = random_row(rng, logits)
        draft = ChoiceRow(row.state, len(row.state.tokens))
        wanted = choose_drafts(logits[:1], [draft], None, TOP_M)
        assert same_choice(sampler.choose_drafts(logits[:1], [draft], None, TOP_M), wanted), seed
        [outcome] = verify(logits, [row])
        assert sampler.verify(logits, [row]) == [outcome], seed
        num_chosen += len(outcome.tokens)
        num_accepted += outcome.accepted_len
        num_unusable += bool(outcome.error)
    assert num_chosen > NUM_CASES
    assert num_accepted > NUM_CASES / 4
    assert num_unusable > 5


@pytest.mark.parametrize("num_threads", [1, 3])
def test_a_request_gets_the_same_alone_in_a_crowd_and_on_any_threads(num_threads: int):
    alone, together = Sampler(open_choosing("auto")), Sampler(open_choosing("auto", num_threads))
    rng = random.Random(5)
    logits = 3 * torch.randn(40, 2000, generator=torch.Generator().manual_seed(5))
    parts = list(logits.split([1, 2, 3, 4] * 4))
    rows = [random_row(rng, part) for part in parts]
    drafts = [ChoiceRow(row.state, len(row.state.tokens)) for row in rows]
    for _ in range(5):
        order = rng.sample(range(len(rows)), len(rows))
        outcomes = together.verify(torch.cat([parts[i] for i in order]), [rows[i] for i in order])
        chosen = together.choose_drafts(torch.stack([parts[i][0] for i in order]), [drafts[i] for i in order])
        assert chosen.q_ids is not None
        assert chosen.q_probs is not None
        for place, i in enumerate(order):
            assert alone.verify(parts[i], [rows[i]]) == [outcomes[place]]
            one = alone.choose_drafts(parts[i][:1], [drafts[i]])
            assert one.tokens == [chosen.tokens[place]]
            if one.q_ids is not None and one.q_probs is not None:
                assert torch.equal(one.q_ids[0], chosen.q_ids[place])
                assert torch.equal(one.q_probs[0], chosen.q_probs[place])


def test_the_logits_are_left_as_they_were():
    sampler, logits = Sampler(open_choosing("auto")), torch.randn(3, 500)
    before = logits.clone()
    sampling = SamplingParams(temperature=1.0, repetition_penalty=2.0, logit_bias={3: 5.0}, top_p=0.5)
    state = SequenceState(1, SequenceSpec(sampling, 1, 3, Acceptance.REJECTION), [3, 4])
    sampler.verify(logits, [VerifyRow(state, [1, 2])])
    assert torch.equal(logits, before)


def request(**changes: Any) -> ChoiceRequest:
    logits = LogitRows(torch.zeros(3, 40))
    return replace(ChoiceRequest(logits, 0, ChoiceRule.ACCEPT, 1, 7, [5, 6]), **changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"first_row": 1}, "rows from 1, for 2 drafts"),
        ({"first_row": -1}, "rows from -1"),
        ({"drafts": [1, 2, 3]}, "for 3 drafts, are not in logits of 3 x 40"),
        ({"rule": ChoiceRule.PROPOSE}, "a proposal with 2 drafts"),
        ({"rule": ChoiceRule.PROPOSE, "drafts": []}, "a proposal with 0 drafts and top_m 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"q_ids": torch.zeros(2, 3).int()}, "q_probs must be alike"),
        ({"q_ids": torch.zeros(2, 3).int(), "q_probs": torch.zeros(2, 4)}, "q_probs must be alike"),
        ({"q_ids": torch.zeros(1, 3).int(), "q_probs": torch.zeros(1, 3)}, r"must be torch.int32 \[2, m\]"),
        ({"q_ids": torch.zeros(2, 3), "q_probs": torch.zeros(2, 3)}, "must be torch.int32"),
        ({"q_ids": torch.zeros(3, 2).int().T, "q_probs": torch.zeros(2, 3)}, "must be torch.int32"),
        ({"q_ids": torch.zeros(2, 1025).int(), "q_probs": torch.zeros(2, 1025)}, "at most 1024"),
        ({"numbers": torch.zeros(2, 2).numpy()}, "numbers are float32"),
        ({"logits": LogitRows(torch.zeros(3, 41))}, "are not in logits of 3 x 41, with 40 hashes"),
    ],
)
def test_a_request_that_does_not_fit_is_refused(changes: dict[str, Any], said: str):
    hashes = columns_of(40, CPU).noise.hashes
    kernels = open_choosing("auto")
    assert len(kernels.choose([request()], hashes).tokens[0]) > 0
    with pytest.raises(InternalError, match=said):
        kernels.choose([request(**changes)], hashes)


def test_logits_hashes_and_top_m_that_do_not_fit_are_refused():
    for logits in (torch.zeros(3), torch.zeros(2, 3).double(), torch.zeros(3, 2).T, torch.zeros(2, 0)):
        with pytest.raises(InternalError, match="logits"):
            LogitRows(logits)
    kernels = open_choosing("auto")
    for hashes in (torch.zeros(40), torch.zeros(80).int()[::2], torch.zeros(40, 1).int()):
        with pytest.raises(InternalError, match="hashes are"):
            kernels.choose([request()], hashes)
    wide = LogitRows(torch.zeros(1, 2000))
    with pytest.raises(InternalError, match="top_m is 1025"):
        kernels.choose([ChoiceRequest(wide, 0, ChoiceRule.PEAK, 1, 1)], columns_of(2000, CPU).noise.hashes, 1025)


def test_no_requests_are_no_choices():
    choices = open_choosing("auto").choose([], columns_of(40, CPU).noise.hashes, 4)
    assert choices.tokens == []
    assert choices.kept.shape == (0, 4)


def test_a_number_of_threads_out_of_range_is_named():
    if isinstance(built_library(), ConfigError):
        pytest.skip("no library")
    with pytest.raises(ConfigError, match="num_threads is 0"):
        ChoosingKernels("auto", 0)
