"""What SamplingParams takes and refuses, and how an unset length limit becomes a number."""

from __future__ import annotations

from dataclasses import fields
from fractions import Fraction

import numpy as np
import pytest

from minedraft.cli.flags.sampling import to_sampling_params
from minedraft.errors import InvalidRequest
from minedraft.sampling_params import SamplingParams


def test_none_in_a_field_means_that_it_is_not_given() -> None:
    assert SamplingParams(**{each.name: None for each in fields(SamplingParams)}) == SamplingParams()


def test_numbers_of_numpy_are_numbers_and_become_pythons() -> None:
    params = SamplingParams(
        temperature=np.float32(0.5),
        top_p=np.float64(0.25),
        top_k=np.int64(3),
        seed=np.uint64(2**62),
        max_new_tokens=np.int32(9),
        stop_token_ids=np.array([4, 5]),
        logit_bias={np.int64(7): np.float16(2)},
    )
    plain = SamplingParams(
        temperature=0.5, top_p=0.25, top_k=3, seed=2**62, max_new_tokens=9, stop_token_ids=(4, 5), logit_bias={7: 2.0}
    )
    assert params == plain
    assert {type(getattr(params, each.name)) for each in fields(SamplingParams)} == {
        type(getattr(plain, each.name)) for each in fields(SamplingParams)
    }
    assert [type(x) for x in (params.temperature, params.seed, *params.stop_token_ids)] == [float, int, int, int]
    assert SamplingParams(temperature=Fraction(1, 2)) == SamplingParams(temperature=0.5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "0.5"),
        ("temperature", True),
        ("temperature", [0.5]),
        ("top_p", complex(1)),
        ("top_k", 1.5),
        ("top_k", np.array(3)),
        ("max_new_tokens", 10**400),
        ("presence_penalty", 10**400),
        ("seed", "7"),
        ("n", 2.0),
        ("ignore_eos", "no"),
        ("skip_special_tokens", 0),
        ("speculate", 0),
        ("draft_len", 2.0),
        ("stop", 5),
        ("stop", b"ab"),
        ("stop", [None]),
        ("stop", "\ud800"),
        ("stop", ["ok", "a\udfffb"]),
        ("stop_token_ids", 5),
        ("stop_token_ids", [True]),
        ("stop_token_ids", ["2"]),
        ("logit_bias", [3]),
        ("logit_bias", {"3": 1.0}),
        ("logit_bias", {3: None}),
    ],
)
def test_a_value_of_another_type_is_an_invalid_request(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "room", "limit"),
    [
        ({}, 1000, 128),
        ({}, 60, 60),
        ({}, 1, 1),
        ({"min_new_tokens": 200}, 1000, 200),
        ({"min_new_tokens": 200}, 250, 200),
        ({"max_new_tokens": 9}, 1000, 9),
        ({"max_new_tokens": 500}, 60, 500),  # the scheduler refuses it with both numbers
    ],
)
def test_only_a_length_limit_that_nobody_gave_shrinks_to_what_fits(given, room: int, limit: int) -> None:
    assert SamplingParams(**given).fit(room, default=128).output_limit == limit


def test_a_least_length_that_cannot_fit_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_new_tokens is 61: at most 60 fit"):
        SamplingParams(min_new_tokens=61).fit(60, default=128)


def test_a_zero_on_the_command_line_is_a_value() -> None:
    flags = {"temperature": 0.0, "seed": 0, "logprobs": 0, "min_new_tokens": 0, "stop": (), "top_k": None}
    assert to_sampling_params(flags) == SamplingParams(seed=0, logprobs=0)
    for name in ("max_new_tokens", "n", "top_p", "repetition_penalty"):
        with pytest.raises(InvalidRequest, match=f"{name} is 0"):
            to_sampling_params({name: 0})
    assert not to_sampling_params({"keep_special_tokens": True}).skip_special_tokens
    assert to_sampling_params({"keep_special_tokens": None}).skip_special_tokens
    assert to_sampling_params({"draft_len": 0, "no_speculation": True}) == SamplingParams(draft_len=0, speculate=False)
    assert to_sampling_params({"draft_len": None, "no_speculation": None}) == SamplingParams()


@pytest.mark.parametrize(
    ("given", "limit"),
    [({}, 5), ({"draft_len": 0}, 0), ({"draft_len": 3}, 3), ({"draft_len": 9}, 5), ({"speculate": False}, 0)],
)
def test_a_request_can_have_fewer_drafts_than_the_service_gives_never_more(given, limit: int) -> None:
    assert SamplingParams(**given).draft_limit(5) == limit
