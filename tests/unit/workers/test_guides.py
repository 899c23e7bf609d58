"""The law of sampled tokens under a grammar, and a guide that is sent back and forth."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from minedraft.errors import ConfigError, InvalidRequest
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.sampling.acceptance import VerifyRow
from minedraft_workers.sampling.choose import ChoiceRow
from minedraft_workers.sampling.guides import Guides
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import SequenceState
from tests.support.tiny_models import write_tiny_tokenizer

VOCAB = 8
NUM = 3000
LETTER_A = 67  # of the tiny tokenizer, with the others behind it


class Only:
    """Allows some tokens at the first position of the output, and others after each of them."""

    def __init__(self, first: set[int], after: dict[int, set[int]]) -> None:
        self._first, self._after = first, after
        self._at: list[int] = []

    def move_to(self, tokens: Sequence[int], extra: Sequence[int] = ()) -> bool:
        self._at = []
        for token in [*tokens[1:], *extra]:  # after a prompt of one token
            if token not in self._next():
                return False
            self._at.append(token)
        return True

    def allowed(self, num_columns: int) -> np.ndarray:
        return np.isin(np.arange(num_columns), list(self._next()))

    def _next(self) -> set[int]:
        return self._after[self._at[0]] if self._at else self._first


FIRST, AFTER = {1, 2, 5}, {1: {0, 3}, 2: {4}, 5: {6, 7, 0}}


def samplers() -> list[Sampler]:
    made = [Sampler()]
    with suppress(ConfigError):  # no compiler here: the reference alone
        made.append(Sampler.native())
    return made


def state_for(seed: int) -> SequenceState:
    params = SamplingParams(temperature=1.0, max_new_tokens=8, regex="x")
    state = SequenceState(1, SequenceSpec(params, 1, seed, Acceptance.REJECTION), [0])
    state.guide = Only(FIRST, AFTER)  # type: ignore[assignment]
    return state


def law(logits: torch.Tensor, allowed: set[int]) -> np.ndarray:
    masked = torch.full_like(logits, -torch.inf)
    masked[list(allowed)] = logits[list(allowed)]
    return masked.softmax(-1).double().numpy()


@pytest.mark.parametrize("sampler", samplers(), ids=["torch", "native"][: len(samplers())])
def test_two_drafted_tokens_have_the_law_of_the_masked_target(sampler: Sampler) -> None:
    generator = torch.Generator().manual_seed(3)
    target = torch.randn(3, VOCAB, generator=generator)  # the target's rows do not depend on the tokens before
    draft = torch.randn(2, VOCAB, generator=generator)
    counts: dict[tuple[int, int], int] = {}
    for seed in range(NUM):
        state = state_for(seed)
        drafts: list[int] = []
        q_ids, q_probs = [], []
        for index in range(2):
            made = sampler.choose_drafts(
                draft[index : index + 1].clone(), [ChoiceRow(state, 1 + index, tuple(drafts))], None, 4
            )
            assert made.q_ids is not None
            assert made.q_probs is not None
            token = made.tokens[0]
            assert token is not None
            drafts.append(token)
            q_ids.append(made.q_ids)
            q_probs.append(made.q_probs)
        row = VerifyRow(state, drafts, torch.cat(q_ids), torch.cat(q_probs))
        [outcome] = sampler.verify(target.clone(), [row])
        tokens = list(outcome.tokens[:2])
        if len(tokens) < 2:  # the next round decides the second one
            state.tokens.extend(tokens)
            [more] = sampler.verify(target[1:2].clone(), [VerifyRow(state)])
            tokens += more.tokens
        counts[tokens[0], tokens[1]] = counts.get((tokens[0], tokens[1]), 0) + 1
    expected = {
        (first, second): NUM * law(target[0], FIRST)[first] * law(target[1], AFTER[first])[second]
        for first in FIRST
        for second in AFTER[first]
    }
    assert set(counts) <= set(expected)
    keys = sorted(expected)
    wanted = np.array([expected[key] for key in keys])
    found = chisquare([counts.get(key, 0) for key in keys], wanted * (NUM / wanted.sum()))
    assert found.pvalue > 1e-4


@pytest.fixture(scope="module")
def guides(tmp_path_factory: pytest.TempPathFactory) -> Guides:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    (folder / "config.json").write_text('{"eos_token_id": 2}')
    return Guides(folder)


def spec(num_prompt: int = 0, **grammar: str) -> SequenceSpec:
    return SequenceSpec(SamplingParams(**grammar), num_prompt, 1, Acceptance.GREEDY)  # type: ignore[arg-type]


def test_a_guide_that_went_back_allows_what_a_fresh_one_does(guides: Guides) -> None:
    one = spec(1, json_schema='{"type": "array", "items": {"enum": ["ab", "abc", 17]}}')
    state, rng = SequenceState(1, one, [9]), random.Random(7)
    walker = state.guide = guides.make(one)
    for _ in range(200):
        fresh = guides.make(one)
        assert fresh.move_to(state.tokens)
        assert walker.move_to(state.tokens)
        allowed = walker.allowed(320)
        assert (allowed == fresh.allowed(320)).all()
        ids = np.flatnonzero(allowed).tolist()
        wrong = rng.choice([i for i in range(320) if i not in ids])
        assert not walker.move_to(state.tokens, [wrong])
        assert walker.count_allowed(state.tokens, [rng.choice(ids), wrong, wrong]) in (1, 2, 3)
        if rng.random() < 0.7:
            state.replace_from(len(state.tokens), [rng.choice(ids)])
        else:  # some may come again
            num_left = rng.randrange(1, len(state.tokens) + 1)
            state.replace_from(num_left, state.tokens[num_left : rng.randrange(num_left, len(state.tokens) + 1)])
        if state.tokens[-1] == 2:
            assert walker.move_to(state.tokens)
            assert walker.allowed(320).all()  # the output has ended
            state.replace_from(len(state.tokens) - 1, [])


def test_drafts_that_replace_others_are_read_anew(guides: Guides) -> None:
    """As when a draft was rejected, and when a drafter that ran ahead takes up another branch."""
    one = spec(3, regex="(ab|cd)+")
    a, b, c, d = (LETTER_A + index for index in range(4))
    state = SequenceState(1, one, [5, 6, 7])
    guide = state.guide = guides.make(one)
    assert guide.move_to(state.tokens, [a, b, c, d])
    assert guide.count_allowed(state.tokens, [c, d, d]) == 2
    state.tokens.extend([a, b])
    assert guide.move_to(state.tokens)
    state.replace_from(3, [c, d])
    assert guide.count_allowed(state.tokens, [a, c]) == 1
    state.replace_from(4, [])
    assert not guide.move_to(state.tokens, [b])
    assert guide.move_to(state.tokens, [d])


class Read(list[int]):
    """Tokens that count how many of them are read."""

    num = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.num += len(found) if isinstance(index, slice) else 1
        return found

    def __iter__(self) -> Iterator[int]:
        self.num += len(self)
        return super().__iter__()


def test_the_cost_of_a_place_does_not_grow_with_the_output(guides: Guides) -> None:
    guide = guides.make(spec(2, regex="a*"))
    tokens = Read([5, 6, *[LETTER_A] * 500])
    assert guide.move_to(tokens)
    tokens.num = 0
    for num_drafts in (0, 3, 1, 2):
        assert guide.move_to(tokens, [LETTER_A] * num_drafts)
        assert guide.count_allowed(tokens, [LETTER_A, 319]) == 1
    tokens.append(LETTER_A)
    assert guide.forced_after(tokens, [LETTER_A], 8) == ()
    assert tokens.num == 1, "the one that came"


def test_what_a_grammar_forces_are_the_only_tokens_that_it_allows(guides: Guides) -> None:
    guide = guides.make(spec(regex="(a|b)longer words than most(x|y)"))
    [first, second] = [int(i) for i in np.flatnonzero(guide.allowed(320))[:2]]
    for chosen in (first, second, first):
        forced = guide.forced_after([], [chosen], 64)
        assert len(forced) > 5
        assert guide.forced_after([], [chosen], 3) == forced[:3]
        for num_done, token in enumerate(forced):
            assert guide.move_to([], [chosen, *forced[:num_done]])
            assert np.flatnonzero(guide.allowed(320)).tolist() == [token]
        assert guide.move_to([], [chosen, *forced])
        assert guide.allowed(320).sum() == 2
        last = [chosen, *forced, int(np.flatnonzero(guide.allowed(320))[0])]
        assert guide.forced_after([], last, 64) == (2,), "the end is forced too"
        assert guide.forced_after([], [*last, 2], 64) == ()
    assert guide.forced_after([], [319], 64) == (), "not allowed"


@pytest.mark.parametrize(
    ("kind", "text"),
    [("json_schema", "{"), ("json_schema", '{"type": "wrong"}'), ("regex", "a(b"), ("lark", "start: nothing")],
)
def test_a_grammar_that_is_none_is_named(guides: Guides, kind: str, text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        guides.make(spec(**{kind: text}))
    assert caught.value.field == kind


def test_the_padding_rows_of_the_output_layer_are_never_allowed(guides: Guides, tmp_path: Path) -> None:
    guide = guides.make(spec(regex="(.|\n)*"))
    assert not guide.allowed(50_000)[320:].any()
