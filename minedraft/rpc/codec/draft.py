"""Draft and Prefill messages: commands to the drafter, and its proposals."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import Branch, DraftCommand, DraftReply, DraftSpan, Features, Proposal, RunAhead, WorkerInfo
from minedraft.rpc.codec import common
from minedraft.rpc.codec.tensor import features_from_pb, features_to_pb, q_from_pb, q_to_pb
from minedraft.types import MAX_BRANCHES, MAX_SPAN_DRAFTS, DraftMethod, ScoreKind
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
        round=common.round_to_pb(command.round),
        spans=[_span_to_pb(span) for span in command.spans],
        released=command.released,
        scores=_SCORES_TO_PB[command.scores],
    )


def draft_command_from_pb(message: worker_pb2.DraftRequest, info: WorkerInfo) -> DraftCommand:
    """Return the command, in the drafter.

    Raises:
        InvalidRequest: a value breaks a limit of `info` or of the protocol.
    """
    spans = common.spans_from_pb(message.spans, _span_from_pb, info)
    if (scores := _SCORES_FROM_PB.get(message.scores)) is None:
        raise InvalidRequest("scores", message.scores, f"must be at most {max(ScoreKind)}")
    released = common.released_from_pb(message.released)
    return DraftCommand(common.round_from_pb(message.round), spans, released, scores=scores)


def draft_reply_to_pb(reply: DraftReply) -> worker_pb2.DraftReply:
    return worker_pb2.DraftReply(
        round=common.round_to_pb(reply.round),
        proposals=[_proposal_to_pb(proposal) for proposal in reply.proposals],
        timing=common.timing_to_pb(reply.timing),
        num_free_blocks=reply.num_free_blocks,
        num_not_finite=reply.num_not_finite,
    )


def draft_reply_from_pb(message: worker_pb2.DraftReply, command: DraftCommand, info: WorkerInfo) -> DraftReply:
    """Return the reply, in the scheduler: the proposals of each span of `command` that asks for drafts, in order; one
    of each, and of a span that runs ahead one for each branch, as they came.

    Raises:
        StaleRound: the reply is for another round.
        ProtocolError: the reply does not answer the command, or a value breaks a limit.
    """
    try:
        common.check_answered("drafter", message.round, command.round)
        drafting = {span.request_id: span for span in command.spans if span.draft_len}
        common.check_span_count("proposals", len(message.proposals), MAX_BRANCHES)
        by_id: dict[int, list[worker_pb2.Proposal]] = {request_id: [] for request_id in drafting}
        for proposal in message.proposals:
            if proposal.request_id not in by_id:
                raise InvalidRequest("proposals", proposal.request_id, f"must be for the requests {sorted(drafting)}")
            by_id[proposal.request_id].append(proposal)
        return DraftReply(
            round=command.round,
            proposals=tuple([p for id_, span in drafting.items() for p in _proposals_from_pb(by_id[id_], span, info)]),
            timing=common.timing_from_pb(message.timing, info),
            num_free_blocks=common.num_free_blocks_from_pb(message.num_free_blocks, info),
            num_not_finite=message.num_not_finite,
        )
    except InvalidRequest as error:
        raise ProtocolError(f"drafter's reply: {error}") from error


def _span_to_pb(span: DraftSpan) -> worker_pb2.DraftSpan:
    message = worker_pb2.DraftSpan(
        request_id=span.request_id, prefix_len=span.prefix_len, tokens=span.tokens, draft_len=span.draft_len
    )
    if span.spec is not None:
        message.spec.CopyFrom(common.spec_to_pb(span.spec))
    message.features.extend([features_to_pb(piece) for piece in span.features])
    if span.branch:
        message.branch = span.branch
    if span.ahead is not None:
        message.ahead.num_drafts = span.ahead.num_drafts
        message.ahead.num_branches = span.ahead.num_branches
    return message


def _span_from_pb(message: worker_pb2.DraftSpan, info: WorkerInfo) -> DraftSpan:
    request_id, prefix_len, draft_len = message.request_id, message.prefix_len, message.draft_len
    tokens = common.tokens_from_pb(message.tokens, info.vocab_size, "tokens", request_id)
    common.check_span(request_id, prefix_len, len(tokens), 0, info)
    if draft_len > MAX_SPAN_DRAFTS:
        raise InvalidRequest(common.name_of(request_id, "draft_len"), draft_len, f"at most {MAX_SPAN_DRAFTS}")
    spec = None
    if message.HasField("spec"):
        spec = common.introduction_from_pb(message.spec, request_id, prefix_len, info)
    ahead = _ahead_from_pb(message) if message.HasField("ahead") else None
    features = _features_from_pb(message, info) if message.features else ()
    return DraftSpan(request_id, prefix_len, tokens, draft_len, spec, features, message.branch, ahead)


def _features_from_pb(message: worker_pb2.DraftSpan, info: WorkerInfo) -> tuple[Features, ...]:
    name, num_tokens = common.name_of(message.request_id, "features"), len(message.tokens)
    if len(message.features) > num_tokens:
        raise InvalidRequest(name, f"{len(message.features)} pieces", f"at most one for each of {num_tokens} tokens")
    return tuple([features_from_pb(piece, info.max_model_len, name) for piece in message.features])


def _ahead_from_pb(message: worker_pb2.DraftSpan) -> RunAhead:
    ahead, num_tokens = message.ahead, len(message.tokens)
    if ahead.num_drafts >= num_tokens:
        name = common.name_of(message.request_id, "ahead.num_drafts")
        raise InvalidRequest(name, ahead.num_drafts, f"must be less than the {num_tokens} tokens of the span")
    if not 1 <= ahead.num_branches <= MAX_BRANCHES or not message.draft_len:
        name = common.name_of(message.request_id, "ahead.num_branches")
        value = f"{ahead.num_branches} of {message.draft_len} drafts"
        raise InvalidRequest(name, value, f"must be 1 to {MAX_BRANCHES} branches, of one draft or more")
    return RunAhead(ahead.num_drafts, ahead.num_branches)


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
    if proposal.branch is not None:
        message.branch.accepted_len = proposal.branch.accepted_len
        message.branch.token = proposal.branch.token
    return message


def _proposals_from_pb(
    messages: Sequence[worker_pb2.Proposal], span: DraftSpan, info: WorkerInfo
) -> Sequence[Proposal]:
    """Return the proposals of one span. Raise InvalidRequest unless they are as many as it asks for."""
    least, most = (1, 1) if span.ahead is None else (0, span.ahead.num_branches)
    if not least <= len(messages) <= most:
        limit = f"must be {least} to {most} for request {span.request_id}"
        raise InvalidRequest("proposals", f"{len(messages)} proposals", limit)
    proposals = [_proposal_from_pb(message, span, info) for message in messages]
    if len({proposal.branch for proposal in proposals}) < len(proposals):
        raise InvalidRequest(
            common.name_of(span.request_id, "proposals.branch"), "twice the same", "each may come once"
        )
    return proposals


def _proposal_from_pb(message: worker_pb2.Proposal, span: DraftSpan, info: WorkerInfo) -> Proposal:
    request_id, branch = span.request_id, _branch_from_pb(message, span, info)
    committed_len = span.committed_len + (0 if branch is None else branch.accepted_len + 1)
    if message.committed_len != committed_len:
        name = common.name_of(request_id, "proposals.committed_len")
        raise InvalidRequest(name, message.committed_len, f"must be {committed_len}")
    tokens = common.tokens_from_pb(message.tokens, info.vocab_size, "proposals.tokens", request_id)
    if len(tokens) > span.draft_len:
        name = common.name_of(request_id, "proposals.tokens")
        raise InvalidRequest(name, f"{len(tokens)} tokens", f"at most {span.draft_len}")
    q = None
    if message.HasField("q"):
        q = q_from_pb(message.q, len(tokens), common.name_of(request_id, "proposals.q"))
    source = _SOURCE_FROM_PB.get(message.source)
    if source is None:
        known = ", ".join(method.value for method in DraftMethod)
        raise InvalidRequest(common.name_of(request_id, "proposals.source"), message.source, f"must be one of {known}")
    scores = tuple(message.scores)
    if scores and (len(scores) != len(tokens) or not all(0.0 <= score <= 1.0 for score in scores)):  # refuses NaN too
        name = common.name_of(request_id, "proposals.scores")
        raise InvalidRequest(name, scores, f"must be {len(tokens)} numbers from 0 to 1, or none")
    return Proposal(request_id, committed_len, tokens, q, source, scores, branch)


def _branch_from_pb(message: worker_pb2.Proposal, span: DraftSpan, info: WorkerInfo) -> Branch | None:
    if message.HasField("branch") is not (span.ahead is not None):
        name = common.name_of(span.request_id, "proposals.branch")
        raise InvalidRequest(name, message.HasField("branch"), "must be there in the reply to a span that runs ahead")
    if span.ahead is None:
        return None
    (token,) = common.tokens_from_pb([message.branch.token], info.vocab_size, "proposals.branch.token", span.request_id)
    if (accepted_len := message.branch.accepted_len) > span.ahead.num_drafts:
        name = common.name_of(span.request_id, "proposals.branch.accepted_len")
        raise InvalidRequest(name, accepted_len, f"{span.ahead.num_drafts} drafts are being verified")
    return Branch(accepted_len, token)
