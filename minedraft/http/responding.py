"""Answers to `/v1/responses`, whole or as its named events, in the types of the `openai` package."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Literal, cast

from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseErrorEvent,
    ResponseIncompleteEvent,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)
from openai.types.responses.response import IncompleteDetails
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import BaseModel

from minedraft.client import AsyncClient
from minedraft.errors import MineDraftError
from minedraft.http.errors import envelope
from minedraft.http.wire.answering import metrics_of
from minedraft.http.wire.chunks import named_event
from minedraft.http.wire.forms import Asked
from minedraft.http.wire.responses import ResponseBody
from minedraft.output import Output, join_outputs
from minedraft.types import FinishReason

# What is not done here, and what every response says of it.
_NOT_DONE: dict[str, Any] = {
    "background": False,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "prompt_cache_key": None,
    "reasoning": None,
    "safety_identifier": None,
    "service_tier": "default",
    "store": False,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "truncation": "disabled",
}
_STATUS: dict[FinishReason | None, Literal["completed", "incomplete"]] = {FinishReason.LENGTH: "incomplete"}


class Responding:
    """One call.

    Args:
        asked: its only prompt and its parameters.
    """

    def __init__(self, client: AsyncClient, body: ResponseBody, asked: Asked) -> None:
        self._client, self._body, self._asked = client, body, asked
        self._item_id = "msg" + asked.id.removeprefix("resp")
        self._sequence_number = -1

    async def whole(self) -> dict[str, Any]:
        """Return the response, as JSON values, of a call that is not streamed.

        Raises:
            MineDraftError: of the service.
        """
        asked = self._asked
        output = await self._client.complete(asked.prompts[0], asked.params, request_id=asked.id)
        return self._content(output)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Return the events of a streamed call, once its answer has begun.

        Raises:
            MineDraftError: of the service, before the first token.
        """
        asked = self._asked
        outputs: Any = self._client.generate(asked.prompts[0], asked.params, request_id=asked.id)
        try:
            first = await anext(outputs)
        except BaseException:
            await outputs.aclose()
            raise
        return self._events(first, outputs)

    async def _events(self, first: Output, outputs: AsyncIterator[Output]) -> AsyncGenerator[bytes, None]:
        begun, pieces = self._response("in_progress", [], None), [first]
        place: dict[str, Any] = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        message, part = self._message("in_progress", []), _text("")
        yield self._event(ResponseCreatedEvent, response=begun) + self._event(ResponseInProgressEvent, response=begun)
        yield self._event(ResponseOutputItemAddedEvent, item=message, output_index=0)
        yield self._event(ResponseContentPartAddedEvent, part=part, **place) + self._delta(first.text, place)
        async with aclosing(cast(Any, outputs)):
            try:
                async for output in outputs:
                    pieces.append(output)
                    if output.text:
                        yield self._delta(output.text, place)
            except MineDraftError as error:
                failed = envelope(error)["error"]
                code, message_text = str(failed["code"]), failed["message"]
                yield self._event(ResponseErrorEvent, code=code, message=message_text, param=failed["param"])
                return
        whole = join_outputs(pieces)
        status, done = _STATUS.get(whole.finish_reason, "completed"), _text(whole.text)
        yield self._event(ResponseTextDoneEvent, text=whole.text, logprobs=[], **place)
        yield self._event(ResponseContentPartDoneEvent, part=done, **place)
        yield self._event(ResponseOutputItemDoneEvent, item=self._message(status, [done]), output_index=0)
        last = ResponseCompletedEvent if status == "completed" else ResponseIncompleteEvent
        yield self._event(last, response=self._content(whole))

    def _delta(self, text: str, place: dict[str, Any]) -> bytes:
        return self._event(ResponseTextDeltaEvent, delta=text, logprobs=[], **place) if text else b""

    def _event(self, kind: type[BaseModel], **fields: object) -> bytes:
        self._sequence_number += 1
        name = str(kind.model_fields["type"].annotation.__args__[0])  # type: ignore[union-attr]
        made = kind.model_construct(type=name, sequence_number=self._sequence_number, **cast(Any, fields))
        return named_event(name, made)

    def _content(self, whole: Output) -> dict[str, Any]:
        status = _STATUS.get(whole.finish_reason, "completed")
        made = self._response(status, [self._message(status, [_text(whole.text)])], whole)
        content = made.model_dump(mode="json", exclude_unset=True)
        if whole.usage is not None:
            content["metrics"] = metrics_of(whole.usage, whole, self._asked.draft_len)
        return content

    def _message(
        self, status: Literal["in_progress", "completed", "incomplete"], content: Sequence[ResponseOutputText]
    ) -> ResponseOutputMessage:
        return ResponseOutputMessage(
            id=self._item_id, role="assistant", type="message", status=status, content=list(content)
        )

    def _response(self, status: Any, output: Sequence[ResponseOutputMessage], whole: Output | None) -> Response:  # noqa: ANN401
        asked, body = self._asked, self._body
        is_cut = status == "incomplete"
        penalties: Any = {name: getattr(asked.params, name) for name in ("presence_penalty", "frequency_penalty")}
        return Response(
            id=asked.id,
            object="response",
            created_at=asked.created,
            status=status,
            error=None,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if is_cut else None,
            instructions=body.get("instructions"),
            max_output_tokens=body.get("max_output_tokens"),
            metadata=body.get("metadata") or {},
            model=asked.model,
            output=list(output),
            temperature=asked.params.temperature,
            text=cast(Any, body.get("text") or {"format": {"type": "text"}}),
            top_p=asked.params.top_p,
            completed_at=int(time.time()) if status == "completed" else None,
            usage=_usage(whole),
            **penalties,
            **_NOT_DONE,
        )


def _text(text: str) -> ResponseOutputText:
    return ResponseOutputText(type="output_text", text=text, annotations=[], logprobs=[])


def _usage(whole: Output | None) -> ResponseUsage | None:
    if whole is None or whole.usage is None:
        return None
    usage = whole.usage
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens=usage.output_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
        total_tokens=usage.prompt_tokens + usage.output_tokens,
    )
