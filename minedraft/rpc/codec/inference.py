"""The client API's messages to and from plain values. No other module reads or writes their fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from functools import cache

from minedraft.errors import InvalidRequest
from minedraft.messages import TokenLogprobs
from minedraft.output import (
    AcceptanceState,
    BatchState,
    FaultState,
    Output,
    RequestUsage,
    ServiceStatus,
    SourceState,
    WorkerState,
)
from minedraft.prompts import (
    MAX_CHAT_MESSAGES,
    MAX_PROMPT_TOKENS,
    AnyPrompt,
    ChatPrompt,
    GenerateCall,
    TextPrompt,
    TokenPrompt,
    check_chat,
    check_interval,
    check_request_id,
    check_text,
    check_timeout,
    too_many_messages,
    too_many_tokens,
)
from minedraft.rpc.codec.sampling import sampling_from_pb, sampling_to_pb
from minedraft.sampling_params import MAX_TOKEN_ID
from minedraft.types import FinishReason, LoanTerms
from minedraft.v1 import common_pb2, inference_pb2

CLIENT_KEY = "minedraft-client"  # metadata key of a call: the random name of a client object

_PARTS = {"batches", "workers", "sources", "recent_faults", "acceptances"}  # of a status, each a message of its own

_PADDING_HEAD_BYTES = 4  # tag and length
_MIN_PADDING = 128  # bytes; a length below it is encoded in one byte

_FINISH_TO_PB = {
    FinishReason.STOP: inference_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: inference_pb2.FINISH_REASON_LENGTH,
    FinishReason.ABORT: inference_pb2.FINISH_REASON_ABORT,
}
_FINISH_FROM_PB = {value: reason for reason, value in _FINISH_TO_PB.items()}


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
    if call.timeout_s is not None:
        message.timeout_s = call.timeout_s
    message.interval_s = call.interval_s
    return message


def generate_from_pb(message: inference_pb2.GenerateRequest) -> GenerateCall:
    """Return the request, checked as far as that needs no model.

    Raises:
        InvalidRequest: naming field, value and limit.
    """
    request_id = check_request_id(message.request_id)
    prompt: AnyPrompt
    match message.WhichOneof("prompt"):
        case "text":
            prompt = check_text(TextPrompt(message.text))
        case "token_ids":
            prompt = TokenPrompt(_ids_from_pb(message.token_ids.ids))
        case "chat":
            if len(message.chat.messages) > MAX_CHAT_MESSAGES:
                raise too_many_messages(len(message.chat.messages))
            entries = tuple({"role": entry.role, "content": entry.content} for entry in message.chat.messages)
            prompt = check_chat(ChatPrompt(entries))
        case _:
            raise InvalidRequest("prompt", None, "must be text, token_ids or chat")
    return GenerateCall(
        prompt=prompt,
        sampling=sampling_from_pb(message.sampling),
        request_id=request_id,
        timeout_s=check_timeout(message.timeout_s if message.HasField("timeout_s") else None),
        interval_s=check_interval(message.interval_s),
    )


def output_to_pb(output: Output) -> inference_pb2.GenerateReply:
    message = inference_pb2.GenerateReply(
        request_id=output.request_id,
        index=output.index,
        text=output.text,
        token_ids=output.token_ids,
        round_lens=output.round_lens,
        forced_lens=output.forced_lens,
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


def pad_reply(message: inference_pb2.GenerateReply, multiple: int) -> None:
    """Make the encoded message as long as the next multiple of so many bytes."""
    missing = -message.ByteSize() % multiple
    # At least so much that the length of the padding takes two bytes, so that every length can be had; at most two.
    while missing < _PADDING_HEAD_BYTES + _MIN_PADDING:
        missing += multiple
    message.padding = bytes(missing - _PADDING_HEAD_BYTES)


def output_from_pb(message: inference_pb2.GenerateReply) -> Output:
    usage = None  # but for the last message of each sample, and there are many before it
    if message.HasField("usage"):
        usage = RequestUsage(**{name: getattr(message.usage, name) for name in _names(RequestUsage)})
    return Output(
        text=message.text,
        token_ids=tuple(message.token_ids),
        finish_reason=_FINISH_FROM_PB.get(message.finish_reason),
        usage=usage,
        logprobs=tuple(
            TokenLogprobs(entry.logprob, tuple(entry.top_ids), tuple(entry.top_logprobs)) for entry in message.logprobs
        ),
        index=message.index,
        request_id=message.request_id,
        round_lens=tuple(message.round_lens),
        forced_lens=tuple(message.forced_lens),
    )


def status_to_pb(status: ServiceStatus) -> inference_pb2.GetStatusReply:
    scalars = {name: getattr(status, name) for name in _names(ServiceStatus) - _PARTS}
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
        sources=[
            inference_pb2.SourceStatus(**{name: getattr(source, name) for name in _names(SourceState)})
            for source in status.sources
        ],
        recent_faults=[
            inference_pb2.FaultStatus(**{name: getattr(fault, name) for name in _names(FaultState)})
            for fault in status.recent_faults
        ],
        acceptances=[
            inference_pb2.AcceptanceStatus(**{name: getattr(entry, name) for name in _names(AcceptanceState)})
            for entry in status.acceptances
        ],
    )


def status_from_pb(message: inference_pb2.GetStatusReply) -> ServiceStatus:
    maps = {"errors", "faults", "worker_losses"}
    scalars = {name: getattr(message, name) for name in _names(ServiceStatus) - _PARTS - maps}
    return ServiceStatus(
        **scalars,
        errors=dict(message.errors),
        faults=dict(message.faults),
        worker_losses=dict(message.worker_losses),
        batches=tuple(
            BatchState(**{name: getattr(batch, name) for name in _names(BatchState)}) for batch in message.batches
        ),
        workers=tuple(
            WorkerState(**{name: getattr(worker, name) for name in _names(WorkerState)}) for worker in message.workers
        ),
        sources=tuple(
            SourceState(**{name: getattr(source, name) for name in _names(SourceState)}) for source in message.sources
        ),
        recent_faults=tuple(
            FaultState(**{name: getattr(fault, name) for name in _names(FaultState)}) for fault in message.recent_faults
        ),
        acceptances=tuple(
            AcceptanceState(**{name: getattr(entry, name) for name in _names(AcceptanceState)})
            for entry in message.acceptances
        ),
    )


def borrow_to_pb(terms: LoanTerms) -> inference_pb2.BorrowRequest:
    return inference_pb2.BorrowRequest(
        mode=terms.mode.value,
        max_batch_size=terms.max_batch_size,
        draft_len=terms.draft_len,
        branches=terms.branches,
        keep_cores=terms.keep_cores,
    )


def borrow_from_pb(message: inference_pb2.BorrowRequest) -> LoanTerms:
    """Return the terms. Raise InvalidRequest for an unknown mode or a size out of range."""
    sizes = message.max_batch_size, message.draft_len, message.branches
    return LoanTerms.check(message.mode, *sizes, keep_cores=message.keep_cores)


@cache
def _names(
    kind: type[RequestUsage | BatchState | WorkerState | SourceState | FaultState | AcceptanceState | ServiceStatus],
) -> frozenset[str]:
    return frozenset(field.name for field in fields(kind))


def _ids_from_pb(ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids of a message. Their type is int32, so only the sign needs a check. `min` does it in one
    call: a Python loop over a long prompt would delay other answers."""
    if not ids:
        raise InvalidRequest("prompt", [], "must not be empty")
    if len(ids) > MAX_PROMPT_TOKENS:
        raise too_many_tokens(len(ids))
    token_ids = tuple(ids)
    if (least := min(token_ids)) < 0:
        raise InvalidRequest("prompt", least, f"each token id must be an integer in [0, {MAX_TOKEN_ID}]")
    return token_ids
