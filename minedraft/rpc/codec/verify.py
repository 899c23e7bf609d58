"""Verify messages: commands to the verifier, and its verdicts."""

from __future__ import annotations

from minedraft.errors import InvalidRequest, NumericError, ProtocolError, StaleRound
from minedraft.messages import Features, TokenLogprobs, Verdict, VerifyCommand, VerifyReply, VerifySpan, WorkerInfo
from minedraft.rpc.codec import common
from minedraft.rpc.codec.tensor import features_from_pb, features_to_pb, layers_from_pb, q_from_pb, q_to_pb
from minedraft.sampling_params import MAX_LOGPROBS
from minedraft.types import MAX_FORCED, MAX_STEPS
from minedraft.v1 import common_pb2, worker_pb2

_MAX_LOGPROB = 1e-3  # 0, with room for rounding
_VERDICT_ERRORS = frozenset({"", NumericError.reason})
_FOLLOWER_ERRORS = _VERDICT_ERRORS | {StaleRound.reason}


def verify_command_to_pb(command: VerifyCommand) -> worker_pb2.VerifyRequest:
    return worker_pb2.VerifyRequest(
        round=common.round_to_pb(command.round),
        spans=[_span_to_pb(span) for span in command.spans],
        released=command.released,
        feature_layers=command.feature_layers,
    )


def verify_command_from_pb(message: worker_pb2.VerifyRequest, info: WorkerInfo) -> VerifyCommand:
    """Return the command, in the verifier.

    Raises:
        InvalidRequest: a value breaks a limit of `info` or of the protocol.
    """
    spans = common.spans_from_pb(message.spans, _span_from_pb, info)
    layers = layers_from_pb(message.feature_layers, "feature_layers")
    if not layers and any(span.wants_features for span in spans):
        raise InvalidRequest("feature_layers", "empty", "must name the layers of the features that spans want")
    return VerifyCommand(common.round_from_pb(message.round), spans, common.released_from_pb(message.released), layers)


def verify_reply_to_pb(reply: VerifyReply) -> worker_pb2.VerifyReply:
    return worker_pb2.VerifyReply(
        round=common.round_to_pb(reply.round),
        verdicts=[_verdict_to_pb(verdict) for verdict in reply.verdicts],
        timing=common.timing_to_pb(reply.timing),
        num_free_blocks=reply.num_free_blocks,
    )


def verify_reply_from_pb(message: worker_pb2.VerifyReply, command: VerifyCommand, info: WorkerInfo) -> VerifyReply:
    """Return the reply, in the scheduler: exactly one verdict for each span of `command`, in its order.

    Raises:
        StaleRound: the reply is for another round.
        ProtocolError: the reply does not answer the command, or a value breaks a limit.
    """
    try:
        common.check_answered("verifier", message.round, command.round)
        common.check_span_count("verdicts", len(message.verdicts))
        by_id = {verdict.request_id: verdict for verdict in message.verdicts}
        asked = {span.request_id for span in command.spans}
        if len(by_id) != len(message.verdicts) or by_id.keys() != asked:
            raise InvalidRequest("verdicts", sorted(by_id), f"must be for the requests {sorted(asked)}")
        return VerifyReply(
            round=command.round,
            verdicts=tuple([_verdict_from_pb(by_id[span.request_id], span, info) for span in command.spans]),
            timing=common.timing_from_pb(message.timing, info),
            num_free_blocks=common.num_free_blocks_from_pb(message.num_free_blocks, info),
        )
    except InvalidRequest as error:
        raise ProtocolError(f"verifier's reply: {error}") from error


def _span_to_pb(span: VerifySpan) -> worker_pb2.VerifySpan:
    message = worker_pb2.VerifySpan(
        request_id=span.request_id,
        prefix_len=span.prefix_len,
        tokens=span.tokens,
        drafts=span.drafts,
        sample=span.sample,
        follows=span.follows,
        wants_features=span.wants_features,
        num_steps=span.num_steps if span.num_steps > 1 else 0,
    )
    if span.q is not None:
        message.q.CopyFrom(q_to_pb(span.q))
    if span.spec is not None:
        message.spec.CopyFrom(common.spec_to_pb(span.spec))
    return message


def _span_from_pb(message: worker_pb2.VerifySpan, info: WorkerInfo) -> VerifySpan:
    request_id, prefix_len, sample = message.request_id, message.prefix_len, message.sample
    tokens = common.tokens_from_pb(message.tokens, info.vocab_size, "tokens", request_id)
    drafts = common.tokens_from_pb(message.drafts, info.vocab_size, "drafts", request_id)
    if message.follows:
        return _follower_from_pb(message, info)
    num_steps = _steps_from_pb(message)
    common.check_span(request_id, prefix_len, len(tokens), max(len(drafts), num_steps - 1), info)
    if drafts and not sample:
        name = common.name_of(request_id, "drafts")
        raise InvalidRequest(name, f"{len(drafts)} tokens", "must be none in a span that does not sample")
    q = spec = None
    if message.HasField("q"):
        q = q_from_pb(message.q, len(drafts), common.name_of(request_id, "q"))
    if message.HasField("spec"):
        spec = common.introduction_from_pb(message.spec, request_id, prefix_len, info)
    return VerifySpan(
        request_id,
        prefix_len,
        tokens,
        drafts,
        q,
        sample,
        spec,
        wants_features=message.wants_features,
        num_steps=num_steps,
    )


def _follower_from_pb(message: worker_pb2.VerifySpan, info: WorkerInfo) -> VerifySpan:
    request_id, prefix_len = message.request_id, message.prefix_len
    has_more = message.tokens or message.drafts or message.HasField("spec") or message.HasField("q")
    if has_more or message.wants_features or not message.sample:
        name = common.name_of(request_id, "follows")
        raise InvalidRequest(name, True, "must be false in a span that has more than a prefix length")
    num_steps = _steps_from_pb(message)
    common.check_span(request_id, prefix_len, 1, num_steps - 1, info)
    return VerifySpan(request_id, prefix_len, (), follows=True, num_steps=num_steps)


def _steps_from_pb(message: worker_pb2.VerifySpan) -> int:
    """Return the steps of a span, which has nothing but tokens if there are several."""
    num_steps, name = message.num_steps or 1, common.name_of(message.request_id, "num_steps")
    if num_steps > MAX_STEPS:
        raise InvalidRequest(name, num_steps, f"at most {MAX_STEPS}")
    if num_steps > 1 and (message.drafts or message.wants_features or not message.sample):
        raise InvalidRequest(name, num_steps, "must be 1 in a span with drafts or features, or that does not sample")
    return num_steps


def _verdict_to_pb(verdict: Verdict) -> worker_pb2.Verdict:
    message = worker_pb2.Verdict(
        request_id=verdict.request_id,
        committed_len=verdict.committed_len,
        accepted_len=verdict.accepted_len,
        tokens=verdict.tokens,
        error=verdict.error,
        num_forced=verdict.num_forced,
    )
    for entry in verdict.logprobs:
        message.logprobs.add(logprob=entry.logprob, top_ids=entry.top_ids, top_logprobs=entry.top_logprobs)
    if verdict.features is not None:
        message.features.CopyFrom(features_to_pb(verdict.features))
    return message


def _verdict_from_pb(message: worker_pb2.Verdict, span: VerifySpan, info: WorkerInfo) -> Verdict:
    request_id, committed_len = span.request_id, span.committed_len
    accepted_len, error = message.accepted_len, message.error
    tokens = common.tokens_from_pb(message.tokens, info.vocab_size, "verdicts.tokens", request_id)

    def refusal(field: str, value: object, limit: str) -> InvalidRequest:
        return InvalidRequest(common.name_of(request_id, f"verdicts.{field}"), value, limit)

    if message.committed_len != committed_len:
        raise refusal("committed_len", message.committed_len, f"must be {committed_len}")
    if error not in (known := _FOLLOWER_ERRORS if span.follows else _VERDICT_ERRORS):
        raise refusal("error", error, f"must be one of {sorted(known)}")
    if accepted_len > len(span.drafts):
        raise refusal("accepted_len", accepted_len, f"{len(span.drafts)} drafts were sent")
    if (num_forced := message.num_forced) > MAX_FORCED:
        raise refusal("num_forced", num_forced, f"at most {MAX_FORCED}")
    num_chosen = len(tokens) - accepted_len - num_forced  # one for each step
    num_chosen = min(max(num_chosen, 1), span.num_steps)
    num_expected = accepted_len + num_chosen + num_forced if span.sample and not error else 0
    if len(tokens) != num_expected or (accepted_len and not num_expected):
        limit = f"must be {num_expected} after {accepted_len} accepted drafts and before {num_forced} forced tokens"
        raise refusal("tokens", f"{len(tokens)} tokens", limit)
    if tokens[:accepted_len] != span.drafts[:accepted_len]:
        raise refusal("tokens", tokens, f"must start with the accepted drafts {span.drafts[:accepted_len]}")
    logprobs: tuple[TokenLogprobs, ...] = ()
    if message.logprobs:
        if len(message.logprobs) != len(tokens):
            raise refusal("logprobs", f"{len(message.logprobs)} entries", f"must be {len(tokens)}")
        name = common.name_of(request_id, "verdicts.logprobs")
        logprobs = tuple(logprobs_from_pb(entry, info.vocab_size, name) for entry in message.logprobs)
    features = _features_from_pb(message, span, info)
    return Verdict(request_id, committed_len, accepted_len, tokens, logprobs, error, features, num_forced)


def _features_from_pb(message: worker_pb2.Verdict, span: VerifySpan, info: WorkerInfo) -> Features | None:
    """Return the features of a verdict whose other fields are checked."""
    is_expected, name = span.wants_features and not message.error, "verdicts.features"
    if message.HasField("features") is not is_expected:
        value, limit = ("absent", "must be present") if is_expected else ("present", "must be absent")
        raise InvalidRequest(common.name_of(span.request_id, name), value, limit)
    if not is_expected:
        return None
    features = features_from_pb(message.features, info.max_model_len, common.name_of(span.request_id, name))
    wanted = (span.prefix_len, span.committed_len + message.accepted_len)
    if (features.start, features.end) != wanted:
        value = f"positions {features.start} to {features.end - 1}"
        limit = f"must be positions {wanted[0]} to {wanted[1] - 1}"
        raise InvalidRequest(common.name_of(span.request_id, name), value, limit)
    return features


def logprobs_from_pb(message: common_pb2.TokenLogprobs, vocab_size: int, field: str) -> TokenLogprobs:
    num_top = len(message.top_ids)
    if num_top > MAX_LOGPROBS or len(message.top_logprobs) != num_top:
        value = f"{num_top} ids, {len(message.top_logprobs)} numbers"
        raise InvalidRequest(field, value, f"must be equally many, at most {MAX_LOGPROBS}")
    top_ids = tuple(message.top_ids)
    if top_ids and not 0 <= min(top_ids) <= max(top_ids) < vocab_size:
        raise InvalidRequest(field, top_ids, f"token ids must be in [0, {vocab_size})")
    top_logprobs = tuple(message.top_logprobs)
    if not all(number <= _MAX_LOGPROB for number in (message.logprob, *top_logprobs)):  # also refuses NaN
        raise InvalidRequest(field, (message.logprob, *top_logprobs), "log-probabilities must be at most 0")
    return TokenLogprobs(message.logprob, top_ids, top_logprobs)
