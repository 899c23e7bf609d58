"""Chat completions and text completions: what they ask the service, and their answers, whole or as a stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

from minedraft.client import AsyncClient
from minedraft.errors import MineDraftError
from minedraft.http.errors import error_event
from minedraft.http.wire.answering import metrics_of, stop_reason, usage_of
from minedraft.http.wire.chunks import DONE, TextTemplate, event
from minedraft.http.wire.forms import Asked, ChatForm, Form, echo_of, reason_of
from minedraft.http.wire.tool_text import CallStart, Part, ToolText
from minedraft.output import Output, join_outputs
from minedraft.prompts import Prompt
from minedraft.text.tokenizer import Tokenizer

# Of one call in the service at a time: a list of prompts may be longer than the service's queue, and leaves room in it.
_MOST_SAMPLES = 64


class Answers:
    """Answers calls through a client of the service."""

    def __init__(self, client: AsyncClient, tokenizer: Tokenizer) -> None:
        self._client = client
        self._tokenizer = tokenizer

    async def whole(self, form: Form, asked: Asked) -> dict[str, Any]:
        """Return the response, as JSON values, of a call that is not streamed.

        Raises:
            MineDraftError: of the service.
        """
        pieces: dict[int, list[Output]] = {}
        async with aclosing(cast(Any, self._outputs(asked))) as outputs:
            async for index, output in outputs:
                pieces.setdefault(index, []).append(output)
        samples = [join_outputs(pieces[index]) for index in sorted(pieces)]
        content = form.whole(asked, samples).model_dump(mode="json", exclude_unset=True)
        for choice, output in zip(content["choices"], samples, strict=True):
            choice["stop_reason"] = stop_reason(self._tokenizer, asked.params, output)
        [usage] = [output.usage for output in samples] if len(samples) == 1 else [None]
        content["metrics"] = None if usage is None else metrics_of(usage, samples[0], asked.draft_len)
        return content

    async def stream(self, form: Form, asked: Asked) -> AsyncGenerator[bytes, None]:
        """Return the events of a streamed call, once its answer has begun: before, a failure has its own status.

        Raises:
            MineDraftError: of the service, before the first token.
        """
        outputs = self._outputs(asked)
        try:
            first = await anext(outputs)
        except BaseException:
            await cast(Any, outputs).aclose()
            raise
        return self._events(form, asked, first, outputs)

    async def _events(
        self, form: Form, asked: Asked, first: tuple[int, Output], outputs: AsyncIterator[tuple[int, Output]]
    ) -> AsyncGenerator[bytes, None]:
        stream = _Stream(form, asked, self._tokenizer)
        async with aclosing(cast(Any, outputs)):
            try:
                for made in stream.events(*first):
                    yield made
                async for index, output in outputs:
                    for made in stream.events(index, output):
                        yield made
            except MineDraftError as error:
                yield error_event(error)
                return
            if asked.include_usage:
                yield stream.usage_event()
            yield DONE

    async def _outputs(self, asked: Asked) -> AsyncIterator[tuple[int, Output]]:
        """Yield (number of the choice, piece) of all samples of all prompts, as they come."""
        if len(asked.prompts) == 1:
            async with aclosing(
                cast(Any, self._client.generate(asked.prompts[0], asked.params, request_id=asked.id))
            ) as made:
                async for output in made:
                    yield output.index, output
            return
        seats = asyncio.Semaphore(max(_MOST_SAMPLES // asked.params.n, 1))
        queue: asyncio.Queue[tuple[int, Output] | None] = asyncio.Queue(maxsize=4 * _MOST_SAMPLES)

        async def ask(number: int, prompt: Prompt) -> None:
            name = f"{asked.id}-{number}"
            made = self._client.generate(prompt, asked.params, request_id=name)
            async with seats, aclosing(cast(Any, made)) as outputs:
                async for output in outputs:
                    await queue.put((number * asked.params.n + output.index, output))

        async def ask_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for number, prompt in enumerate(asked.prompts):
                        group.create_task(ask(number, prompt))
            finally:
                await queue.put(None)

        asking = asyncio.create_task(ask_all())
        try:
            while (found := await queue.get()) is not None:
                yield found
            try:
                await asking
            except* MineDraftError as group:
                raise group.exceptions[0] from None
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


class _Stream:
    """The events of one streamed call."""

    def __init__(self, form: Form, asked: Asked, tokenizer: Tokenizer) -> None:
        self._form, self._asked, self._tokenizer = form, asked, tokenizer
        self._num_tokens = 0
        self._templates: dict[int, TextTemplate] = {}
        self._num_chars: dict[int, int] = {}
        self._pieces: dict[int, list[Output]] = {}
        self._tool_texts: dict[int, ToolText] = {}

    def events(self, index: int, output: Output) -> list[bytes]:
        """Return the events of one piece."""
        form, asked, made = self._form, self._asked, []
        if index not in self._templates:
            self._templates[index] = TextTemplate(form.text(asked, index, TextTemplate.HERE))
            self._pieces[index], self._num_chars[index] = [], len(echo_of(asked, index))
            if asked.tools is not None:
                self._tool_texts[index] = ToolText()
            if (begun := form.first(asked, index)) is not None:
                made.append(event(begun, self._extra))
        self._pieces[index].append(output)
        self._num_tokens += len(output.token_ids)
        is_detailed = asked.params.logprobs is not None or asked.shows_rounds
        if asked.tools is not None:
            made += self._parts(index, self._tool_texts[index].push(output.text))
        elif output.token_ids and is_detailed:
            made.append(self._detailed(index, output))
        elif output.text:
            made.append(self._templates[index].event(output.text, self._extra))
        self._num_chars[index] += len(output.text)
        if output.finish_reason is not None:
            made.append(self._end(index))
        return made

    @property
    def _extra(self) -> dict[str, Any]:
        """The usage, as a chunk has it: so far, or that it is told at the end, or nothing."""
        asked = self._asked
        if asked.prompt_tokens is not None:
            return {"usage": usage_of(asked.prompt_tokens, self._num_tokens).model_dump(mode="json")}
        return {"usage": None} if asked.include_usage else {}

    def _parts(self, index: int, parts: Sequence[Part]) -> list[bytes]:
        """Return the events of parts of an answer that may call tools."""
        assert isinstance(self._form, ChatForm), "text completions have no tools"
        number = self._tool_texts[index].num_calls - sum(isinstance(part, CallStart) for part in parts) - 1
        made = []
        for part in parts:
            number += isinstance(part, CallStart)
            made.append(event(self._form.part(self._asked, index, part, number), self._extra))
        return made

    def usage_event(self) -> bytes:
        """Return the event with the usage of the whole call."""
        return event(self._form.usage(self._asked, [join_outputs(pieces) for pieces in self._pieces.values()]))

    def _detailed(self, index: int, output: Output) -> bytes:
        asked, extra = self._asked, self._extra
        if asked.shows_rounds:
            texts = [self._tokenizer.token_bytes(token_id).decode("utf-8", "replace") for token_id in output.token_ids]
            extra["minedraft"] = {"tokens": texts, "round_lens": list(output.round_lens)}
            if output.forced_lens:
                extra["minedraft"]["forced_lens"] = list(output.forced_lens)
        if asked.params.logprobs is None:
            return event(self._form.text(asked, index, output.text), extra)
        return event(self._form.piece(asked, index, output, self._num_chars[index]), extra)

    def _end(self, index: int) -> bytes:
        asked, whole = self._asked, join_outputs(self._pieces[index])
        extra = self._extra
        if asked.num_samples == 1 and whole.usage is not None:
            extra["metrics"] = metrics_of(whole.usage, whole, asked.draft_len)
        stopped_by = stop_reason(self._tokenizer, asked.params, whole)
        reason, held_back = reason_of(whole), b""
        if asked.tools is not None:
            tool_text = self._tool_texts[index]
            held_back = b"".join(self._parts(index, tool_text.flush()))
            reason = asked.tools.finish_reason if tool_text.num_calls and reason == "stop" else reason
        return held_back + event(self._form.last(asked, index, reason), extra, {"stop_reason": stopped_by})
