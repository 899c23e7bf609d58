"""Runs ahead on the wire: spans and branches survive it, and none comes off it that was not asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import Branch, DraftCommand, DraftReply, DraftSpan, Proposal, RunAhead, Timing, WorkerInfo
from minedraft.rpc.codec.draft import (
    draft_command_from_pb,
    draft_command_to_pb,
    draft_reply_from_pb,
    draft_reply_to_pb,
)
from minedraft.types import MAX_BRANCHES, PROTOCOL_VERSION, Batch, Role, RoundId

INFO = WorkerInfo(Role.DRAFTER, 7, PROTOCOL_VERSION, 100, "f", 32, 16, 256, "tiny", "cpu:0", "float32")
ROUND = RoundId(7, Batch.A, 3)
TOKENS = st.integers(0, INFO.vocab_size - 1)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[DraftCommand, DraftReply]:
    spans, proposals = [], []
    for request_id in draw(st.sets(st.integers(1, 1 << 40), min_size=1, max_size=4)):
        drafts = draw(st.lists(TOKENS, max_size=5))
        tokens = (*draw(st.lists(TOKENS, min_size=1, max_size=3)), *drafts)
        ahead = RunAhead(len(drafts), draw(st.integers(1, MAX_BRANCHES)))
        branch = draw(st.integers(0, MAX_BRANCHES))
        prefix_len, draft_len = draw(st.integers(0, 200)), draw(st.integers(1, 4))
        span = DraftSpan(request_id, prefix_len, tokens, draft_len, branch=branch, ahead=ahead)
        spans.append(span)
        ways = st.builds(Branch, st.integers(0, len(drafts)), TOKENS)
        for way in draw(st.sets(ways, max_size=ahead.num_branches)):
            more = tuple(draw(st.lists(TOKENS, max_size=span.draft_len)))
            committed_len = span.committed_len + way.accepted_len + 1
            proposals.append(Proposal(request_id, committed_len, more, branch=way))
    return DraftCommand(ROUND, tuple(spans)), DraftReply(ROUND, tuple(proposals), Timing(), 5)


@given(exchanges())
def test_spans_that_run_ahead_and_their_branches_survive_the_wire(exchange: tuple[DraftCommand, DraftReply]) -> None:
    command, reply = exchange
    assert draft_command_from_pb(draft_command_to_pb(command), INFO) == command
    assert draft_reply_from_pb(draft_reply_to_pb(reply), command, INFO) == reply


SPAN = DraftSpan(1, 10, (5, 6, 7), 2, ahead=RunAhead(2, 2))  # one committed token and two drafts
COMMAND = DraftCommand(ROUND, (SPAN,))


@pytest.mark.parametrize(
    "span",
    [
        replace(SPAN, ahead=RunAhead(3, 2)),
        replace(SPAN, ahead=RunAhead(2, 0)),
        replace(SPAN, ahead=RunAhead(2, MAX_BRANCHES + 1)),
        replace(SPAN, draft_len=0),
    ],
)
def test_a_span_that_runs_ahead_of_nothing_committed_or_for_nothing_is_refused(span: DraftSpan) -> None:
    with pytest.raises(InvalidRequest, match="ahead") as caught:
        draft_command_from_pb(draft_command_to_pb(DraftCommand(ROUND, (span,))), INFO)
    assert caught.value.request_id == 1


ALL = Proposal(1, 14, (8, 9), branch=Branch(2, 50))
NONE = Proposal(1, 12, (8,), branch=Branch(0, 50))


@pytest.mark.parametrize("proposals", [(), (ALL,), (ALL, NONE), (NONE, replace(ALL, tokens=()))])
def test_a_drafter_may_prepare_fewer_branches(proposals: tuple[Proposal, ...]) -> None:
    reply = DraftReply(ROUND, proposals, Timing(), 5)
    assert draft_reply_from_pb(draft_reply_to_pb(reply), COMMAND, INFO).proposals == proposals


@pytest.mark.parametrize(
    "proposals",
    [
        (replace(ALL, branch=None),),
        (ALL, ALL),
        (ALL, NONE, replace(NONE, branch=Branch(0, 51))),
        (replace(ALL, committed_len=13),),
        (replace(ALL, committed_len=15, branch=Branch(3, 50)),),
        (replace(ALL, branch=Branch(2, 100)),),
        (replace(ALL, tokens=(1, 2, 3)),),
        (replace(ALL, request_id=2),),
    ],
)
def test_branches_that_were_not_asked_for_or_cannot_be_are_refused(proposals: tuple[Proposal, ...]) -> None:
    reply = DraftReply(ROUND, proposals, Timing(), 5)
    with pytest.raises(ProtocolError, match="drafter's reply"):
        draft_reply_from_pb(draft_reply_to_pb(reply), COMMAND, INFO)


def test_a_branch_in_the_reply_to_a_plain_span_is_refused() -> None:
    command = DraftCommand(ROUND, (replace(SPAN, ahead=None),))
    reply = DraftReply(ROUND, (replace(ALL, committed_len=13),), Timing(), 5)
    with pytest.raises(ProtocolError, match="branch"):
        draft_reply_from_pb(draft_reply_to_pb(reply), command, INFO)
