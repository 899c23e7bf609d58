"""From a body to what the service is asked: prompts and sampling parameters, each field applied or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from minedraft.errors import InvalidRequest
from minedraft.http.wire.bodies import ChatBody, CompletionBody
from minedraft.http.wire.messages import Messages, as_text, uses_tools
from minedraft.http.wire.tools import ToolPlan, describe
from minedraft.prompts import Prompt
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer

COMPLETION_TOKENS = 16  # OpenAI's default for text completions

# Ours -> OpenAI's or vLLM's, where the names differ: the errors name what the client wrote.
_NAMES = {
    "max_new_tokens": "max_tokens",
    "min_new_tokens": "min_tokens",
}
_AS_THEY_ARE = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "stop",
    "stop_token_ids", "seed", "n", "ignore_eos", "skip_special_tokens", "speculate", "draft_len",
)  # fmt: skip
# Values that ask for nothing which is not done anyway. Any other value of these is refused, and so is every field of
# OpenAI's that is neither here nor applied.
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "service_tier": ("auto", "default"),
    "store": (False,),
    "modalities": (["text"],),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "echo": (False, True),
    "background": (False,),
    "truncation": ("disabled",),
    "include": ([],),
}
# Notes of the client to itself: they never change an answer.
_NOTES = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
# Beside the schema of a `response_format`; that it is kept to does not depend on `strict`.
_SCHEMA_NOTES = frozenset({"name", "description", "strict"})
_READ_ELSEWHERE = frozenset(
    {
        "model", "messages", "prompt", "stream", "stream_options", "return_rounds", "response_format", "tools",
        "tool_choice", "parallel_tool_calls",
    }
)  # fmt: skip


def chat_params(body: ChatBody, plan: ToolPlan | None = None, is_tag_special: bool = False) -> SamplingParams:
    """Return the sampling parameters of a chat completion.

    Args:
        plan: what may be called, if anything may. is_tag_special: see `ToolPlan.grammar`.

    Raises:
        InvalidRequest: a value is out of range, or a field asks for something that is not done here.
    """
    given = given_fields(body, {"max_tokens", "max_completion_tokens", "logprobs", "top_logprobs", "min_tokens"})
    limits = {name: body.get(name) for name in ("max_completion_tokens", "max_tokens")}
    if None not in limits.values() and len(set(limits.values())) > 1:
        raise InvalidRequest("max_tokens", limits["max_tokens"], "differs from max_completion_tokens; give one of them")
    given["max_new_tokens"] = next((value for value in limits.values() if value is not None), None)
    top_logprobs = body.get("top_logprobs")
    if body.get("logprobs"):
        given["logprobs"] = top_logprobs or 0
    elif top_logprobs is not None:
        raise InvalidRequest("top_logprobs", top_logprobs, "needs logprobs: true")
    grammar = grammar_of(body.get("response_format"))
    if plan is not None:
        if grammar and plan.must_call:
            limit = "cannot be had with a call that must be made"
            raise InvalidRequest("response_format", body["response_format"], limit)
        for name in ("logprobs", "return_rounds"):
            if body.get(name) and body.get("stream"):
                raise InvalidRequest(name, True, "cannot be streamed with tools")
        grammar = {"lark": plan.grammar(is_tag_special, grammar.get("json_schema"))}
    return to_params(given | grammar)


def completion_params(body: CompletionBody) -> SamplingParams:
    """Return the sampling parameters of a text completion; raise as `chat_params`."""
    given = given_fields(body, {"max_tokens", "logprobs", "min_tokens", "best_of", "suffix"})
    if body.get("suffix"):
        raise InvalidRequest("suffix", body["suffix"], "is not supported")
    if body.get("best_of") not in (None, body.get("n") or 1):
        raise InvalidRequest("best_of", body["best_of"], "must be n: no sample is dropped")
    if body.get("echo") and body.get("logprobs") is not None:
        raise InvalidRequest("echo", True, "cannot be had with logprobs: those of prompts are not computed")
    limit = body.get("max_tokens")
    given["max_new_tokens"] = COMPLETION_TOKENS if limit is None else limit
    given["logprobs"] = body.get("logprobs")
    return to_params(given)


def chat_prompt(messages: Messages, plan: ToolPlan | None, tokenizer: Tokenizer) -> Prompt:
    """Return the prompt of a chat, with the functions that may be called. A template that knows tools renders them,
    to token ids; any other is given messages that describe them.

    Raises:
        InvalidRequest: the template refuses the messages.
    """
    if is_rendered_here(messages, plan, tokenizer):
        return tokenizer.encode_chat(messages, tools=None if plan is None else plan.as_tools)
    return as_text(messages, "" if plan is None else describe(plan))


def is_rendered_here(messages: Messages, plan: ToolPlan | None, tokenizer: Tokenizer) -> bool:
    """Return whether `chat_prompt` renders a chat, which takes time; else the service does."""
    return tokenizer.knows_tools and (plan is not None or uses_tools(messages))


def completion_prompts(body: CompletionBody) -> list[Prompt]:
    """Return the prompts of a text completion, of which there may be several."""
    prompt: Any = body["prompt"]
    if not prompt:
        raise InvalidRequest("prompt", prompt, "must not be empty")
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return [prompt]
    return list(prompt)


def renamed(error: InvalidRequest, body: Mapping[str, Any]) -> InvalidRequest:
    """Return an error of the service with the name that the client used for the field."""
    name = _NAMES.get(error.field, error.field)
    if error.field in ("json_schema", "lark"):
        name = "tools" if error.field == "lark" else "response_format"
    if error.field == "max_new_tokens":
        longer = ("max_completion_tokens", "max_output_tokens")
        name = next((each for each in longer if body.get(each) is not None), name)
    if error.field.partition(".")[0] == "prompt":  # "prompt.token_ids", say
        name = next((each for each in ("prompt", "input") if each in body), "messages")
    return InvalidRequest(name, error.value, error.limit)


def given_fields(body: Mapping[str, Any], used: set[str]) -> dict[str, Any]:
    """Return the fields that both kinds of body have, and refuse those that nothing uses.

    Args:
        used: fields that the caller uses itself.
    """
    _check_stream_options(body)
    known = _NOTES | _READ_ELSEWHERE | used | set(_AS_THEY_ARE) | {"logit_bias"}
    for name, value in body.items():
        if name in known or value is None:
            continue
        if value not in _HARMLESS.get(name, ()):
            raise InvalidRequest(name, value, "is not supported")
    given = {name: body[name] for name in _AS_THEY_ARE if body.get(name) is not None}
    given.setdefault("temperature", 1.0)  # OpenAI's default
    if body.get("min_tokens") is not None:
        given["min_new_tokens"] = body["min_tokens"]
    if body.get("logit_bias"):
        given["logit_bias"] = {_token_id(key): float(value) for key, value in body["logit_bias"].items()}
    return given


def _check_stream_options(body: Mapping[str, Any]) -> None:
    options = body.get("stream_options") or {}
    if options and not body.get("stream"):
        raise InvalidRequest("stream_options", options, "needs stream: true")
    if options.get("include_obfuscation"):
        limit = "is not supported; the service's stream_tokens hides sizes"
        raise InvalidRequest("stream_options.include_obfuscation", True, limit)


def grammar_of(wanted: Mapping[str, Any] | None) -> dict[str, str]:
    """Return the grammar of a `response_format`."""
    fields = {} if wanted is None else dict(wanted)
    kind, inner = fields.pop("type", None), fields.pop("json_schema", None)
    if wanted is None or (kind == "text" and not fields and inner is None):
        return {}
    if kind == "json_object" and not fields and inner is None:
        return {"json_schema": '{"type": "object"}'}
    is_schema = isinstance(inner, dict) and isinstance(inner.get("schema"), dict)
    if kind == "json_schema" and not fields and is_schema and inner.keys() - {"schema"} <= _SCHEMA_NOTES:
        return {"json_schema": json.dumps(inner["schema"])}
    raise InvalidRequest("response_format", wanted, "must be text, json_object, or json_schema with a schema")


def to_params(given: dict[str, Any]) -> SamplingParams:
    if given.get("top_k") == -1:  # vLLM's way to say all
        given["top_k"] = 0
    return SamplingParams(**given)


def _token_id(key: str) -> int:
    if not (key.isascii() and key.isdigit()):
        raise InvalidRequest("logit_bias", key, "its keys must be token ids")
    return int(key)
