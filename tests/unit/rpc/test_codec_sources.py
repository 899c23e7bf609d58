"""What a proposal says of its drafts besides their tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest

from minedraft.errors import ProtocolError
from minedraft.messages import DraftCommand, DraftReply, DraftSpan, Proposal, Timing
from minedraft.rpc.codec_draft import draft_reply_from_pb, draft_reply_to_pb
from minedraft.types import Batch, DraftMethod, RoundId
from tests.unit.rpc.test_codec_worker import INFO

ROUND = RoundId(7, Batch.B, 3)
COMMAND = DraftCommand(ROUND, (DraftSpan(1, 10, (5,), 3),))
REPLY = DraftReply(ROUND, (Proposal(1, 11, (6, 7, 8)),), Timing(), 5)


@pytest.mark.parametrize("source", [DraftMethod.MODEL, DraftMethod.NGRAM])
def test_the_source_of_the_drafts_arrives(source: DraftMethod) -> None:
    reply = replace(REPLY, proposals=(replace(REPLY.proposals[0], source=source),))
    assert draft_reply_from_pb(draft_reply_to_pb(reply), COMMAND, INFO) == reply


def test_an_unknown_source_is_refused() -> None:
    message = draft_reply_to_pb(REPLY)
    message.proposals[0].source = 99  # type: ignore[assignment]
    with pytest.raises(ProtocolError, match=r"drafter's reply: proposals.source of request 1 is 99: .*model, ngram"):
        draft_reply_from_pb(message, COMMAND, INFO)
