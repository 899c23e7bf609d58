"""The description of the door for tools, made from the types that it checks requests with."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Any

from openai.types import Completion, Model
from openai.types.chat import ChatCompletion
from openai.types.responses import Response
from pydantic import BaseModel, TypeAdapter

from minedraft.http.wire.bodies import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody
from minedraft.http.wire.responses import ResponseBody

_POSTS: dict[str, tuple[str, type[Any], type[BaseModel] | None]] = {
    "/v1/chat/completions": ("Answer a chat.", ChatBody, ChatCompletion),
    "/v1/completions": ("Continue a text.", CompletionBody, Completion),
    "/v1/responses": ("Answer a chat, in the form of Responses.", ResponseBody, Response),
    "/tokenize": ("Return the token ids of a prompt or of messages.", TokenizeBody, None),
    "/detokenize": ("Return the text of token ids.", DetokenizeBody, None),
}
_GETS = {
    "/v1/models": "List the model.",
    "/health": "200 while the service answers.",
    "/ready": "200 while the service takes requests.",
    "/version": "Return the version.",
    "/load": "Return how many requests run and wait.",
    "/status": "Return batches, workers and rates.",
    "/metrics": "Return metrics for Prometheus.",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": "integer"},
            },
        }
    },
}
_REFUSALS = {
    "400": "A field is missing, unknown, of another type or out of range; `param` names it.",
    "401": "The token is missing or unknown.",
    "404": "There is no such model or path.",
    "413": "The body is too large.",
    "429": "Too many requests wait; `Retry-After` says when to come back.",
    "503": "The service starts, drains, or has lost a worker.",
    "504": "The deadline has passed.",
}


@cache
def package_version() -> str:
    """Return the version of the installed package."""
    return version("minedraft")


@cache
def schema() -> dict[str, Any]:
    """Return the OpenAPI 3.1 description."""
    parts: dict[str, Any] = {"Error": _ERROR}
    paths: dict[str, Any] = {}
    for path, (summary, body, answer) in _POSTS.items():
        asked = _reference(TypeAdapter(body).json_schema(ref_template=_REF), body.__name__, parts)
        content: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if answer is not None:
            # Fields beyond OpenAI's are allowed there: `metrics`, `stop_reason`.
            answered = _reference(
                answer.model_json_schema(ref_template=_REF, mode="serialization"), answer.__name__, parts
            )
            content = {"application/json": {"schema": answered}, "text/event-stream": {"schema": {"type": "string"}}}
        paths[path] = {
            "post": {
                "summary": summary,
                "operationId": body.__name__,
                "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
                "responses": {"200": {"description": "Done.", "content": content}, **_refusals()},
            }
        }
    for path, summary in _GETS.items():
        media = "text/plain" if path == "/metrics" else "application/json"
        done: dict[str, Any] = {"description": "Done."}
        if path != "/health":
            done["content"] = {media: {"schema": {"type": "string"} if path == "/metrics" else {"type": "object"}}}
        paths[path] = {
            "get": {"summary": summary, "operationId": path.strip("/"), "responses": {"200": done, **_refusals()}}
        }
    _reference(Model.model_json_schema(ref_template=_REF), "Model", parts)
    return {
        "openapi": "3.1.0",
        "info": {"title": "MineDraft", "version": package_version()},
        "paths": paths,
        "components": {"schemas": parts, "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"bearer": []}],
    }


_REF = "#/components/schemas/{model}"


def _reference(made: dict[str, Any], name: str, parts: dict[str, Any]) -> dict[str, Any]:
    """Move a type and what it is made of into the common parts, and return the reference to it."""
    parts |= made.pop("$defs", {})
    parts[name] = made
    return {"$ref": _REF.format(model=name)}


def _refusals() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": _REF.format(model="Error")}}}
    return {code: {"description": text, "content": content} for code, text in _REFUSALS.items()}
