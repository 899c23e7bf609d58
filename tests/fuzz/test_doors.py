"""Anything at all sent to a running service: it lives, answers with standard codes, serves others, and logs little."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import grpc.aio
import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.process.logs import RateLimit
from minedraft.rpc.channel import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.server.answers.answer import MAX_MESSAGE_CHARS, MAX_MESSAGE_TOKENS
from minedraft.v1 import inference_pb2
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeVerifier, continuation
from tests.fuzz.decoders import DECODERS
from tests.fuzz.messages import each_field_at_its_edges

SERVICE = inference_pb2.DESCRIPTOR.services_by_name["Inference"]
VALID = {decoder.kind.DESCRIPTOR.full_name: decoder.valid for decoder in DECODERS}
EXPECTED = {"OK", "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "ALREADY_EXISTS", "CANCELLED"}
PROMPT = [5, 6, 7]


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[FakeService]:
    verifier = FakeVerifier(num_blocks=512, max_model_len=2048)
    async with fake_service(tmp_path, verifier=verifier, allow_configure=True) as service:
        yield service
        await service.blocks_free()


async def send(channel: grpc.aio.Channel, method: str, data: bytes) -> str:
    """Send bytes to a method and return the code of its status."""
    described = SERVICE.methods_by_name[method]
    path = f"/{SERVICE.full_name}/{method}"
    if described.client_streaming:
        call = channel.stream_stream(path)(iter([data]), timeout=20)
    else:
        call = channel.unary_stream(path)(data, timeout=20)
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    assert "Exception" not in (await call.details() or "")
    return (await call.code()).name


def nasty_bytes(method: str) -> list[bytes]:
    """Return valid messages with each field at each edge, and with bytes flipped, cut and added."""
    valid = VALID.get(SERVICE.methods_by_name[method].input_type.full_name, ())
    whole = [message.SerializeToString() for message in valid] or [b"\x0a\x03abc"]
    edges = [m.SerializeToString() for message in valid for m in each_field_at_its_edges(message)]
    rng = random.Random(method)
    spoilt = []
    for _ in range(100):
        data = bytearray(rng.choice(whole))
        for _ in range(rng.randint(1, 5)):
            data.insert(rng.randint(0, len(data)), rng.choice([0, 1, 8, 10, 127, 128, 255, rng.randint(0, 255)]))
        spoilt.append(bytes(data[: rng.randint(1, len(data))]))
    return [*rng.sample(edges, min(len(edges), 150)), *spoilt, b"\xff" * 50]


@pytest.mark.parametrize("method", [method.name for method in SERVICE.methods])
async def test_a_service_survives_whatever_it_is_sent(service: FakeService, method: str, caplog) -> None:
    async with (
        grpc.aio.insecure_channel(service.address) as channel,
        AsyncClient(service.address, timeout_s=20) as client,
    ):
        neighbour = asyncio.create_task(client.complete(PROMPT, SamplingParams(max_new_tokens=300)))
        with caplog.at_level(logging.INFO):
            codes = {await send(channel, method, data) for data in nasty_bytes(method)}
        assert codes <= EXPECTED
        assert len(codes) > 1
        limit = RateLimit()  # as in the log of every process
        assert sum(limit.filter(record) for record in caplog.records) < 20, "a caller cannot fill the log"
        assert list((await neighbour).token_ids) == continuation(PROMPT, 300)
        assert (await client.status()).state in ("serving", "degraded")


async def test_a_message_may_have_a_megabyte_and_not_one_byte_more(service: FakeService) -> None:
    def of_size(num_bytes: int) -> bytes:
        message = inference_pb2.GenerateRequest(text="x" * (num_bytes - 4))  # its tag, and the length in three bytes
        assert message.ByteSize() == num_bytes
        return message.SerializeToString()

    async with grpc.aio.insecure_channel(service.address) as channel:
        assert await send(channel, "Generate", of_size(MAX_REQUEST_BYTES)) == "INVALID_ARGUMENT", "ours, with the limit"
        assert await send(channel, "Generate", of_size(MAX_REQUEST_BYTES + 1)) == "RESOURCE_EXHAUSTED", "gRPC's"


def test_the_largest_reply_fits() -> None:
    num_tokens = MAX_MESSAGE_TOKENS + MAX_DRAFT_LEN  # the last round of a message is not divided
    entry = {"logprob": -0.5, "top_ids": [2**31 - 1] * 20, "top_logprobs": [-0.5] * 20}
    text = "🎉" * (MAX_MESSAGE_CHARS + (MAX_DRAFT_LEN + 1) * 256)
    reply = inference_pb2.GenerateReply(
        text=text, token_ids=[2**31 - 1] * num_tokens, logprobs=[entry] * num_tokens, request_id="x" * 64
    )
    assert reply.ByteSize() < MAX_REPLY_BYTES
