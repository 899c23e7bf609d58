"""Prompt lookup: the longest suffix, its most recent earlier occurrence, what followed, and how far to trust it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, DraftMethod, SequenceSpec
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.ngram import LEAST_RATE, NgramProposer, PromptLookup
from minedraft_workers.proposers.suffix_index import MAX_MATCH, MIN_MATCH, Match, SuffixIndex
from minedraft_workers.sequence import SequenceState

SPEC = SequenceSpec(SamplingParams(), 1, 0, Acceptance.GREEDY)


def index_of(tokens: Sequence[int], window: int = 1000) -> SuffixIndex:
    index = SuffixIndex(window)
    index.replace_from(0, tokens)
    return index


def slow_find(tokens: Sequence[int], num_tokens: int) -> Match | None:
    last, best, places = len(tokens) - 1, MIN_MATCH, []
    for place in range(last - 1, -1, -1):
        length = 0
        while length < MAX_MATCH and length <= place and tokens[place - length] == tokens[last - length]:
            length += 1
        if length > best:
            best, places = length, []
        if length == best:
            places.append(place)
    if not places:
        return None
    follow = list(tokens[places[0] + 1 :])
    num_agreeing = sum(tokens[place + 1] == follow[0] for place in places)
    return Match(best, num_agreeing, len(places), tuple((follow * num_tokens)[:num_tokens]))


def propose(proposer: NgramProposer, state: SequenceState, prefix_len: int, tokens: Sequence[int]) -> list[int]:
    row = DraftRow(state, prefix_len, tokens, 3)
    proposer.propose([row])
    return row.drafts


def test_it_copies_what_followed_the_most_recent_occurrence() -> None:
    match = index_of([1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3]).find(2)
    assert match == Match(3, 1, 2, (8, 9))


def test_a_longer_match_wins_over_a_more_recent_shorter_one() -> None:
    assert index_of([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3]).find(1) == Match(3, 1, 1, (7,))


def test_a_match_near_the_end_goes_on_with_its_period() -> None:
    assert index_of([5, 5, 5]).find(4) == Match(2, 1, 1, (5, 5, 5, 5))
    assert index_of([1, 2, 1, 2]).find(5) == Match(2, 1, 1, (1, 2, 1, 2, 1))


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3], [1, 2, 3, 1]])
def test_nothing_is_found_where_no_two_tokens_occur_again(tokens: list[int]) -> None:
    assert index_of(tokens).find(3) is None


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([0, 1, 2, 65536, 2**31 - 1]), max_size=60), st.integers(1, 5), st.data())
def test_it_agrees_with_a_plain_search_at_every_step(tokens: list[int], num_tokens: int, data: st.DataObject) -> None:
    """Rounds resend tokens that are known, and a text may end otherwise than before."""
    index, text = SuffixIndex(), list[int]()
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4))), len(tokens)]:
        start = data.draw(st.integers(0, len(text)))
        if start:
            tokens[start - 1] = text[start - 1]
        text = [*text[:start], *tokens[start:end]]
        index.replace_from(start, text[start:])
        assert len(index) == len(text)
        assert index.find(num_tokens) == slow_find(text, num_tokens)


def test_a_long_text_keeps_a_window_of_its_newest_tokens() -> None:
    window, tokens = 50, [n % 7 for n in range(20)] + [n * n % 83 for n in range(400)]
    index = SuffixIndex(window)
    for position, token in enumerate(tokens):
        index.replace_from(position, [token])
        held = min(position + 1, window)
        found, expected = index.find(2), slow_find(tokens[position + 1 - held : position + 1], 2)
        assert found is not None or expected is None
        if expected is not None and found is not None:
            assert found.length >= expected.length
    assert len(index) == len(tokens)
    assert index.token_at(len(tokens) - 2 * window) is None
    assert index.token_at(len(tokens) - 1) == tokens[-1]


def test_a_match_whose_occurrences_disagree_is_not_used() -> None:
    proposer = NgramProposer()
    agreeing = SequenceState(1, SPEC)
    assert propose(proposer, agreeing, 0, [1, 2, 3, 4, 1, 2, 3, 5, 1, 2]) == [3, 5, 1]
    split = SequenceState(2, SPEC)
    assert propose(proposer, split, 0, [1, 2, 3, 4, 1, 2, 7, 5, 1, 2]) == []
    assert agreeing.tokens == [1, 2, 3, 4, 1, 2, 3, 5, 1, 2], "no draft is cached"


def test_it_learns_which_matches_come_true() -> None:
    """A text in which every pair is followed by what did not follow it before."""
    proposer, state = NgramProposer(), SequenceState(1, SPEC)
    text = [1, 2]
    num_proposed = []
    for round_number in range(60):
        is_first = not state.tokens
        drafts = propose(proposer, state, 0 if is_first else len(text) - 3, text if is_first else text[-3:])
        num_proposed.append(len(drafts))
        text += [100 + round_number, 1, 2] if round_number % 2 else [7, 1, 2]
    assert any(num_proposed[:20])
    assert not any(num_proposed[-10:])


def test_what_it_has_learned_outlives_requests_and_epochs() -> None:
    lookup = PromptLookup()
    text, position = [1, 2, 3, 1, 2], 5
    for request_id in range(40):
        row = DraftRow(SequenceState(request_id, SPEC), 0, text, 2)
        lookup.read(row)
        lookup.find(row, LEAST_RATE)
        lookup.read(DraftRow(row.state, position, [9], 2))
        lookup.clear()
    row = DraftRow(SequenceState(99, SPEC), 0, text, 2)
    lookup.read(row)
    assert not lookup.find(row, LEAST_RATE)
    assert row.drafts == []
    assert lookup.find(row, 0.0)
    assert row.source is DraftMethod.NGRAM
