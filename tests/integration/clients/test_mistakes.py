"""What a newcomer does wrong with OpenAI's client, and what the door says: the field, the value, and the limit."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.integration.clients.conftest import MODEL

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HELLO: list[Any] = [{"role": "user", "content": "hello"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": HELLO}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "gpt-4o"}, ["gpt-4o", MODEL]),
        ({"messages": []}, ["messages", "must not be empty"]),
        ({"messages": [{"role": "bot", "content": "hi"}]}, ["messages[0].role", "bot", "user"]),
        ({"messages": [{"role": "user", "content": None}]}, ["messages[0].content", "must be"]),
        ({"temperature": 300}, ["temperature", "300", "100"]),
        ({"max_tokens": 100_000}, ["max_tokens", "100000", "at most"]),
        ({"n": 1000}, ["n is", "1000", "64"]),
        ({"top_logprobs": 5}, ["top_logprobs", "5", "logprobs: true"]),
        ({"logit_bias": {"hello": 1}}, ["logit_bias", "hello", "token ids"]),
        ({"response_format": {"type": "xml"}}, ["response_format", "xml", "json_schema"]),
        ({"tools": [{"type": "function", "function": {"name": "get weather"}}]}, ["tools[0].function.name", "letters"]),
        ({"tool_choice": "required"}, ["tool_choice", "required", "needs tools"]),
        ({"extra_body": {"top_kk": 4}}, ["top_kk", "4", "no such field"]),
        ({"seed": -5}, ["seed", "-5", "0"]),
        ({"stop": ["a"] * 100}, ["stop", "at most"]),
        ({"reasoning_effort": "high"}, ["reasoning_effort", "high", "not supported"]),
    ],
)
def test_a_mistake_is_named_with_its_value_and_limit(url: str, fields: dict[str, Any], words: list[str]) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught,
    ):
        client.chat.completions.create(**(CHAT | fields))
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_the_wrong_address_is_told_what_there_is(url: str) -> None:
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,  # without /v1
        pytest.raises(openai.NotFoundError, match="/v1/chat/completions"),
    ):
        client.chat.completions.create(**CHAT)


def test_what_is_not_served_is_said(url: str) -> None:
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="/v1/embeddings: there is no such path"),
    ):
        client.embeddings.create(model=MODEL, input="x")
