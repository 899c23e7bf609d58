"""How the answers to chat completions and to text completions look, in the types of the `openai` package."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, cast

from openai.types import Completion, CompletionChoice, CompletionUsage
from openai.types.chat import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionMessage,
    ChatCompletionMessageFunctionToolCall,
)
from openai.types.chat.chat_completion import Choice
from openai.types.chat.chat_completion import ChoiceLogprobs as ChatLogprobs
from openai.types.chat.chat_completion_chunk import Choice as ChunkChoice
from openai.types.chat.chat_completion_chunk import ChoiceDelta, ChoiceDeltaToolCall, ChoiceDeltaToolCallFunction
from openai.types.chat.chat_completion_chunk import ChoiceLogprobs as ChunkLogprobs
from openai.types.chat.chat_completion_message_function_tool_call import Function
from openai.types.completion_choice import Logprobs
from pydantic import BaseModel

from minedraft.http.wire.answering import FINISH_REASONS, chat_logprobs, completion_logprobs, usage_of
from minedraft.http.wire.tool_text import Call, CallStart, Content, Part, whole_answer
from minedraft.http.wire.tools import ToolPlan
from minedraft.output import Output
from minedraft.prompts import Prompt
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class Asked:
    """One call of a client.

    Attributes:
        id: of the response, and the service's request id.
        prompts: one for a chat. params: for each of them.
        echo: the text that each choice of a text completion begins with.
        include_usage: end the stream with a chunk that has the usage.
        prompt_tokens: of the call, where each chunk of its stream has the usage so far; None: only the last one has.
        shows_rounds: say with each piece which tokens it has, and how many came in each round.
        draft_len: the service's most drafts per round.
        tools: what the answer may call; None: nothing.
    """

    id: str
    model: str
    fingerprint: str
    prompts: Sequence[Prompt]
    params: SamplingParams
    echo: Sequence[str] = ()
    include_usage: bool = False
    prompt_tokens: int | None = None
    shows_rounds: bool = False
    draft_len: int = 0
    tools: ToolPlan | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def num_samples(self) -> int:
        return len(self.prompts) * self.params.n

    @property
    def facts(self) -> dict[str, Any]:
        """What every object of the response says of itself."""
        return {"id": self.id, "created": self.created, "model": self.model, "system_fingerprint": self.fingerprint}


class Form(Protocol):
    """How the answer to one kind of call looks."""

    def whole(self, asked: Asked, samples: Sequence[Output]) -> BaseModel:
        """Return the response to a call that is not streamed."""
        ...

    def first(self, asked: Asked, index: int) -> BaseModel | None:
        """Return the chunk with which a sample begins; None if there is none."""
        ...

    def text(self, asked: Asked, index: int, text: str) -> BaseModel:
        """Return the chunk of a piece of text."""
        ...

    def piece(self, asked: Asked, index: int, output: Output, num_chars: int) -> BaseModel:
        """Return the chunk of a piece with log-probabilities, before which the sample had `num_chars` characters."""
        ...

    def last(self, asked: Asked, index: int, reason: str | None) -> BaseModel:
        """Return the chunk with which a sample ends."""
        ...

    def usage(self, asked: Asked, samples: Sequence[Output]) -> BaseModel:
        """Return the chunk with the usage of the whole call, which has no choice."""
        ...


class ChatForm:
    """The form of chat completions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(self, asked: Asked, samples: Sequence[Output]) -> ChatCompletion:
        choices = []
        for index, output in enumerate(samples):
            logprobs = None
            if asked.params.logprobs is not None:
                logprobs = ChatLogprobs(content=chat_logprobs(self._tokenizer, output), refusal=None)
            message = ChatCompletionMessage(role="assistant", content=output.text, refusal=None, annotations=[])
            reason = cast(Any, reason_of(output))
            if asked.tools is not None:
                content, calls = whole_answer(output.text)
                message.content = content or (None if calls else "")
                message.tool_calls = [_call(call) for call in calls] or None
                reason = asked.tools.finish_reason if calls and reason == "stop" else reason
            choices.append(Choice(index=index, message=message, finish_reason=reason, logprobs=logprobs))
        return ChatCompletion(object="chat.completion", choices=choices, usage=_usage(samples, asked), **asked.facts)

    def first(self, asked: Asked, index: int) -> ChatCompletionChunk | None:
        return self._chunk(asked, index, ChoiceDelta(role="assistant", content=""))

    def part(self, asked: Asked, index: int, part: Part, call_number: int) -> ChatCompletionChunk:
        """Return the chunk of a part of an answer that may call tools.

        Args:
            call_number: of the call that the part belongs to, from 0.
        """
        if isinstance(part, Content):
            return self.text(asked, index, part.text)
        if isinstance(part, CallStart):
            function = ChoiceDeltaToolCallFunction(name=part.name, arguments="")
            call = ChoiceDeltaToolCall(index=call_number, id=part.id, type="function", function=function)
        else:
            call = ChoiceDeltaToolCall(index=call_number, function=ChoiceDeltaToolCallFunction(arguments=part.text))
        return self._chunk(asked, index, ChoiceDelta(tool_calls=[call]))

    def text(self, asked: Asked, index: int, text: str) -> ChatCompletionChunk:
        return self._chunk(asked, index, ChoiceDelta(content=text))

    def piece(self, asked: Asked, index: int, output: Output, num_chars: int) -> ChatCompletionChunk:
        logprobs = ChunkLogprobs(content=chat_logprobs(self._tokenizer, output), refusal=None)
        return self._chunk(asked, index, ChoiceDelta(content=output.text), logprobs)

    def last(self, asked: Asked, index: int, reason: str | None) -> ChatCompletionChunk:
        return self._chunk(asked, index, ChoiceDelta(), reason=reason)

    def usage(self, asked: Asked, samples: Sequence[Output]) -> ChatCompletionChunk:
        usage = _usage(samples, asked)
        return ChatCompletionChunk(object="chat.completion.chunk", choices=[], usage=usage, **asked.facts)

    def _chunk(
        self,
        asked: Asked,
        index: int,
        delta: ChoiceDelta,
        logprobs: ChunkLogprobs | None = None,
        reason: str | None = None,
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(index=index, delta=delta, finish_reason=cast(Any, reason), logprobs=logprobs)
        return ChatCompletionChunk(object="chat.completion.chunk", choices=[choice], **asked.facts)


class CompletionForm:
    """The form of text completions, whose chunks are small completions."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def whole(self, asked: Asked, samples: Sequence[Output]) -> Completion:
        choices = []
        for index, output in enumerate(samples):
            before = echo_of(asked, index)
            logprobs = None
            if asked.params.logprobs is not None:
                logprobs = completion_logprobs(self._tokenizer, output, len(before))
            reason = cast(Any, reason_of(output))
            choices.append(
                CompletionChoice(index=index, text=before + output.text, finish_reason=reason, logprobs=logprobs)
            )
        return Completion(object="text_completion", choices=choices, usage=_usage(samples, asked), **asked.facts)

    def first(self, asked: Asked, index: int) -> Completion | None:
        return self._chunk(asked, index, echo_of(asked, index)) if asked.echo else None

    def text(self, asked: Asked, index: int, text: str) -> Completion:
        return self._chunk(asked, index, text)

    def piece(self, asked: Asked, index: int, output: Output, num_chars: int) -> Completion:
        logprobs = completion_logprobs(self._tokenizer, output, num_chars)
        return self._chunk(asked, index, output.text, logprobs)

    def last(self, asked: Asked, index: int, reason: str | None) -> Completion:
        return self._chunk(asked, index, "", reason=reason)

    def usage(self, asked: Asked, samples: Sequence[Output]) -> Completion:
        return Completion(object="text_completion", choices=[], usage=_usage(samples, asked), **asked.facts)

    def _chunk(
        self, asked: Asked, index: int, text: str, logprobs: Logprobs | None = None, reason: str | None = None
    ) -> Completion:
        # Only the last chunk of a choice has a reason; the type wants one in each.
        choice = CompletionChoice.model_construct(
            _fields_set={"index", "text", "finish_reason", "logprobs"},
            index=index, text=text, finish_reason=cast(Any, reason), logprobs=logprobs,
        )  # fmt: skip
        return Completion(object="text_completion", choices=[choice], **asked.facts)


def _call(call: Call) -> ChatCompletionMessageFunctionToolCall:
    function = Function(name=call.name, arguments=call.arguments)
    return ChatCompletionMessageFunctionToolCall(id=call.id, type="function", function=function)


def reason_of(output: Output) -> str | None:
    """Return OpenAI's name for the end of a sample."""
    return None if output.finish_reason is None else FINISH_REASONS[output.finish_reason]


def echo_of(asked: Asked, index: int) -> str:
    """Return the text of the prompt that a choice of a text completion begins with."""
    return asked.echo[index // asked.params.n] if asked.echo else ""


def _usage(samples: Sequence[Output], asked: Asked) -> CompletionUsage:
    """Return the account of a call: each prompt counts once, and the output of every sample."""
    usages = [output.usage for output in samples if output.usage is not None]
    prompt_tokens = sum(usage.prompt_tokens for usage in usages) // asked.params.n
    return usage_of(prompt_tokens, sum(usage.output_tokens for usage in usages))
