import contextlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.core.limits import SchedulerLimits
from minedraft.errors import InvalidRequest
from minedraft.messages import TokenLogprobs
from minedraft.output import (
    AcceptanceState,
    BatchState,
    Output,
    RequestUsage,
    ServiceStatus,
    SourceState,
    WorkerState,
    join_outputs,
)
from minedraft.prompts import (
    MAX_PROMPT_BYTES,
    MAX_TIMEOUT_S,
    ChatPrompt,
    GenerateCall,
    TextPrompt,
    TokenPrompt,
    check_timeout,
    to_call,
    to_prompt,
)
from minedraft.rpc.codec.inference import (
    borrow_from_pb,
    borrow_to_pb,
    generate_from_pb,
    generate_to_pb,
    output_from_pb,
    output_to_pb,
    status_from_pb,
    status_to_pb,
)
from minedraft.sampling_params import SamplingParams
from minedraft.types import FinishReason, LoanTerms, Mode
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
        sources=(SourceState("model", 3, 9, 4), SourceState("ngram", 1, 3, 3)),
        acceptances=(AcceptanceState(3, 1, 7), AcceptanceState(3, 3, 2)),
        both_busy_s=0.75,
    )
    assert status_from_pb(status_to_pb(status)) == status


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("hi", TextPrompt("hi")),
        ([1, 2], TokenPrompt((1, 2))),
        ([{"role": "user", "content": "hi"}], ChatPrompt(({"role": "user", "content": "hi"},))),
        ((1, np.int64(2)), TokenPrompt((1, 2))),
        (np.array([1, 2], dtype=np.uint16), TokenPrompt((1, 2))),
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
        ([1, -1], "each token id must be an integer"),
        ([1, 2**31], "each token id must be an integer"),
        ([1, "2"], "each token id must be an integer"),
        ([True], "each token id must be an integer"),
        ([{"role": "user"}], "exactly the keys"),
        ([{"role": "user", "content": None}], "content must be a string"),
        ([{"role": "", "content": ""}], "role must have 1 to 64 characters"),
        ([{"role": "user", "content": "x"}, 3], "exactly the keys"),
        ("x" * (MAX_PROMPT_BYTES + 1), "at most 786432 bytes"),
        ("é" * (MAX_PROMPT_BYTES // 2 + 1), "786434 bytes"),
        ("\ud800", "must be valid Unicode"),
        (range(2**18 + 1), "at most 262144 tokens"),
        (range(10**12), "at most 262144 tokens"),
        (bytearray(b"bytes"), "a string, a list of token ids or a list of messages"),
        ({5, 6}, "a string, a list of token ids or a list of messages"),
        (np.array(5), "a string, a list of token ids or a list of messages"),
        (np.array([[5, 6]]), "each token id must be an integer"),
        ([5.0], "each token id must be an integer"),
        ([np.True_], "each token id must be an integer"),
        ([10**5000], "each token id must be an integer"),
        ([{"role": "\ud800", "content": "x"}], "must be valid Unicode"),
        ([{"role": "user", "content": "\ud800"}], "must be valid Unicode"),
    ],
)
def test_a_prompt_that_cannot_be_sent_is_refused(prompt, limit):
    with pytest.raises(InvalidRequest, match=limit) as caught:
        to_prompt(prompt)
    assert caught.value.field == "prompt"


@pytest.mark.parametrize("request_id", [5, b"a", "a\nb", "\ud800", "y" * 65])
def test_a_request_id_is_short_printable_text(request_id):
    with pytest.raises(InvalidRequest, match="at most 64 printable characters") as caught:
        to_call("x", None, request_id)
    assert caught.value.field == "request_id"


def test_what_is_not_given_has_a_default_and_every_call_gets_an_id_of_its_own():
    calls = [to_call("x", None, None), to_call("x", SamplingParams(), "")]
    assert [call.sampling for call in calls] == [SamplingParams()] * 2
    assert len({call.request_id for call in calls} - {""}) == 2


@pytest.mark.parametrize("params", [{}, {"top_k": 1}, 5, "greedy"])
def test_sampling_parameters_of_another_kind_are_refused(params):
    with pytest.raises(InvalidRequest, match="must be SamplingParams") as caught:
        to_call("x", params, None)
    assert caught.value.field == "params"


@pytest.mark.parametrize("timeout_s", ["5", -1, float("nan"), True, b"5", [1]])
def test_a_deadline_that_is_none_is_refused(timeout_s):
    with pytest.raises(InvalidRequest, match="must be a number of seconds") as caught:
        check_timeout(timeout_s)
    assert caught.value.field == "timeout_s"


@pytest.mark.parametrize(
    ("timeout_s", "expected"),
    [(None, None), (0, 0.0), (np.float32(0.5), 0.5), (float("inf"), MAX_TIMEOUT_S), (10**400, MAX_TIMEOUT_S)],
)
def test_a_deadline_may_be_any_number_and_as_far_away_as_one_likes(timeout_s, expected):
    assert check_timeout(timeout_s) == expected


def test_limits_survive_the_wire_and_keep_what_a_borrower_cannot_set():
    own = SchedulerLimits(max_model_len=77)
    asked = own.lent(borrow_from_pb(borrow_to_pb(LoanTerms(Mode.SD, 2, 5, keep_cores=True))))
    assert asked == replace(own, mode=Mode.SD, max_batch_size=2, draft_len=5, is_lent=True, keep_cores=True)


def test_terms_out_of_range_are_refused_on_both_ends_of_the_wire():
    for mode, most in (("minedraft", 256), ("sd", 512), ("ar", 512)):
        borrow_from_pb(inference_pb2.BorrowRequest(mode=mode, max_batch_size=most, draft_len=1))
        with pytest.raises(InvalidRequest, match="max_batch_size"):
            borrow_from_pb(inference_pb2.BorrowRequest(mode=mode, max_batch_size=most + 1, draft_len=1))


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        (("warp", 2, 2), "mode"), ((None, 2, 2), "mode"), (("sd", 0, 2), "max_batch_size"),
        (("sd", "2", 2), "max_batch_size"), (("sd", 2, 17), "draft_len"), (("sd", 2, 2.0), "draft_len"),
    ],
)  # fmt: skip
def test_limits_out_of_range_are_refused(limits, field):
    with pytest.raises(InvalidRequest) as caught:
        LoanTerms.check(*limits)
    assert caught.value.field == field


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


def test_the_rounds_of_an_output_arrive():
    output = Output("abc", (1, 2, 3), request_id="r", round_lens=(2, 1))
    assert output_from_pb(output_to_pb(output)) == output


def test_pieces_join_into_the_whole():
    end = Output("c", (3,), FinishReason.STOP, RequestUsage(1, 3, 2, 1, 1, 0, 0, 0), index=2, request_id="r")
    whole = join_outputs([Output("a", (1,), index=2), Output("b", (2,), index=2), end])
    assert (whole.text, whole.token_ids, whole.finish_reason, whole.index) == ("abc", (1, 2, 3), FinishReason.STOP, 2)
    assert whole.usage is end.usage
