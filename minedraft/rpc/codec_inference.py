"""The client API's messages to and from plain values; nothing else touches their fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from minedraft.errors import InvalidRequest
from minedraft.output import BatchState, Output, ServiceStatus, WorkerState
from minedraft.rpc.codec_sampling import sampling_from_pb, sampling_to_pb
from minedraft.sampling_params import MAX_TOKEN_ID, SamplingParams
from minedraft.scheduler import MAX_BATCH_SIZE, MAX_DRAFT_LEN, SchedulerLimits
from minedraft.types import FinishReason, Mode, TokenLogprobs
from minedraft.usage import RequestUsage
from minedraft.v1 import common_pb2, inference_pb2

MAX_PROMPT_BYTES = 1 << 20
MAX_PROMPT_TOKENS = 1 << 18
MAX_CHAT_MESSAGES = 1024
MAX_REQUEST_ID_CHARS = 64
MAX_ROLE_CHARS = 64
CLIENT_KEY = "minedraft-client"  # in a call's metadata: a name that the client drew when it was made

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
"""Text, token ids, or chat messages with the keys "role" and "content"."""

_FINISH_TO_PB = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: inference_pb2.FINISH_REASON_ABORT,
}
_FINISH_FROM_PB = {value: reason for reason, value in _FINISH_TO_PB.items()}


@dataclass(frozen=True, slots=True)
class TextPrompt:
    text: str


@dataclass(frozen=True, slots=True)
class TokenPrompt:
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    messages: tuple[dict[str, str], ...]


AnyPrompt = TextPrompt | TokenPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """One Generate request; `request_id` is empty when the server shall choose."""

    prompt: AnyPrompt
    sampling: SamplingParams
    request_id: str = ""


def to_prompt(prompt: Prompt) -> AnyPrompt:
    """Tell the three kinds of prompt apart, and check the limits that need no model.

    Raises:
        InvalidRequest: empty, too large, or a mixture.
    """
    if isinstance(prompt, str):
        return _check_text(TextPrompt(prompt))
    if isinstance(prompt, (bytes, Mapping)) or not isinstance(prompt, Sequence):
        raise InvalidRequest("prompt", prompt, "must be a string, a list of token ids or a list of messages")
    if not prompt:
        raise InvalidRequest("prompt", [], "must not be empty")
    if isinstance(prompt[0], Mapping):
        return _check_chat(ChatPrompt(tuple(_to_message(message) for message in prompt)))
    return _check_token_ids(TokenPrompt(tuple(prompt)))  # type: ignore[arg-type]


def generate_to_pb(call: GenerateCall) -> inference_pb2.GenerateRequest:
    message = inference_pb2.GenerateRequest(request_id=call.request_id, sampling=sampling_to_pb(call.sampling))
    match call.prompt:
        case TextPrompt(text):
            message.text = text
        case TokenPrompt(token_ids):
            message.token_ids.ids.extend(token_ids)
            message.token_ids.SetInParent()
        case ChatPrompt(messages):
            for entry in messages:
                message.chat.messages.add(role=entry["role"], content=entry["content"])
    return message


def generate_from_pb(message: inference_pb2.GenerateRequest) -> GenerateCall:
    """Decode and check what can be checked without the model, before any work is done.

    Raises:
        InvalidRequest: naming field, value and limit.
    """
    request_id = message.request_id
    if len(request_id) > MAX_REQUEST_ID_CHARS or not request_id.isprintable():
        raise InvalidRequest("request_id", request_id, f"must be at most {MAX_REQUEST_ID_CHARS} printable characters")
    prompt: AnyPrompt
    match message.WhichOneof("prompt"):
        case "text":
            prompt = _check_text(TextPrompt(message.text))
        case "token_ids":
            prompt = TokenPrompt(_ids_from_pb(message.token_ids.ids))
        case "chat":
            if len(message.chat.messages) > MAX_CHAT_MESSAGES:
                raise _too_many_messages(len(message.chat.messages))
            entries = tuple({"role": entry.role, "content": entry.content} for entry in message.chat.messages)
            prompt = _check_chat(ChatPrompt(entries))
        case _:
            raise InvalidRequest("prompt", None, "must be text, token_ids or chat")
    return GenerateCall(prompt=prompt, sampling=sampling_from_pb(message.sampling), request_id=request_id)


def output_to_pb(output: Output) -> inference_pb2.GenerateReply:
    message = inference_pb2.GenerateReply(
        request_id=output.request_id, index=output.index, text=output.text, token_ids=output.token_ids
    )
    for entry in output.logprobs:
        message.logprobs.append(
            common_pb2.TokenLogprobs(logprob=entry.logprob, top_ids=entry.top_ids, top_logprobs=entry.top_logprobs)
        )
    if output.finish_reason is not None:
        message.finish_reason = _FINISH_TO_PB[output.finish_reason]
    if output.usage is not None:
        message.usage.CopyFrom(
            inference_pb2.Usage(**{name: getattr(output.usage, name) for name in _names(RequestUsage)})
        )
    return message


def output_from_pb(message: inference_pb2.GenerateReply) -> Output:
    usage = RequestUsage(**{name: getattr(message.usage, name) for name in _names(RequestUsage)})
    return Output(
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=_FINISH_FROM_PB.get(message.finish_reason),
        usage=usage if message.HasField("usage") else None,
        logprobs=tuple(
            TokenLogprobs(entry.logprob, tuple(entry.top_ids), tuple(entry.top_logprobs)) for entry in message.logprobs
        ),
        index=message.index,
        request_id=message.request_id,
    )


def status_to_pb(status: ServiceStatus) -> inference_pb2.GetStatusReply:
    scalars = {name: getattr(status, name) for name in _names(ServiceStatus) - {"batches", "workers"}}
    return inference_pb2.GetStatusReply(
        **scalars,
        batches=[
            inference_pb2.BatchStatus(**{name: getattr(batch, name) for name in _names(BatchState)})
            for batch in status.batches
        ],
        workers=[
            inference_pb2.WorkerStatus(**{name: getattr(worker, name) for name in _names(WorkerState)})
            for worker in status.workers
        ],
    )


def status_from_pb(message: inference_pb2.GetStatusReply) -> ServiceStatus:
    scalars = {name: getattr(message, name) for name in _names(ServiceStatus) - {"batches", "workers", "errors"}}
    return ServiceStatus(
        **scalars,
        errors=dict(message.errors),
        batches=tuple(
            BatchState(**{name: getattr(batch, name) for name in _names(BatchState)}) for batch in message.batches
        ),
        workers=tuple(
            WorkerState(**{name: getattr(worker, name) for name in _names(WorkerState)}) for worker in message.workers
        ),
    )


def limits_from_pb(message: inference_pb2.ConfigureRequest, current: SchedulerLimits) -> SchedulerLimits:
    """The limits a Configure asks for; what it does not name stays.

    Raises:
        InvalidRequest: an unknown mode, or a size out of range.
    """
    if message.mode not in {mode.value for mode in Mode}:
        raise InvalidRequest("mode", message.mode, f"one of {', '.join(mode.value for mode in Mode)}")
    if not 1 <= message.max_batch_size <= MAX_BATCH_SIZE:
        raise InvalidRequest("max_batch_size", message.max_batch_size, f"must be in [1, {MAX_BATCH_SIZE}]")
    if not 0 <= message.draft_len <= MAX_DRAFT_LEN:
        raise InvalidRequest("draft_len", message.draft_len, f"must be in [0, {MAX_DRAFT_LEN}]")
    return replace(current, mode=Mode(message.mode), max_batch_size=message.max_batch_size, draft_len=message.draft_len)


def _names(kind: type[RequestUsage | BatchState | WorkerState | ServiceStatus]) -> set[str]:
    return {field.name for field in fields(kind)}


def _check_text(prompt: TextPrompt) -> TextPrompt:
    if not prompt.text:
        raise InvalidRequest("prompt", "", "must not be empty")
    _check_bytes(_num_bytes(prompt.text))
    return prompt


def _check_token_ids(prompt: TokenPrompt) -> TokenPrompt:
    if not prompt.token_ids:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(prompt.token_ids) > MAX_PROMPT_TOKENS:
        raise _too_many_tokens(len(prompt.token_ids))
    for token_id in prompt.token_ids:
        if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id <= MAX_TOKEN_ID:
            raise InvalidRequest("prompt", token_id, f"each token id is an integer in [0, {MAX_TOKEN_ID}]")
    return prompt


def _ids_from_pb(ids: Sequence[int]) -> tuple[int, ...]:
    """The ids of a message: int32 by their type, so that only their sign is left to check, and at once: a look
    at each of a long prompt's would hold up the answers of others."""
    if not ids:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(ids) > MAX_PROMPT_TOKENS:
        raise _too_many_tokens(len(ids))
    token_ids = tuple(ids)
    if (least := min(token_ids)) < 0:
        raise InvalidRequest("prompt", least, f"each token id is an integer in [0, {MAX_TOKEN_ID}]")
    return token_ids


def _check_chat(prompt: ChatPrompt) -> ChatPrompt:
    if not prompt.messages:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(prompt.messages) > MAX_CHAT_MESSAGES:
        raise _too_many_messages(len(prompt.messages))
    for message in prompt.messages:
        if not 1 <= len(message["role"]) <= MAX_ROLE_CHARS:
            raise InvalidRequest("prompt", message["role"], f"a message's role has 1 to {MAX_ROLE_CHARS} characters")
    _check_bytes(sum(_num_bytes(message["content"]) for message in prompt.messages))
    return prompt


def _num_bytes(text: str) -> int:
    try:
        return len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidRequest("prompt", text[error.start : error.end], "is not valid Unicode text") from None


def _check_bytes(num_bytes: int) -> None:
    if num_bytes > MAX_PROMPT_BYTES:
        raise InvalidRequest("prompt", f"{num_bytes} bytes", f"at most {MAX_PROMPT_BYTES} bytes are allowed")


def _to_message(message: object) -> dict[str, str]:
    if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
        raise InvalidRequest("prompt", message, 'each message has exactly the keys "role" and "content"')
    for key in ("role", "content"):
        if not isinstance(message[key], str):
            raise InvalidRequest("prompt", message[key], f"a message's {key} is a string")
    return dict(message)


def _too_many_tokens(count: int) -> InvalidRequest:
    return InvalidRequest("prompt", f"{count} tokens", f"at most {MAX_PROMPT_TOKENS} tokens are allowed")


def _too_many_messages(count: int) -> InvalidRequest:
    return InvalidRequest("prompt", f"{count} messages", f"at most {MAX_CHAT_MESSAGES} messages are allowed")
