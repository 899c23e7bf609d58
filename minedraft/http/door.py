"""The routes of the OpenAI-compatible door."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.resources import files
from typing import Any, TypeVar, cast

from openai.types import Model
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from minedraft.client import AsyncClient
from minedraft.errors import InvalidRequest, MineDraftError, RequestAborted, Unavailable
from minedraft.http.calls import Answers
from minedraft.http.errors import HttpError, error_response
from minedraft.http.guard import Guard
from minedraft.http.leaving import EventResponse, unless_gone
from minedraft.http.model_facts import Facts, ModelFacts
from minedraft.http.responding import Responding
from minedraft.http.wire.asking import (
    chat_params,
    chat_prompt,
    completion_params,
    completion_prompts,
    is_rendered_here,
    renamed,
)
from minedraft.http.wire.bodies import (
    BodyReader,
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    TokenizeBody,
)
from minedraft.http.wire.forms import Asked, ChatForm, CompletionForm, Form
from minedraft.http.wire.messages import as_text, check_messages
from minedraft.http.wire.openapi import package_version, schema
from minedraft.http.wire.responses import ResponseBody, input_messages, response_params
from minedraft.http.wire.tool_text import OPEN
from minedraft.http.wire.tools import ToolPlan, plan_tools
from minedraft.prompts import Prompt
from minedraft.sampling_params import DEFAULT_CHAT_TOKENS, SamplingParams
from minedraft.text.chat_template import Message
from minedraft.text.tokenizer import Tokenizer

logger = logging.getLogger("minedraft.http")

_T = TypeVar("_T")
_BODIES = (ChatBody, CompletionBody, ResponseBody, TokenizeBody, DetokenizeBody)
_V1 = frozenset({"/v1/models", "/v1/chat/completions", "/v1/completions", "/v1/responses"})
Handler = Callable[[Request], Awaitable[Response]]


class Door:
    """Answers requests through a client of the service.

    Args:
        facts: what is known of the model.
        metrics: returns the service's metrics as Prometheus reads them; None if it exports none.
    """

    def __init__(
        self,
        client: AsyncClient,
        tokenizer: Tokenizer,
        facts: ModelFacts,
        metrics: Callable[[], Awaitable[bytes]] | None = None,
    ) -> None:
        self._client = client
        self._tokenizer = tokenizer
        self._facts = facts
        self._metrics = metrics
        self._answers = Answers(client, tokenizer)
        self._chat, self._text = ChatForm(tokenizer), CompletionForm(tokenizer)
        self._bodies = {kind: BodyReader(kind) for kind in _BODIES}
        self._page = (files("minedraft") / "assets" / "chat.html").read_text(encoding="utf-8")

    def app(
        self,
        admits: Callable[[str], bool] | None = None,
        origins: Collection[str] = (),
        is_meant: Callable[[str], bool] | None = None,
    ) -> Starlette:
        """Return the application; see `Guard` for its arguments."""
        get: dict[str, Handler] = {
            "/": self.page,
            "/health": self.health,
            "/ping": self.health,
            "/ready": self.ready,
            "/readyz": self.ready,
            "/version": self.version,
            "/load": self.load,
            "/metrics": self.metrics,
            "/status": self.status,
            "/openapi.json": self.openapi,
            "/v1/models": self.models,
            "/v1/models/{model:path}": self.model,
        }
        post: dict[str, Handler] = {
            "/v1/chat/completions": self.chat,
            "/v1/completions": self.complete,
            "/v1/responses": self.respond,
            "/tokenize": self.tokenize,
            "/detokenize": self.detokenize,
        }
        routes = [Route(path, _typed(handler), methods=["GET"]) for path, handler in get.items()]
        routes += [Route(path, _typed(handler), methods=["POST"]) for path, handler in post.items()]
        return Starlette(
            routes=routes,
            middleware=[Middleware(Guard, admits=admits, origins=origins, is_meant=is_meant)],
            exception_handlers={HTTPException: _not_routed},
        )

    # Answers

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        body = await self._body(request, ChatBody)
        with _renaming(body):
            tools = plan_tools(body)
            params = chat_params(body, tools, self._tokenizer.is_added(OPEN))
            messages = check_messages(body["messages"])
            to_prompt = partial(chat_prompt, messages, tools, self._tokenizer)
            is_long = is_rendered_here(messages, tools, self._tokenizer)
            prompt = await asyncio.to_thread(to_prompt) if is_long else to_prompt()
            params = await self._fit(params, prompt)
        return await self._answer(request, self._chat, body, [prompt], params, tools=tools)

    async def _fit(self, params: SamplingParams, prompt: Prompt) -> SamplingParams:
        """Give a chat that is token ids already as many tokens by default as the service gives to one that is not."""
        if params.max_new_tokens is not None or not isinstance(prompt[0], int):
            return params
        room = (await self._facts.get()).max_model_len - len(prompt)
        return replace(params, max_new_tokens=max(min(DEFAULT_CHAT_TOKENS, room), 1))

    async def complete(self, request: Request) -> Response:
        """POST /v1/completions."""
        body = await self._body(request, CompletionBody)
        with _renaming(body):
            params, prompts = completion_params(body), completion_prompts(body)
        echo: list[str] = []
        if body.get("echo"):
            echo = [prompt if isinstance(prompt, str) else self._decode(cast(list[int], prompt)) for prompt in prompts]
        return await self._answer(request, self._text, body, prompts, params, echo)

    async def respond(self, request: Request) -> Response:
        """POST /v1/responses."""
        body = await self._body(request, ResponseBody)
        facts = await self._facts.get()
        facts.check_name(body["model"])
        with _renaming(body):
            params, messages = response_params(body), input_messages(body)
            prompt = as_text(messages)
            name = f"resp_{uuid.uuid4().hex}"
            asked = Asked(name, facts.name, facts.fingerprint, [prompt], params, draft_len=facts.draft_len)
            responding = Responding(self._client, body, asked)
            if body.get("stream"):
                return EventResponse(await unless_gone(request.receive, responding.stream()))
            return JSONResponse(await unless_gone(request.receive, responding.whole()))

    async def _answer(
        self,
        request: Request,
        form: Form,
        body: Mapping[str, Any],
        prompts: list[Prompt],
        params: SamplingParams,
        echo: list[str] | None = None,
        tools: ToolPlan | None = None,
    ) -> Response:
        facts = await self._facts.get()
        facts.check_name(body["model"])
        kind = "chatcmpl" if form is self._chat else "cmpl"
        options = body.get("stream_options") or {}
        prompt_tokens = None
        if options.get("continuous_usage_stats"):
            if not options.get("include_usage"):
                raise InvalidRequest("stream_options.continuous_usage_stats", True, "needs include_usage: true")
            prompts = [await asyncio.to_thread(self._encode, prompt) for prompt in prompts]
            params = await self._fit(params, prompts[0])
            prompt_tokens = sum(map(len, prompts))
        asked = Asked(
            id=f"{kind}-{uuid.uuid4().hex}",
            model=body["model"],
            fingerprint=facts.fingerprint,
            prompts=prompts,
            params=params,
            echo=echo or (),
            include_usage=bool(options.get("include_usage")),
            prompt_tokens=prompt_tokens,
            shows_rounds=bool(body.get("return_rounds")),
            draft_len=facts.draft_len,
            tools=tools,
        )
        with _renaming(body):
            if body.get("stream"):
                events = await unless_gone(request.receive, self._answers.stream(form, asked))
                return EventResponse(events)
            return JSONResponse(await unless_gone(request.receive, self._answers.whole(form, asked)))

    def _encode(self, prompt: Prompt) -> Prompt:
        """Return a prompt as the token ids that the service would make of it."""
        if isinstance(prompt, str):
            return self._tokenizer.encode(prompt)
        if isinstance(prompt[0], int):
            return prompt
        return self._tokenizer.encode_chat(cast(Sequence[Message], prompt))

    # Tokens

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize: the ids of a prompt, or of a chat as the model's template renders it."""
        body = await self._body(request, TokenizeBody)
        await self._check_model(body)
        prompt, messages = body.get("prompt"), body.get("messages")
        if (prompt is None) == (messages is None):
            raise InvalidRequest("prompt", "given" if prompt else "missing", "give either prompt or messages")
        if messages is not None:
            add_start = body.get("add_generation_prompt", True)
            ids = await asyncio.to_thread(self._tokenizer.encode_chat, as_text(check_messages(messages)), add_start)
        else:
            ids = await asyncio.to_thread(self._tokenizer.encode, str(prompt), body.get("add_special_tokens", True))
        content: dict[str, Any] = {"count": len(ids), "max_model_len": (await self._facts.get()).max_model_len}
        content["tokens"] = ids
        if body.get("return_token_strs"):
            content["token_strs"] = [self._tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
        return JSONResponse(content)

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize: the text of token ids."""
        body = await self._body(request, DetokenizeBody)
        await self._check_model(body)
        return JSONResponse({"prompt": self._decode(body["tokens"])})

    def _decode(self, ids: list[int]) -> str:
        for token_id in ids:
            if not 0 <= token_id < self._tokenizer.vocab_size:
                raise InvalidRequest("tokens", token_id, f"must be in [0, {self._tokenizer.vocab_size})")
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    # The service

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._card(await self._facts.get())]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/NAME."""
        facts = await self._facts.get()
        facts.check_name(request.path_params["model"])
        return JSONResponse(self._card(facts))

    def _card(self, facts: Facts) -> dict[str, Any]:
        card = Model(id=facts.name, created=facts.since, object="model", owned_by="minedraft")
        return card.model_dump() | {"root": facts.name, "parent": None, "max_model_len": facts.max_model_len}

    async def health(self, request: Request) -> Response:
        """GET /health: 200 while the service answers at all, with or without a drafter."""
        status = await self._client.status()
        return Response(status_code=200 if status.state != "starting" else 503)

    async def ready(self, request: Request) -> Response:
        """GET /ready: 200 while the service takes requests."""
        status = await self._client.status()
        code = 200 if status.state in ("serving", "degraded") else 503
        return JSONResponse({"state": status.state}, code)

    async def version(self, request: Request) -> Response:
        """GET /version."""
        return JSONResponse({"version": package_version()})

    async def load(self, request: Request) -> Response:
        """GET /load: requests that run and wait."""
        status = await self._client.status()
        running = {"num_running": status.num_running, "num_waiting": status.num_waiting}
        return JSONResponse({"server_load": status.num_running + status.num_waiting, **running})

    async def status(self, request: Request) -> Response:
        """GET /status: what `minedraft status --json` prints."""
        return JSONResponse(asdict(await self._client.status()))

    async def metrics(self, request: Request) -> Response:
        """GET /metrics: those of the service."""
        if self._metrics is None:
            raise HttpError("the service exports no metrics; start it with --metrics HOST:PORT", 404)
        return PlainTextResponse(await self._metrics(), media_type="text/plain; version=0.0.4")

    async def openapi(self, request: Request) -> Response:
        """GET /openapi.json."""
        return JSONResponse(schema())

    async def page(self, request: Request) -> Response:
        """GET /: the chat page."""
        policy = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'"
        headers = {"content-security-policy": policy, "x-frame-options": "DENY"}
        return HTMLResponse(self._page, headers=headers)

    async def _body(self, request: Request, kind: type[_T]) -> _T:
        reader = cast(BodyReader[Any], self._bodies[cast(Any, kind)])
        return cast(_T, reader.read(await request.body()))

    async def _check_model(self, body: Mapping[str, Any]) -> None:
        if "model" in body:
            (await self._facts.get()).check_name(body["model"])


def _typed(handler: Handler) -> Handler:
    """Return the handler with its failures in OpenAI's envelope, counted in the log by their cause."""

    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except ClientDisconnect:
            return Response(status_code=RequestAborted.http_status)
        except MineDraftError as error:
            if error.http_status >= 500:
                logger.warning("%s %s failed: %s", request.method, request.url.path, error.reason)
            return error_response(error)
        except Exception as error:
            # Not the error's own words, which may quote the prompt.
            logger.error("%s %s failed: %s", request.method, request.url.path, type(error).__name__)
            return error_response(Unavailable("the door failed; its log says why"))

    return handle


async def _not_routed(request: Request, error: Exception) -> Response:
    status = cast(HTTPException, error).status_code
    path = request.url.path
    what = {404: "there is no such path", 405: f"{request.method} is not allowed here"}.get(
        status, "cannot be answered"
    )
    if status == 404 and f"/v1{path}" in _V1:
        what += f"; there is /v1{path}: a client's base URL ends in /v1"
    headers = dict(cast(HTTPException, error).headers or {})
    return error_response(HttpError(f"{path}: {what}", status, headers=headers))


class _renaming:
    """Gives the fields in errors of the service the names that the client used."""

    def __init__(self, body: Mapping[str, Any]) -> None:
        self._body = body

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, InvalidRequest):
            raise renamed(error, self._body) from None
