"""Prompt lookup: the longest suffix, its most recent earlier occurrence, what followed."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft_workers.proposers.ngram import PromptLookup


def slow_propose(tokens: Sequence[int], draft_len: int, max_ngram: int, min_ngram: int) -> list[int]:
    for n in range(min(max_ngram, len(tokens) - 1), min_ngram - 1, -1):
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == tokens[len(tokens) - n :]:
                return list(tokens[start + n : start + n + draft_len])
    return []


def test_it_copies_what_followed_the_most_recent_occurrence() -> None:
    assert PromptLookup().propose([1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3], 2) == [8, 9]


def test_a_longer_match_wins_over_a_more_recent_shorter_one() -> None:
    assert PromptLookup().propose([1, 2, 3, 7, 9, 3, 8, 1, 2, 3], 1) == [7]


def test_a_match_near_the_end_proposes_fewer_tokens() -> None:
    assert PromptLookup().propose([5, 5], 4) == [5]
    assert PromptLookup().propose([1, 2, 1, 2], 5) == [1, 2]


def test_nothing_is_proposed_where_nothing_matches() -> None:
    assert PromptLookup().propose([], 3) == []
    assert PromptLookup().propose([1], 3) == []
    assert PromptLookup().propose([1, 2, 3], 3) == []
    assert PromptLookup(min_ngram=2).propose([1, 2, 3, 1], 3) == []


def test_bytes_of_two_neighbouring_tokens_are_no_match() -> None:
    assert PromptLookup().propose([0x00020001 << 8, 0, 0x00020001], 2) == []


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.sampled_from([0, 1, 2, 256, 65536, 2**31 - 1, 0x01010101]), max_size=40),
    st.integers(1, 5),
    st.integers(1, 4),
    st.data(),
)
def test_it_agrees_with_a_plain_search_at_every_step(
    tokens: list[int], draft_len: int, max_ngram: int, data: st.DataObject
) -> None:
    min_ngram = data.draw(st.integers(1, max_ngram))
    lookup = PromptLookup(max_ngram, min_ngram)
    for end in [*sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=4))), len(tokens)]:
        assert lookup.propose(tokens[:end], draft_len) == slow_propose(tokens[:end], draft_len, max_ngram, min_ngram)


def test_a_history_that_became_shorter_or_ends_otherwise_starts_afresh() -> None:
    lookup = PromptLookup()
    assert lookup.propose([1, 2, 3, 1, 2], 1) == [3]
    assert lookup.propose([4, 5, 4], 1) == [5]
    assert lookup.propose([4, 5, 6, 7, 5], 2) == [6, 7]
