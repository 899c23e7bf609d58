"""What a foreign client may get wrong: a standard code, the field in a BadRequest, and nothing of it in the log."""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from minedraft import AsyncClient, SamplingParams
from minedraft.prompts import MAX_PROMPT_BYTES, MAX_PROMPT_TOKENS
from minedraft.v1 import inference_pb2, inference_pb2_grpc
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeVerifier, continuation

PROMPT = [5, 6, 7]
SECRET = "words that belong in no log"
BAD = [
    ({"text": ""}, {}, "prompt", "must not be empty"),
    ({}, {}, "prompt", "must be text, token_ids or chat"),
    ({"token_ids": {"ids": []}}, {}, "prompt", "must not be empty"),
    ({"token_ids": {"ids": [-1]}}, {}, "prompt", "each token id"),
    ({"token_ids": {"ids": [97]}}, {}, "prompt.token_ids", r"[0, 97)"),
    ({"token_ids": {"ids": [5] * (MAX_PROMPT_TOKENS + 1)}}, {}, "prompt", f"at most {MAX_PROMPT_TOKENS}"),
    ({"token_ids": {"ids": [5] * 3000}}, {}, "prompt", "fit the context"),
    ({"chat": {"messages": []}}, {}, "prompt", "must not be empty"),
    ({"chat": {"messages": [{"content": "no role"}]}}, {}, "prompt", "role"),
    ({"chat": {"messages": [{"role": "user"}] * 1025}}, {}, "prompt", "at most 1024 messages"),
    ({"text": "x" * (MAX_PROMPT_BYTES + 1)}, {}, "prompt", f"at most {MAX_PROMPT_BYTES} bytes"),
    ({"text": "word " * 3000}, {}, "prompt", "fit the context"),
    ({"text": "x", "request_id": "x" * 65}, {}, "request_id", "at most 64"),
    ({"text": "x", "request_id": "\n"}, {}, "request_id", "printable"),
    ({"text": "x", "timeout_s": -1}, {}, "timeout_s", "0 or more"),
    ({"text": "x", "timeout_s": math.nan}, {}, "timeout_s", "0 or more"),
    ({"text": "x"}, {"max_new_tokens": 0}, "max_new_tokens", "must be in"),
    ({"text": "x"}, {"max_new_tokens": -5}, "max_new_tokens", "must be in"),
    ({"text": "x"}, {"min_new_tokens": -1}, "min_new_tokens", "must be in"),
    ({"text": "x"}, {"temperature": math.nan}, "temperature", "must be in"),
    ({"text": "x"}, {"temperature": -0.5}, "temperature", "must be in"),
    ({"text": "x"}, {"temperature": math.inf}, "temperature", "must be in"),
    ({"text": "x"}, {"top_p": 0}, "top_p", "must be in"),
    ({"text": "x"}, {"top_p": math.nan}, "top_p", "must be in"),
    ({"text": "x"}, {"top_k": -1}, "top_k", "must be in"),
    ({"text": "x"}, {"repetition_penalty": 0}, "repetition_penalty", "must be in"),
    ({"text": "x"}, {"logit_bias": {5: math.nan}}, "logit_bias", "must be in"),
    ({"text": "x"}, {"logit_bias": {-5: 1.0}}, "logit_bias", "must be in"),
    ({"text": "x"}, {"stop": [""]}, "stop", "characters"),
    ({"text": "x"}, {"stop": ["x" * 257]}, "stop", "characters"),
    ({"text": "x"}, {"stop": ["x"] * 17}, "stop", "at most 16"),
    ({"text": "x"}, {"stop_token_ids": [-1]}, "stop_token_ids", "must be in"),
    ({"text": "x"}, {"n": 0}, "n", "must be in"),
    ({"text": "x"}, {"n": 65}, "n", "must be in"),
    ({"text": "x"}, {"logprobs": 21}, "logprobs", "must be in"),
    ({"text": "x"}, {"seed": -1}, "seed", "must be in"),
]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    async with fake_service(tmp_path, verifier=verifier) as service:
        yield service


async def refusal(channel: grpc.aio.Channel, message: inference_pb2.GenerateRequest) -> grpc.aio.AioRpcError:
    call = inference_pb2_grpc.InferenceStub(channel).Generate(message, timeout=60)

    async def read_all() -> None:
        async for _ in call:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read_all()
    return caught.value


async def test_each_mistake_is_refused_by_name_and_a_neighbour_goes_on(service: FakeService) -> None:
    async with (
        grpc.aio.insecure_channel(service.address) as channel,
        AsyncClient(service.address, timeout_s=60) as client,
    ):
        neighbour = client.generate(PROMPT, SamplingParams(max_new_tokens=500))
        tokens = list((await anext(neighbour)).token_ids)
        for prompt, sampling, field, limit in BAD:
            error = await refusal(channel, inference_pb2.GenerateRequest(**prompt, sampling=sampling))
            case = (str(prompt)[:80], sampling, error.details())
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, case
            violation = _violation(error)
            assert violation.field.startswith(field), case
            assert limit in violation.description, case
        tokens += [token_id async for piece in neighbour for token_id in piece.token_ids]
        assert tokens == continuation(PROMPT, 500)


async def test_no_log_line_has_words_of_a_prompt(service: FakeService, caplog: Any, monkeypatch: Any) -> None:
    with caplog.at_level(logging.DEBUG, logger="minedraft"):
        async with (
            grpc.aio.insecure_channel(service.address) as channel,
            AsyncClient(service.address, timeout_s=60) as client,
        ):
            assert (await client.complete(SECRET, SamplingParams(max_new_tokens=5))).token_ids
            for prompt in (
                {"text": SECRET * 30_000},
                {"chat": {"messages": [{"role": SECRET * 9, "content": SECRET}]}},
            ):
                await refusal(channel, inference_pb2.GenerateRequest(**prompt))

            def fail(prompt: object, *rest: object) -> None:
                raise ValueError(f"cannot tokenise {prompt}")

            monkeypatch.setattr(service.server.service._intake._prompts, "encode", fail)
            error = await refusal(channel, inference_pb2.GenerateRequest(text=SECRET, request_id="mine"))
    assert error.code() is grpc.StatusCode.INTERNAL
    assert "see the service's log" in (error.details() or "")
    assert SECRET not in caplog.text
    assert "request 'mine' failed" in caplog.text


def _violation(error: grpc.aio.AioRpcError) -> Any:
    details = error_details_pb2.BadRequest()
    assert any(detail.Unpack(details) for detail in rpc_status.from_call(error).details)
    return details.field_violations[0]
