"""Draft and Prefill messages: commands to the drafter, and its proposals."""

from __future__ import annotations

from minedraft.errors import InvalidRequest, ProtocolError, StaleRound
from minedraft.messages import DraftCommand, DraftReply, DraftSpan, Proposal, WorkerInfo
from minedraft.rpc import codec
from minedraft.rpc.codec_tensor import features_from_pb, features_to_pb, q_from_pb, q_to_pb
from minedraft.types import MAX_SPAN_DRAFTS, DraftMethod, ScoreKind
from minedraft.v1 import worker_pb2

_SOURCE_TO_PB = {
    DraftMethod.MODEL: worker_pb2.DRAFT_SOURCE_MODEL,
    DraftMethod.NGRAM: worker_pb2.DRAFT_SOURCE_NGRAM,
    DraftMethod.EAGLE: worker_pb2.DRAFT_SOURCE_EAGLE,
}
_SCORES_TO_PB = {
    ScoreKind.NONE: worker_pb2.SCORE_KIND_NONE,
    ScoreKind.PEAK: worker_pb2.SCORE_KIND_PEAK,
    ScoreKind.DRAWN: worker_pb2.SCORE_KIND_DRAWN,
}
_SCORES_FROM_PB = {value: kind for kind, value in _SCORES_TO_PB.items()}
_SOURCE_FROM_PB = {value: source for source, value in _SOURCE_TO_PB.items()}


def draft_command_to_pb(command: DraftCommand) -> worker_pb2.DraftRequest:
    return worker_pb2.DraftRequest(
        round=codec.round_to_pb(command.round),
        spans=[_span_to_pb(span) for span in command.spans],
        released=command.released,
        scores=_SCORES_TO_PB[command.scores],
    )


def draft_command_from_pb(message: worker_pb2.DraftRequest, info: WorkerInfo) -> DraftCommand:
    """Return the command, in the drafter.

    Raises:
        InvalidRequest: a value breaks a limit of `info` or of the protocol.
    """
    spans = codec.spans_from_pb(message.spans, _span_from_pb, info)
    if (scores := _SCORES_FROM_PB.get(message.scores)) is None:
        raise InvalidRequest("scores", message.scores, f"must be at most {max(ScoreKind)}")
    released = codec.released_from_pb(message.released)
    return DraftCommand(codec.round_from_pb(message.round), spans, released, scores=scores)


def draft_reply_to_pb(reply: DraftReply) -> worker_pb2.DraftReply:
    return worker_pb2.DraftReply(
        round=codec.round_to_pb(reply.round),
        proposals=[_proposal_to_pb(proposal) for proposal in reply.proposals],
        timing=codec.timing_to_pb(reply.timing),
        num_free_blocks=reply.num_free_blocks,
    )


def draft_reply_from_pb(message: worker_pb2.DraftReply, command: DraftCommand, info: WorkerInfo) -> DraftReply:
    """Return the reply, in the scheduler: one proposal for each span of `command` that asks for drafts, in order.

    Raises:
        StaleRound: the reply is for another round.
        ProtocolError: the reply does not answer the command, or a value breaks a limit.
    """
    try:
        round_id = codec.round_from_pb(message.round)
        if round_id != command.round:
            raise StaleRound(f"drafter answered {round_id}, not {command.round}")
        drafting = {span.request_id: span for span in command.spans if span.draft_len}
        codec.check_span_count("proposals", len(message.proposals))
        by_id = {proposal.request_id: proposal for proposal in message.proposals}
        if len(by_id) != len(message.proposals) or by_id.keys() != drafting.keys():
            raise InvalidRequest("proposals", sorted(by_id), f"must be for the requests {sorted(drafting)}")
        return DraftReply(
            round=round_id,
            proposals=tuple([_proposal_from_pb(by_id[id_], span, info) for id_, span in drafting.items()]),
            timing=codec.timing_from_pb(message.timing, info),
            num_free_blocks=codec.num_free_blocks_from_pb(message.num_free_blocks, info),
        )
    except InvalidRequest as error:
        raise ProtocolError(f"drafter's reply: {error}") from error


def _span_to_pb(span: DraftSpan) -> worker_pb2.DraftSpan:
    message = worker_pb2.DraftSpan(
        request_id=span.request_id, prefix_len=span.prefix_len, tokens=span.tokens, draft_len=span.draft_len
    )
    if span.spec is not None:
        message.spec.CopyFrom(codec.spec_to_pb(span.spec))
    message.features.extend([features_to_pb(piece) for piece in span.features])
    return message


def _span_from_pb(message: worker_pb2.DraftSpan, info: WorkerInfo) -> DraftSpan:
    request_id, prefix_len, draft_len = message.request_id, message.prefix_len, message.draft_len
    tokens = codec.tokens_from_pb(message.tokens, info.vocab_size, "tokens", request_id)
    codec.check_span(request_id, prefix_len, len(tokens), 0, info)
    if draft_len > MAX_SPAN_DRAFTS:
        raise InvalidRequest(codec.name_of(request_id, "draft_len"), draft_len, f"at most {MAX_SPAN_DRAFTS}")
    spec = None
    if message.HasField("spec"):
        spec = codec.introduction_from_pb(message.spec, request_id, prefix_len, info)
    if not message.features:
        return DraftSpan(request_id, prefix_len, tokens, draft_len, spec)
    name = codec.name_of(request_id, "features")
    if len(message.features) > len(tokens):
        raise InvalidRequest(name, f"{len(message.features)} pieces", f"at most one for each of {len(tokens)} tokens")
    features = tuple([features_from_pb(piece, info.max_model_len, name) for piece in message.features])
    return DraftSpan(request_id, prefix_len, tokens, draft_len, spec, features)


def _proposal_to_pb(proposal: Proposal) -> worker_pb2.Proposal:
    message = worker_pb2.Proposal(
        request_id=proposal.request_id,
        committed_len=proposal.committed_len,
        tokens=proposal.tokens,
        source=_SOURCE_TO_PB[proposal.source],
        scores=proposal.scores,
    )
    if proposal.q is not None:
        message.q.CopyFrom(q_to_pb(proposal.q))
    return message


def _proposal_from_pb(message: worker_pb2.Proposal, span: DraftSpan, info: WorkerInfo) -> Proposal:
    request_id, committed_len = span.request_id, span.committed_len
    if message.committed_len != committed_len:
        name = codec.name_of(request_id, "proposals.committed_len")
        raise InvalidRequest(name, message.committed_len, f"must be {committed_len}")
    tokens = codec.tokens_from_pb(message.tokens, info.vocab_size, "proposals.tokens", request_id)
    if len(tokens) > span.draft_len:
        name = codec.name_of(request_id, "proposals.tokens")
        raise InvalidRequest(name, f"{len(tokens)} tokens", f"at most {span.draft_len}")
    q = None
    if message.HasField("q"):
        q = q_from_pb(message.q, len(tokens), codec.name_of(request_id, "proposals.q"))
    source = _SOURCE_FROM_PB.get(message.source)
    if source is None:
        known = ", ".join(method.value for method in DraftMethod)
        raise InvalidRequest(codec.name_of(request_id, "proposals.source"), message.source, f"must be one of {known}")
    scores = tuple(message.scores)
    if scores and (len(scores) != len(tokens) or not all(0.0 <= score <= 1.0 for score in scores)):  # refuses NaN too
        name = codec.name_of(request_id, "proposals.scores")
        raise InvalidRequest(name, scores, f"must be {len(tokens)} numbers from 0 to 1, or none")
    return Proposal(request_id, committed_len, tokens, q, source, scores)
