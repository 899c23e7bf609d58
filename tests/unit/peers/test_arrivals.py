"""Rates follow from arrival times, whatever order the tokens of a step arrive in."""

from __future__ import annotations

import pytest

from scripts.lib.peers.arrivals import Stream, steady_rate, to_rates


def stream(*arrivals_s: float, sent_s: float = 0.0, num_prompt_tokens: int = 10, size: int = 1) -> Stream:
    return Stream(num_prompt_tokens, sent_s, arrivals_s, (size,) * len(arrivals_s))


def test_two_streams_in_step_decode_at_twice_the_rate_of_one():
    late = [stream(1.00, 1.10, 1.20, 1.30), stream(1.01, 1.11, 1.21, 1.31)]
    assert steady_rate(late[:1]) == pytest.approx(10)
    assert steady_rate(late) == pytest.approx(20)


def test_prompts_and_ends_of_others_are_not_in_the_steady_rate():
    first = stream(1.0, 1.5, 2.0, 2.1, 2.2, 2.3, 2.4, 3.0)  # slow before 2.0, where the second prompt runs
    second = stream(2.0, 2.1, 2.2, 2.3)
    assert steady_rate([first, second]) == pytest.approx(20)


def test_pieces_of_several_tokens_count_whole():
    assert steady_rate([stream(1.0, 1.5, 2.0, size=3)]) == pytest.approx(6)


@pytest.mark.parametrize(
    "streams",
    [
        pytest.param([stream(1.0)], id="one token"),
        pytest.param([stream(1.0, 1.1, 1.2), stream(2.0, 2.1, 2.2)], id="never together"),
        pytest.param([stream(1.0, 1.0)], id="all at one time"),
    ],
)
def test_no_rate_is_told_where_there_is_none(streams: list[Stream]):
    assert steady_rate(streams) is None


def test_wall_prompt_and_first_token_times():
    rates = to_rates([stream(0.5, 1.0, num_prompt_tokens=30), stream(1.2, 2.2, sent_s=0.2, num_prompt_tokens=60)])
    assert rates.wall_tokens_per_s == pytest.approx(4 / 2.2)
    assert rates.prompt_tokens_per_s == pytest.approx(90 / 1.2)
    assert rates.first_token_s == pytest.approx(0.75)
    assert rates.last_first_token_s == pytest.approx(1.0)
    assert (rates.num_tokens, rates.num_prompt_tokens) == (4, 90)
