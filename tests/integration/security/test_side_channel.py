"""What an eavesdropper counts: with `stream_tokens`, messages do not show how many drafts were accepted."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from minedraft import AsyncClient, SamplingParams
from minedraft.errors import MineDraftError
from minedraft.prompts import to_call
from minedraft.rpc.codec.inference import generate_to_pb
from tests.fakes.service import FakeService, fake_service
from tests.fakes.workers import FakeDrafter, continuation

PROMPT = [5, 6, 7]
TOKENS = 30
ROUND_S = 0.005  # ample for the messages of a round to be sent before the next one ends


async def sizes(folder: Path, is_right: bool, **settings: Any) -> tuple[list[int], list[int]]:
    """Return the sizes of the messages of one answer, as they are on the wire, and its tokens."""
    drafter = FakeDrafter(is_right=lambda prefix_len: is_right)
    async with fake_service(folder, drafter=drafter, mode="sd", **settings) as service:
        service.verifier.hold = lambda: asyncio.sleep(ROUND_S)
        async with grpc.aio.insecure_channel(service.address) as channel:
            request = generate_to_pb(to_call(PROMPT, SamplingParams(max_new_tokens=TOKENS), "request"))
            call = channel.unary_stream("/minedraft.v1.Inference/Generate")(request.SerializeToString())
            found = [len(message) async for message in call]
        async with AsyncClient(service.address) as client:
            return found, list((await client.complete(PROMPT, SamplingParams(max_new_tokens=TOKENS))).token_ids)


async def test_sizes_and_number_of_messages_do_not_depend_on_what_was_accepted(tmp_path: Path) -> None:
    shown_right, tokens = await sizes(tmp_path / "a", True)
    shown_wrong, same = await sizes(tmp_path / "b", False)
    assert tokens == same == continuation(PROMPT, TOKENS)
    assert len(shown_right) < len(shown_wrong), "without the option, messages tell"
    hidden_right, tokens = await sizes(tmp_path / "c", True, stream_tokens=4)
    hidden_wrong, same = await sizes(tmp_path / "d", False, stream_tokens=4)
    assert tokens == same == continuation(PROMPT, TOKENS)
    assert hidden_right == hidden_wrong
    assert len(hidden_right) == -(-TOKENS // 4)
    assert len(set(hidden_right)) == 1, "one size"


async def test_what_waits_for_more_tokens_comes_before_an_error(tmp_path: Path) -> None:
    tokens: list[int] = []

    async def ask(service: FakeService, client: AsyncClient) -> None:
        async for piece in client.generate(PROMPT, SamplingParams(max_new_tokens=100)):
            tokens.extend(piece.token_ids)
            service.server.end_now()  # at the first message

    async with fake_service(tmp_path, stream_tokens=16) as service, AsyncClient(service.address) as client:
        service.verifier.hold = lambda: asyncio.sleep(ROUND_S)
        with pytest.raises(MineDraftError):
            await ask(service, client)
    assert len(tokens) > 16
    assert tokens == continuation(PROMPT, len(tokens))
