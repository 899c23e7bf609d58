"""The common parts of the worker protocol's messages: rounds, sequence specs, timings, handshake, releases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from minedraft.errors import InvalidRequest, StaleRound
from minedraft.messages import ConfigureCommand, Timing, WorkerInfo
from minedraft.rpc.codec.channel import offers_from_pb, offers_to_pb
from minedraft.rpc.codec.sampling import sampling_from_pb, sampling_to_pb
from minedraft.rpc.codec.tensor import layers_from_pb
from minedraft.types import (
    MAX_FEATURE_SIZE,
    MAX_SPAN_DRAFTS,
    MAX_SPANS,
    PROTOCOL_VERSION,
    Acceptance,
    Batch,
    DraftMethod,
    Role,
    RoundId,
    SequenceSpec,
)
from minedraft.v1 import worker_pb2

MAX_STOP_IDS = 1024
MAX_VOCAB_SIZE = 1 << 24
MAX_SEQUENCE_LEN = 1 << 24
MAX_NAME_CHARS = 1024
MAX_CORES = 4096

_MessageT = TypeVar("_MessageT", worker_pb2.DraftSpan, worker_pb2.VerifySpan)
_SpanT = TypeVar("_SpanT")

_BATCH_TO_PB = {Batch.A: worker_pb2.BATCH_NAME_A, Batch.B: worker_pb2.BATCH_NAME_B}
_BATCH_FROM_PB = {value: batch for batch, value in _BATCH_TO_PB.items()}
_ACCEPTANCE_TO_PB = {
    Acceptance.GREEDY: worker_pb2.ACCEPTANCE_GREEDY,
    Acceptance.COUPLED: worker_pb2.ACCEPTANCE_COUPLED,
    Acceptance.REJECTION: worker_pb2.ACCEPTANCE_REJECTION,
}
_ACCEPTANCE_FROM_PB = {value: acceptance for acceptance, value in _ACCEPTANCE_TO_PB.items()}


def round_to_pb(round_id: RoundId) -> worker_pb2.RoundId:
    return worker_pb2.RoundId(epoch=round_id.epoch, batch=_BATCH_TO_PB[round_id.batch], number=round_id.number)


def round_from_pb(message: worker_pb2.RoundId) -> RoundId:
    batch = _BATCH_FROM_PB.get(message.batch)
    if batch is None:
        raise InvalidRequest("round.batch", message.batch, "must be A or B")
    return RoundId(message.epoch, batch, message.number)


def spec_to_pb(spec: SequenceSpec) -> worker_pb2.SequenceSpec:
    return worker_pb2.SequenceSpec(
        sampling=sampling_to_pb(spec.sampling),
        prompt_len=spec.prompt_len,
        seed=spec.seed,
        acceptance=_ACCEPTANCE_TO_PB[spec.acceptance],
        stop_ids=spec.stop_ids,
    )


def spec_from_pb(message: worker_pb2.SequenceSpec, info: WorkerInfo) -> SequenceSpec:
    acceptance = _ACCEPTANCE_FROM_PB.get(message.acceptance)
    if acceptance is None:
        raise InvalidRequest("spec.acceptance", message.acceptance, "must be greedy, coupled or rejection")
    if not 1 <= message.prompt_len <= MAX_SEQUENCE_LEN:
        raise InvalidRequest("spec.prompt_len", message.prompt_len, f"must be in [1, {MAX_SEQUENCE_LEN}]")
    if message.seed >= 1 << 63:
        raise InvalidRequest("spec.seed", message.seed, "must be in [0, 2**63 - 1]")
    if len(message.stop_ids) > MAX_STOP_IDS:
        raise InvalidRequest("spec.stop_ids", f"{len(message.stop_ids)} ids", f"at most {MAX_STOP_IDS} are allowed")
    sampling = sampling_from_pb(message.sampling)
    sampling.check_token_ids(info.vocab_size)
    return SequenceSpec(
        sampling=sampling,
        prompt_len=message.prompt_len,
        seed=message.seed,
        acceptance=acceptance,
        stop_ids=tokens_from_pb(message.stop_ids, info.vocab_size, "spec.stop_ids"),
    )


def tokens_from_pb(ids: Sequence[int], vocab_size: int, field: str, request_id: int | None = None) -> tuple[int, ...]:
    tokens = tuple(ids)
    if tokens and max(tokens) >= vocab_size:
        limit = f"token ids must be below the vocabulary size {vocab_size}"
        raise InvalidRequest(name_of(request_id, field), max(tokens), limit)
    return tokens


def name_of(request_id: int | None, field: str) -> str:
    """Return the name of a field for an error message. Call it only on an error: it would take a third of the
    time of decoding."""
    return field if request_id is None else f"{field} of request {request_id}"


def released_from_pb(ids: Sequence[int]) -> tuple[int, ...]:
    if len(ids) > 64 * MAX_SPANS:
        raise InvalidRequest("released", f"{len(ids)} ids", f"at most {64 * MAX_SPANS} are allowed")
    return tuple(ids)


def spans_from_pb(
    messages: Sequence[_MessageT], decode: Callable[[_MessageT, WorkerInfo], _SpanT], info: WorkerInfo
) -> tuple[_SpanT, ...]:
    """Return the decoded spans of a command.

    Raises:
        InvalidRequest: as `decode`, with the request id set, or a request has two spans.
    """
    check_span_count("spans", len(messages))
    spans: dict[int, _SpanT] = {}
    for message in messages:
        try:
            span = decode(message, info)
        except InvalidRequest as error:
            error.request_id = message.request_id
            raise
        if spans.setdefault(message.request_id, span) is not span:
            raise InvalidRequest("spans", "a request id twice", "each request may have one span")
    return tuple(spans.values())


def check_answered(worker: str, answered: worker_pb2.RoundId, asked: RoundId) -> None:
    """Raise StaleRound for a reply to another round than the one that was asked for; InvalidRequest for no round."""
    if (round_id := round_from_pb(answered)) != asked:
        raise StaleRound(f"{worker} answered {round_id}, not {asked}")


def check_span_count(field: str, num_spans: int, num_each: int = 1) -> None:
    if num_spans > MAX_SPANS * num_each:
        raise InvalidRequest(field, f"{num_spans} entries", f"at most {MAX_SPANS * num_each} are allowed")


def check_span(request_id: int, prefix_len: int, num_tokens: int, num_drafts: int, info: WorkerInfo) -> None:
    """Raise InvalidRequest unless a span adds at least one token and stays inside the context."""
    if num_tokens < 1:
        raise InvalidRequest(name_of(request_id, "tokens"), "empty", "must have at least one token")
    if num_drafts > MAX_SPAN_DRAFTS:
        raise InvalidRequest(name_of(request_id, "drafts"), f"{num_drafts} tokens", f"at most {MAX_SPAN_DRAFTS}")
    if prefix_len + num_tokens + num_drafts > info.max_model_len:
        total = f"{prefix_len} + {num_tokens} + {num_drafts}"
        limit = f"at most {info.max_model_len} fit in the context"
        raise InvalidRequest(name_of(request_id, "tokens"), total, limit)


def introduction_from_pb(
    message: worker_pb2.SequenceSpec, request_id: int, prefix_len: int, info: WorkerInfo
) -> SequenceSpec:
    """Return the spec of a span that introduces a request, for which nothing can be cached yet."""
    if prefix_len:
        raise InvalidRequest(name_of(request_id, "prefix_len"), prefix_len, "must be 0 in a span with a spec")
    return spec_from_pb(message, info)


def timing_to_pb(timing: Timing) -> worker_pb2.Timing:
    return worker_pb2.Timing(
        queue_ns=timing.queue_ns,
        forward_ns=timing.forward_ns,
        busy_ns=timing.busy_ns,
        idle_ns=timing.idle_ns,
        start_us=timing.start_ns // 1000,
    )


def timing_from_pb(message: worker_pb2.Timing, info: WorkerInfo) -> Timing:
    """Return the timing of a command of worker `info`, with its start on this process's clock."""
    start_ns = message.start_us * 1000 + info.clock_offset_ns
    return Timing(message.queue_ns, message.forward_ns, message.busy_ns, message.idle_ns, start_ns)


def num_free_blocks_from_pb(num_free_blocks: int, info: WorkerInfo) -> int:
    if num_free_blocks > info.num_blocks:
        raise InvalidRequest("num_free_blocks", num_free_blocks, f"the worker has {info.num_blocks}")
    return num_free_blocks


def handshake_to_pb(client_name: str, target_vocab_size: int) -> worker_pb2.HandshakeRequest:
    return worker_pb2.HandshakeRequest(
        protocol_version=PROTOCOL_VERSION,
        client_name=client_name[:MAX_NAME_CHARS],
        target_vocab_size=target_vocab_size,
    )


def handshake_from_pb(message: worker_pb2.HandshakeRequest) -> tuple[str, int]:
    """Return the name of the scheduler and the target's vocabulary size (0: no limit for the worker)."""
    if message.target_vocab_size > MAX_VOCAB_SIZE:
        raise InvalidRequest("target_vocab_size", message.target_vocab_size, f"must be in [0, {MAX_VOCAB_SIZE}]")
    return message.client_name[:MAX_NAME_CHARS] or "an unnamed scheduler", message.target_vocab_size


def info_to_pb(info: WorkerInfo, clock_ns: int, waited_ns: int = 0) -> worker_pb2.HandshakeReply:
    """Return a worker's answer to the handshake. clock_ns: its monotonic clock now, from which the scheduler
    computes the offset of the two clocks. waited_ns: since the request came."""
    return worker_pb2.HandshakeReply(
        role=info.role.value,
        epoch=info.epoch,
        protocol_version=info.protocol_version,
        vocab_size=info.vocab_size,
        vocab_fingerprint=info.vocab_fingerprint,
        num_blocks=info.num_blocks,
        block_size=info.block_size,
        max_model_len=info.max_model_len,
        model_name=info.model_name,
        device=info.device,
        dtype=info.dtype,
        draft_method=info.draft_method.value if info.draft_method else "",
        kernels=info.kernels,
        is_batch_invariant=info.is_batch_invariant,
        channels=offers_to_pb(info.channels),
        weights_bytes=info.weights_bytes,
        feature_layers=info.feature_layers,
        feature_size=info.feature_size,
        clock_ns=clock_ns,
        waited_ns=waited_ns,
        cores=info.cores,
        max_cores=info.max_cores,
    )


def info_from_pb(message: worker_pb2.HandshakeReply, sent_ns: int, received_ns: int) -> WorkerInfo:
    """Return the worker's info. sent_ns, received_ns: this process's monotonic clock when the request was sent
    and when the reply arrived."""
    roles = {role.value: role for role in Role}
    if message.role not in roles:
        raise InvalidRequest("role", message.role, f"must be one of {sorted(roles)}")
    role = roles[message.role]
    methods: dict[str, DraftMethod | None] = {"": None} | {method.value: method for method in DraftMethod}
    if message.draft_method not in methods:
        raise InvalidRequest("draft_method", message.draft_method, f"must be one of {sorted(methods)}")
    for field, value, least, most in (
        ("vocab_size", message.vocab_size, 1, MAX_VOCAB_SIZE),
        ("num_blocks", message.num_blocks, 0 if role is Role.DRAFTER else 1, (1 << 31) - 1),
        ("block_size", message.block_size, 1, 1 << 16),
        ("max_model_len", message.max_model_len, 1, MAX_SEQUENCE_LEN),
        ("feature_size", message.feature_size, 1 if message.feature_layers else 0, MAX_FEATURE_SIZE),
    ):
        if not least <= value <= most:
            raise InvalidRequest(field, value, f"must be in [{least}, {most}]")
    for field in ("vocab_fingerprint", "model_name", "device", "dtype", "kernels"):
        if len(getattr(message, field)) > MAX_NAME_CHARS:
            raise InvalidRequest(field, getattr(message, field), f"at most {MAX_NAME_CHARS} characters")
    return WorkerInfo(
        role=role,
        epoch=message.epoch,
        protocol_version=message.protocol_version,
        vocab_size=message.vocab_size,
        vocab_fingerprint=message.vocab_fingerprint,
        num_blocks=message.num_blocks,
        block_size=message.block_size,
        max_model_len=message.max_model_len,
        model_name=message.model_name,
        device=message.device,
        dtype=message.dtype,
        draft_method=methods[message.draft_method],
        kernels=message.kernels,
        is_batch_invariant=message.is_batch_invariant,
        channels=offers_from_pb(message.channels),
        weights_bytes=message.weights_bytes,
        feature_layers=layers_from_pb(message.feature_layers, "feature_layers"),
        feature_size=message.feature_size,
        clock_offset_ns=clock_offset_ns(message.clock_ns, sent_ns, received_ns, message.waited_ns),
        cores=_cores_from_pb("cores", message.cores),
        max_cores=_cores_from_pb("max_cores", message.max_cores),
    )


def clock_offset_ns(worker_ns: int, sent_ns: int, received_ns: int, waited_ns: int = 0) -> int:
    """Return this process's clock less the worker's, to within half the round trip. It is 0 if the worker's time
    lies inside the round trip: the clocks are the same, as on one host, or cannot be told apart.

    waited_ns: of the round trip, the time that the worker waited before it read its clock.
    """
    if sent_ns <= worker_ns <= received_ns:
        return 0
    return (min(sent_ns + waited_ns, received_ns) + received_ns) // 2 - worker_ns


def release_to_pb(epoch: int, request_ids: Sequence[int]) -> worker_pb2.ReleaseRequest:
    return worker_pb2.ReleaseRequest(epoch=epoch, request_ids=request_ids)


def release_from_pb(message: worker_pb2.ReleaseRequest) -> tuple[int, tuple[int, ...]]:
    """Return the epoch and the request ids."""
    return message.epoch, released_from_pb(message.request_ids)


def release_reply_to_pb(num_free_blocks: int) -> worker_pb2.ReleaseReply:
    return worker_pb2.ReleaseReply(num_free_blocks=num_free_blocks)


def release_reply_from_pb(message: worker_pb2.ReleaseReply, info: WorkerInfo) -> int:
    return num_free_blocks_from_pb(message.num_free_blocks, info)


def configure_to_pb(command: ConfigureCommand) -> worker_pb2.ConfigureRequest:
    return worker_pb2.ConfigureRequest(epoch=command.epoch, number=command.number, cores=command.cores)


def configure_from_pb(message: worker_pb2.ConfigureRequest) -> ConfigureCommand:
    return ConfigureCommand(message.epoch, message.number, _cores_from_pb("cores", message.cores))


def configure_reply_to_pb(timing: Timing) -> worker_pb2.ConfigureReply:
    return worker_pb2.ConfigureReply(timing=timing_to_pb(timing))


def configure_reply_from_pb(message: worker_pb2.ConfigureReply, info: WorkerInfo) -> Timing:
    return timing_from_pb(message.timing, info)


def _cores_from_pb(field: str, cores: Sequence[int]) -> tuple[int, ...]:
    if len(cores) > MAX_CORES or max(cores, default=0) >= MAX_CORES:
        raise InvalidRequest(field, f"{len(cores)} up to {max(cores)}", f"numbers below {MAX_CORES}, at most so many")
    return tuple(cores)


def protocol_version_from_pb(message: worker_pb2.HandshakeRequest) -> int:
    return message.protocol_version
