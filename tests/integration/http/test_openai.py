"""The door as OpenAI's own client sees it, beside what the gRPC door gives."""

from __future__ import annotations

import asyncio
import json
from itertools import accumulate
from typing import Any

import httpx2 as httpx
import openai
import pytest

from minedraft import SamplingParams
from minedraft.errors import WorkerLost
from tests.fakes.service import fake_service
from tests.fakes.workers import FakeDrafter, FakeVerifier
from tests.integration.http.conftest import Served, http_door

CHAT = [{"role": "user", "content": "good day"}]
PROMPT = [5, 6, 7]
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "Does it.",
        "parameters": {
            "type": "object",
            "properties": {"at": {"enum": ["x", "y"]}},
            "required": ["at"],
            "additionalProperties": False,
        },
    },
}


async def post(served: Served, path: str, body: Any, **headers: str) -> httpx.Response:
    async with httpx.AsyncClient() as client:
        return await client.post(served.url + path, content=json.dumps(body), headers=headers, timeout=60)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": CHAT, "temperature": 0, "max_tokens": 8} | fields


async def test_a_chat_is_what_the_grpc_door_gives(served: Served) -> None:
    want = await served.client.complete(CHAT, SamplingParams(max_new_tokens=40))
    async with served.openai() as client:
        made = await client.chat.completions.create(
            model="tiny", messages=CHAT, temperature=0, max_completion_tokens=40, logprobs=True, top_logprobs=2
        )
        [choice] = made.choices
        assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", want.text, "length")
        assert want.usage is not None
        assert made.usage is not None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (want.usage.prompt_tokens, 40)
        assert made.usage.total_tokens == want.usage.prompt_tokens + 40
        assert choice.logprobs is not None
        assert choice.logprobs.content is not None
        assert len(choice.logprobs.content) == 40
        spelt = b"".join(bytes(entry.bytes or []) for entry in choice.logprobs.content).decode("utf-8", "replace")
        assert spelt == served.service.tokenizer.decode(want.token_ids, skip_special_tokens=False)
        assert all(len(entry.top_logprobs) <= 2 for entry in choice.logprobs.content)
        assert made.system_fingerprint
        assert made.id.startswith("chatcmpl-")


async def test_a_stream_begins_with_the_role_and_ends_with_the_usage(served: Served) -> None:
    want = await served.client.complete(CHAT, SamplingParams(max_new_tokens=40))
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny",
            messages=CHAT,
            temperature=0,
            max_tokens=40,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == want.text
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 40
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("more", [{}, {"n": 2}, {"return_rounds": True}])
async def test_each_chunk_has_the_usage_so_far_where_it_is_asked_for(
    served: Served, path: str, more: dict[str, Any]
) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = chat() if "chat" in path else {"model": "tiny", "prompt": "one two"}
    body |= {"max_tokens": 24, "ignore_eos": True, "temperature": 0, **more}
    answer = await post(served, path, body | {"stream": True, "stream_options": options})
    events = [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-2]]
    usages = [event["usage"] for event in events]
    counts = [usage["completion_tokens"] for usage in usages]
    assert counts == sorted(counts)
    if "return_rounds" in more:
        told = [len(event["minedraft"]["tokens"]) if "minedraft" in event else 0 for event in events]
        assert counts == list(accumulate(told))
    assert counts[-1] == 24 * more.get("n", 1)
    assert len({usage["prompt_tokens"] for usage in usages}) == 1
    assert all(usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] for usage in usages)
    # Neither the answer nor its account depends on how it is asked for.
    plain = await post(served, path, body)
    assert plain.json()["usage"] == usages[-1]
    spoken = [choice.get("text") or choice.get("delta", {}).get("content") or "" for event in events
              for choice in event["choices"] if choice["index"] == 0]  # fmt: skip
    first = plain.json()["choices"][0]
    assert "".join(spoken) == (first["text"] if "text" in first else first["message"]["content"])


async def test_the_bytes_of_a_stream_are_events_that_end_with_done(served: Served) -> None:
    answer = await post(served, "/v1/chat/completions", chat(stream=True))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert all("usage" not in chunk for chunk in chunks)
    metrics = chunks[-1]["metrics"]
    assert metrics["time_to_first_token_ms"] > 0
    speculation = metrics["speculative_decoding"]
    assert sum(speculation["acceptance_histogram"]) == speculation["num_spec_steps"]
    assert sum(speculation["per_step_accepted"]) == speculation["num_accepted_draft_tokens"]
    assert speculation["mean_acceptance_length"] == 1 + (
        speculation["num_accepted_draft_tokens"] / speculation["num_spec_steps"]
    )


async def test_the_rounds_of_a_stream_are_told_when_asked_for(served: Served) -> None:
    answer = await post(served, "/v1/chat/completions", chat(stream=True, return_rounds=True, max_tokens=30))
    chunks = [json.loads(event.removeprefix("data: ")) for event in answer.text.split("\n\n")[:-2]]
    rounds = [chunk["minedraft"] for chunk in chunks if "minedraft" in chunk]
    assert sum(len(each["tokens"]) for each in rounds) == 30
    assert all(sum(each["round_lens"]) == len(each["tokens"]) for each in rounds)
    assert max(length for each in rounds for length in each["round_lens"]) > 1


async def test_several_prompts_and_samples_have_choices_in_their_order(served: Served) -> None:
    async with served.openai() as client:
        made = await client.completions.create(
            model="tiny", prompt=[PROMPT, [9, 9]], n=2, max_tokens=6, temperature=0, logprobs=1
        )
        wants = [await served.client.complete(prompt, SamplingParams(max_new_tokens=6)) for prompt in (PROMPT, [9, 9])]
        assert [choice.text for choice in made.choices] == [wants[0].text] * 2 + [wants[1].text] * 2
        assert [choice.index for choice in made.choices] == [0, 1, 2, 3]
        assert made.usage is not None
        assert (made.usage.prompt_tokens, made.usage.completion_tokens) == (5, 24)
        logprobs = made.choices[0].logprobs
        assert logprobs is not None
        assert "".join(logprobs.tokens or []) == served.service.tokenizer.decode(wants[0].token_ids, False)
        assert logprobs.text_offset is not None
        assert logprobs.text_offset[0] == 0
        stream = await client.completions.create(
            model="tiny", prompt=[PROMPT, [9, 9]], n=2, max_tokens=6, temperature=0, stream=True
        )
        texts = ["", "", "", ""]
        async for chunk in stream:
            texts[chunk.choices[0].index] += chunk.choices[0].text
        assert texts == [choice.text for choice in made.choices]


async def test_an_echo_begins_with_the_prompt(served: Served) -> None:
    body = {"model": "tiny", "prompt": "good day", "max_tokens": 4, "temperature": 0, "echo": True}
    whole = (await post(served, "/v1/completions", body)).json()["choices"][0]["text"]
    assert whole.startswith("good day")
    assert len(whole) > len("good day")
    streamed = await post(served, "/v1/completions", body | {"stream": True})
    chunks = [json.loads(event.removeprefix("data: ")) for event in streamed.text.split("\n\n")[:-2]]
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == whole


async def test_a_seed_gives_the_same_answer_and_the_default_temperature_is_one(served: Served) -> None:
    answers = [
        (
            await post(served, "/v1/chat/completions", {"model": "tiny", "messages": CHAT, "seed": 3, "max_tokens": 9})
        ).json()
        for _ in range(2)
    ]
    assert answers[0]["choices"] == answers[1]["choices"]


async def test_what_stopped_an_answer_is_told(served: Served) -> None:
    whole = await served.client.complete(PROMPT, SamplingParams(max_new_tokens=6))
    ids, text = whole.token_ids, whole.text
    body = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 6}
    by_id = (await post(served, "/v1/completions", body | {"stop_token_ids": [ids[3]]})).json()["choices"][0]
    assert (by_id["finish_reason"], by_id["stop_reason"]) == ("stop", ids[3])
    by_text = (await post(served, "/v1/completions", body | {"stop": [text[-3:], "never"]})).json()["choices"][0]
    assert (by_text["finish_reason"], by_text["stop_reason"]) == ("stop", text[-3:])
    by_limit = (await post(served, "/v1/completions", body)).json()["choices"][0]
    assert (by_limit["finish_reason"], by_limit["stop_reason"]) == ("length", None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"foo": 1}, "foo"),
        ({"stream": True, "stream_options": {"include_usage": True, "foo": 1}}, "stream_options.foo"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options.continuous_usage_stats"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": 101}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 5000}, "max_completion_tokens"),
        ({"max_completion_tokens": 9}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"store": True}, "store"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"reasoning_effort": "high"}, "reasoning_effort"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, "response_format"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "b"}}}},
         "response_format"),
        ({"tools": [TOOL], "tool_choice": "perhaps"}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools"),
        ({"tools": [TOOL], "stream": True, "logprobs": True}, "logprobs"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}], "tool_choice": "required"}, "tools[0].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"min_tokens": 9}, "min_tokens"),
        ({"n": 0}, "n"),
        ({"n": 65}, "n"),
        ({"seed": -1}, "seed"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": "x", "foo": 1}]}, "messages[0].foo"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [*CHAT, {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
         "messages[1].content[0].type"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_named_and_nothing_is_dropped(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    answer = await post(served, "/v1/chat/completions", chat(**fields))
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["type"], error["param"]) == (400, 400, "BadRequestError", param)
    assert error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"echo": True, "logprobs": 1}, "echo"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"messages": CHAT}, "messages"),
    ],
)
async def test_what_is_wrong_with_a_text_completion_is_named(
    served: Served, fields: dict[str, Any], param: str
) -> None:
    body = {"model": "tiny", "prompt": PROMPT} | fields
    answer = await post(served, "/v1/completions", body)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


async def test_a_refused_value_is_shown_as_it_was_given(served: Served) -> None:
    """However often it was passed on: the service's own refusal has the value as text already."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": "good day"}]}
    for fields, message in (
        ({"n": 0}, "n is 0: must be in [1, 64]"),
        ({"max_tokens": 5000}, "max_tokens is 5000: at most"),
        ({"stop": ""}, "stop is '': each stop string"),
        ({"prediction": {"type": "content", "content": "x"}}, "prediction is {'type': 'content', 'content': 'x'}: is"),
    ):
        answer = await post(served, "/v1/chat/completions", body | fields)
        assert answer.json()["error"]["message"].startswith(message)


@pytest.mark.parametrize(("path", "asked"), [("chat/completions", "messages"), ("completions", "prompt")])
async def test_a_bias_may_be_a_broken_number(served: Served, path: str, asked: str) -> None:
    body = {"model": "tiny", asked: [{"role": "user", "content": "a"}] if asked == "messages" else "a", "max_tokens": 1}
    for bias, code in ((-0.5, 200), (2, 200), (100.5, 400)):
        answer = await post(served, f"/v1/{path}", body | {"logit_bias": {"5": bias}})
        assert answer.status_code == code, answer.text


@pytest.mark.parametrize("body", ["", "{", "[]", "null", '{"model": "tiny"}', '{"messages": [], "messages": 3}'])
async def test_a_body_that_is_none_is_refused(served: Served, body: str) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{served.url}/v1/chat/completions", content=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "BadRequestError"


async def test_fields_that_ask_for_nothing_else_are_taken(served: Served) -> None:
    nothing: dict[str, Any] = {"store": False, "service_tier": "auto", "n": None, "tools": []}
    notes = {"user": "me", "metadata": {"a": "b"}, "parallel_tool_calls": True}
    body = chat(**nothing, **notes, response_format={"type": "text"})
    assert (await post(served, "/v1/chat/completions", body)).status_code == 200


async def test_another_model_is_not_found(served: Served) -> None:
    async with served.openai() as client:
        assert [model.id for model in (await client.models.list()).data] == ["tiny"]
        assert (await client.models.retrieve("tiny")).model_extra["max_model_len"] == 2048
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            await client.chat.completions.create(model="other", messages=CHAT)
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("a/b")


async def test_an_overload_is_refused_with_a_hint(served: Served) -> None:
    gate = asyncio.Event()
    served.service.verifier.hold = gate.wait
    asking = [asyncio.create_task(post(served, "/v1/chat/completions", chat(max_tokens=400))) for _ in range(8)]
    await served.service.until(lambda: served.service.server.service and len(served.service.server.service._live) == 8)
    answer = await post(served, "/v1/chat/completions", chat())
    assert answer.status_code == 429
    assert answer.json()["error"]["type"] == "RateLimitError"
    assert int(answer.headers["retry-after"]) >= 1
    gate.set()
    assert [each.status_code for each in await asyncio.gather(*asking)] == [200] * 8


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_goes_away_frees_its_memory(served: Served, stream: bool) -> None:
    async def leave() -> None:
        async with httpx.AsyncClient() as client:
            body = json.dumps(chat(max_tokens=1900, stream=stream, ignore_eos=True))
            async with client.stream("POST", f"{served.url}/v1/chat/completions", content=body) as answer:
                async for _ in answer.aiter_bytes():
                    pass

    leaving = asyncio.create_task(leave())
    pool = served.service.verifier.kv.pool
    await served.service.until(lambda: pool.num_free < pool.num_blocks)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await served.service.blocks_free()


async def test_a_failure_on_the_way_is_an_event_of_the_stream(served: Served) -> None:
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=CHAT, temperature=0, max_tokens=1900, stream=True, extra_body={"ignore_eos": True}
        )
        service = served.service.server.service
        assert service is not None

        async def read() -> None:
            async for _ in stream:
                service.end_all(WorkerLost("the verifier is gone"))

        with pytest.raises(openai.APIError, match="gone"):
            await read()


async def test_two_hundred_streams_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    workers = {"verifier": FakeVerifier(num_blocks=8192), "drafter": FakeDrafter(num_blocks=8192)}
    async with (
        fake_service(tmp_path_factory.mktemp("many"), **workers, max_batch_size=64, max_waiting=400) as service,
        http_door(service) as served,
        served.openai() as client,
    ):
        want = await served.client.complete(CHAT, SamplingParams(max_new_tokens=20))

        async def ask() -> str:
            stream = await client.chat.completions.create(
                model="tiny", messages=CHAT, temperature=0, max_tokens=20, stream=True
            )
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        assert await asyncio.gather(*(ask() for _ in range(200))) == [want.text] * 200
