"""What a proposal says of its drafts besides their tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import DraftCommand, DraftReply, DraftSpan, Proposal, Timing
from minedraft.rpc.codec.draft import draft_command_from_pb, draft_command_to_pb, draft_reply_from_pb, draft_reply_to_pb
from minedraft.types import Batch, DraftMethod, RoundId, ScoreKind
from tests.unit.rpc.test_codec_worker import INFO

ROUND = RoundId(7, Batch.B, 3)
COMMAND = DraftCommand(ROUND, (DraftSpan(1, 10, (5,), 3),))
REPLY = DraftReply(ROUND, (Proposal(1, 11, (6, 7, 8)),), Timing(), 5)


@pytest.mark.parametrize("source", [DraftMethod.MODEL, DraftMethod.NGRAM])
def test_the_source_of_the_drafts_arrives(source: DraftMethod) -> None:
    reply = replace(REPLY, proposals=(replace(REPLY.proposals[0], source=source),))
    assert draft_reply_from_pb(draft_reply_to_pb(reply), COMMAND, INFO) == reply


@pytest.mark.parametrize("kind", list(ScoreKind))
def test_the_kind_of_scores_arrives(kind: ScoreKind) -> None:
    command = replace(COMMAND, scores=kind)
    assert draft_command_from_pb(draft_command_to_pb(command), INFO) == command


def test_an_unknown_kind_of_scores_is_refused() -> None:
    message = draft_command_to_pb(COMMAND)
    message.scores = 3  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="scores is 3: must be at most 2"):
        draft_command_from_pb(message, INFO)


def test_scores_arrive_as_they_are_or_not_at_all() -> None:
    reply = replace(REPLY, proposals=(replace(REPLY.proposals[0], scores=(0.0, 0.5, 1.0)),))
    assert draft_reply_from_pb(draft_reply_to_pb(reply), COMMAND, INFO) == reply
    for scores in ((0.5,), (0.5, 0.5, 1.5), (0.5, 0.5, -0.5), (0.5, float("nan"), 0.5)):
        wrong = replace(REPLY, proposals=(replace(REPLY.proposals[0], scores=scores),))
        with pytest.raises(ProtocolError, match=r"proposals.scores of request 1 is .*: must be 3 numbers from 0 to 1"):
            draft_reply_from_pb(draft_reply_to_pb(wrong), COMMAND, INFO)


def test_an_unknown_source_is_refused() -> None:
    message = draft_reply_to_pb(REPLY)
    message.proposals[0].source = 99  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match=r"drafter's reply: proposals.source of request 1 is 99: .*model, ngram"):
        draft_reply_from_pb(message, COMMAND, INFO)
