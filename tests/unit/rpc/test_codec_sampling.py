"""SamplingParams survives the wire, and nothing out of its limits comes off it."""

from __future__ import annotations

import contextlib

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import InvalidRequest
from minedraft.rpc.codec.sampling import sampling_from_pb, sampling_to_pb
from minedraft.sampling_params import SamplingParams
from minedraft.v1 import common_pb2


def floats(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, width=32, allow_subnormal=False)


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    max_new_tokens = draw(st.none() | st.integers(1, 1 << 20))
    token_ids = st.integers(0, (1 << 31) - 1)
    return SamplingParams(
        temperature=draw(floats(0, 100)),
        top_k=draw(st.integers(0, 1 << 20)),
        top_p=draw(floats(2**-20, 1)),
        min_p=draw(floats(0, 1)),
        repetition_penalty=draw(floats(2**-20, 10)),
        presence_penalty=draw(floats(-2, 2)),
        frequency_penalty=draw(floats(-2, 2)),
        logit_bias=draw(st.dictionaries(token_ids, floats(-100, 100), max_size=8)),
        max_new_tokens=max_new_tokens,
        min_new_tokens=draw(st.integers(0, max_new_tokens or 1 << 20)),
        stop=tuple(draw(st.lists(st.text(min_size=1, max_size=16), max_size=4))),
        stop_token_ids=tuple(draw(st.lists(token_ids, max_size=4))),
        seed=draw(st.none() | st.integers(0, (1 << 63) - 1)),
        n=draw(st.integers(1, 64)),
        ignore_eos=draw(st.booleans()),
        logprobs=draw(st.none() | st.integers(0, 20)),
        skip_special_tokens=draw(st.booleans()),
        draft_len=draw(st.none() | st.integers(0, 16)),
        speculate=draw(st.booleans()),
    )


@given(sampling_params())
def test_params_survive_the_wire(params: SamplingParams) -> None:
    wire = sampling_to_pb(params).SerializeToString()
    assert sampling_from_pb(common_pb2.SamplingParams.FromString(wire)) == params


def test_an_empty_message_means_the_defaults() -> None:
    assert sampling_from_pb(common_pb2.SamplingParams()) == SamplingParams()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", float("nan")),
        ("temperature", -1.0),
        ("top_k", -1),
        ("top_p", 0.0),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("max_new_tokens", 0),
        ("seed", -1),
        ("n", 65),
        ("logprobs", 21),
        ("draft_len", 17),
        ("draft_len", -1),
        ("stop", [""]),
        ("stop_token_ids", [-1]),
        ("logit_bias", {1: float("inf")}),
    ],
)
def test_a_value_outside_its_limits_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field):
        sampling_from_pb(common_pb2.SamplingParams(**{field: value}))


@given(st.binary(max_size=200))
def test_arbitrary_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        message = common_pb2.SamplingParams.FromString(data)
    except DecodeError:  # gRPC never hands such a message over
        return
    with contextlib.suppress(InvalidRequest):
        assert sampling_from_pb(message) == sampling_from_pb(sampling_to_pb(sampling_from_pb(message)))
