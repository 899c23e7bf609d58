"""/v1/responses as OpenAI's own client sees it."""

from __future__ import annotations

from typing import Any

import httpx2 as httpx
import openai
import pytest

from minedraft import SamplingParams
from minedraft.errors import WorkerLost
from tests.integration.http.conftest import Served

CHAT = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "good day"}]
BODY = {"model": "tiny", "input": "good day", "instructions": "be brief", "temperature": 0, "max_output_tokens": 20}


async def test_a_response_is_what_the_grpc_door_gives(served: Served) -> None:
    want = await served.client.complete(CHAT, SamplingParams(max_new_tokens=20))
    assert want.usage is not None
    async with served.openai() as client:
        made = await client.responses.create(**BODY)
        parts: list[Any] = [{"type": "input_text", "text": "good "}, {"type": "input_text", "text": "day"}]
        listed = await client.responses.create(
            **BODY | {"input": [{"type": "message", "role": "user", "content": parts}]}
        )
    assert made.output_text == want.text == listed.output_text
    assert (made.status, made.object) == ("incomplete", "response")
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    assert made.usage is not None
    assert (made.usage.input_tokens, made.usage.output_tokens) == (want.usage.prompt_tokens, 20)
    assert made.id.startswith("resp_")


async def test_what_an_assistant_said_may_have_a_phase(served: Served) -> None:
    said: list[Any] = [{"role": "assistant", "phase": "commentary", "content": "hm"}, {"role": "user", "content": "a"}]
    async with served.openai() as client:
        assert (await client.responses.create(**BODY | {"input": said})).status == "incomplete"
        with pytest.raises(openai.BadRequestError, match=r"input\[0\].phase is .*x.*: must be one of commentary"):
            await client.responses.create(**BODY | {"input": [said[0] | {"phase": "x"}]})


async def test_a_stream_has_the_named_events_in_their_order(served: Served) -> None:
    want = await served.client.complete(CHAT, SamplingParams(max_new_tokens=20))
    async with served.openai() as client:
        events = [event async for event in await client.responses.create(**BODY, stream=True)]
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert [kind for kind in kinds if kind != "output_text.delta"] == [
        "created", "in_progress", "output_item.added", "content_part.added",
        "output_text.done", "content_part.done", "output_item.done", "incomplete",
    ]  # fmt: skip
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in deltas) == want.text
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == want.text


async def test_a_failure_on_the_way_is_an_event(served: Served) -> None:
    service = served.service.server.service
    assert service is not None
    async with served.openai() as client:
        body = BODY | {"max_output_tokens": 1900, "extra_body": {"ignore_eos": True}}
        stream = await client.responses.create(**body, stream=True)
        events = []
        async for event in stream:
            events.append(event)
            service.end_all(WorkerLost("the verifier is gone"))
    assert events[-1].type == "error"
    assert "gone" in events[-1].message


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"store": True}, "store"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"background": True}, "background"),
        ({"foo": 1}, "foo"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}], "instructions": None}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
         "input[0].content[0].type"),
        ({"input": [{"role": "wizard", "content": "x"}]}, "input[0].role"),
        ({"max_output_tokens": 5000}, "max_output_tokens"),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, "text.format"),
        ({"temperature": 200}, "temperature"),
    ],
)  # fmt: skip
async def test_what_is_not_done_is_named(served: Served, fields: dict[str, Any], param: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{served.url}/v1/responses", json=BODY | fields)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param), error
