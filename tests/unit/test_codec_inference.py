import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import InvalidRequest
from minedraft.output import BatchState, Output, ServiceStatus, WorkerState, join_outputs
from minedraft.rpc.codec_inference import (
    MAX_PROMPT_BYTES,
    ChatPrompt,
    GenerateCall,
    TextPrompt,
    TokenPrompt,
    generate_from_pb,
    generate_to_pb,
    output_from_pb,
    output_to_pb,
    status_from_pb,
    status_to_pb,
    to_prompt,
)
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason, TokenLogprobs
from minedraft.usage import RequestUsage
from minedraft.v1 import inference_pb2

prompts = st.one_of(
    st.builds(TextPrompt, st.text(min_size=1, max_size=50)),
    st.builds(TokenPrompt, st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=50).map(tuple)),
    st.builds(
        ChatPrompt,
        st.lists(
            st.fixed_dictionaries({"role": st.text(min_size=1, max_size=9), "content": st.text(max_size=20)}),
            min_size=1,
            max_size=5,
        ).map(tuple),
    ),
)
halves = st.integers(-64, 64).map(lambda number: number / 2)  # exact in float32
outputs = st.builds(
    Output,
    text=st.text(),
    token_ids=st.lists(st.integers(0, 2**31 - 1)).map(tuple),
    finish_reason=st.none() | st.sampled_from(FinishReason),
    usage=st.none() | st.builds(RequestUsage, *[st.integers(0, 9)] * 5, *[st.floats(0, 9)] * 3),
    logprobs=st.lists(st.builds(TokenLogprobs, halves, st.just((3, 4)), st.just((-1.5, -2.0)))).map(tuple),
    index=st.integers(0, 63),
    request_id=st.text(max_size=9),
)


@given(prompt=prompts, request_id=st.text(st.characters(categories=["L", "N"]), max_size=64))
def test_a_call_survives_the_wire(prompt, request_id):
    call = GenerateCall(prompt, SamplingParams(top_p=0.5, seed=7, stop=("x",)), request_id)
    assert generate_from_pb(generate_to_pb(call)) == call


@given(output=outputs)
def test_an_output_survives_the_wire(output):
    assert output_from_pb(output_to_pb(output)) == output


def test_a_status_survives_the_wire():
    status = ServiceStatus(
        state="serving",
        mode="sd",
        vsr=0.5,
        batches=(BatchState("A", 3, 9), BatchState("B")),
        workers=(WorkerState("drafter", "ready", num_blocks=7, busy=0.25),),
        errors={"OVERLOADED": 2},
        uptime_s=1.5,
    )
    assert status_from_pb(status_to_pb(status)) == status


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", TextPrompt("hi")),
        ([1, 2], TokenPrompt((1, 2))),
        ([{"role": "user", "content": "hi"}], ChatPrompt(({"role": "user", "content": "hi"},))),
    ],
)
def test_the_kind_of_a_prompt_is_seen(prompt, expected):
    assert to_prompt(prompt) == expected


@pytest.mark.parametrize(
    ("prompt", "limit"),
    [
        ("", "must not be empty"),
        ([], "must not be empty"),
        (b"bytes", "a string, a list of token ids or a list of messages"),
        (7, "a string, a list of token ids or a list of messages"),
        ([1, -1], "each token id is an integer"),
        ([1, 2**31], "each token id is an integer"),
        ([1, "2"], "each token id is an integer"),
        ([True], "each token id is an integer"),
        ([{"role": "user"}], "exactly the keys"),
        ([{"role": "user", "content": None}], "content is a string"),
        ([{"role": "", "content": ""}], "role has 1 to 64 characters"),
        ([{"role": "user", "content": "x"}, 3], "exactly the keys"),
        ("x" * (MAX_PROMPT_BYTES + 1), "at most 1048576 bytes"),
        ("é" * (MAX_PROMPT_BYTES // 2 + 1), "1048578 bytes"),
        ("\ud800", "not valid Unicode"),
        (range(2**18 + 1), "at most 262144 tokens"),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused(prompt, limit):
    with pytest.raises(InvalidRequest, match=limit) as caught:
        to_prompt(prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (inference_pb2.GenerateRequest(), "prompt"),
        (inference_pb2.GenerateRequest(text=""), "prompt"),
        (inference_pb2.GenerateRequest(chat=inference_pb2.Chat()), "prompt"),
        (inference_pb2.GenerateRequest(token_ids=inference_pb2.TokenIds(ids=[-5])), "prompt"),
        (inference_pb2.GenerateRequest(text="x", request_id="y" * 65), "request_id"),
        (inference_pb2.GenerateRequest(text="x", request_id="a\nb"), "request_id"),
        (inference_pb2.GenerateRequest(text="x", sampling={"temperature": float("nan")}), "temperature"),
        (inference_pb2.GenerateRequest(text="x", sampling={"max_new_tokens": 0}), "max_new_tokens"),
    ],
)
def test_a_hostile_message_is_refused_by_field(message, field):
    with pytest.raises(InvalidRequest) as caught:
        generate_from_pb(message)
    assert caught.value.field == field


@given(data=st.binary(max_size=200))
def test_random_bytes_decode_or_are_refused(data):
    try:
        message = inference_pb2.GenerateRequest.FromString(data)
    except Exception:  # protobuf's own refusal comes before ours
        return
    with contextlib.suppress(InvalidRequest):
        generate_from_pb(message)


def test_pieces_join_into_the_whole():
    end = Output("c", (3,), FinishReason.STOP, RequestUsage(1, 3, 2, 1, 1, 0, 0, 0), index=2, request_id="r")
    whole = join_outputs([Output("a", (1,), index=2), Output("b", (2,), index=2), end])
    assert (whole.text, whole.token_ids, whole.finish_reason, whole.index) == ("abc", (1, 2, 3), FinishReason.STOP, 2)
    assert whole.usage is end.usage
