"""Features survive the wire both ways, and none come that were not asked for or do not fit their span."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import (
    ITEM_BYTES,
    DraftCommand,
    DraftSpan,
    Features,
    Tensor,
    Timing,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
)
from minedraft.rpc.codec import common
from minedraft.rpc.codec.draft import draft_command_from_pb, draft_command_to_pb
from minedraft.rpc.codec.verify import (
    verify_command_from_pb,
    verify_command_to_pb,
    verify_reply_from_pb,
    verify_reply_to_pb,
)
from minedraft.types import MAX_FEATURE_LAYERS, MAX_FEATURE_SIZE, Batch, RoundId
from minedraft.v1 import worker_pb2
from tests.unit.rpc.test_codec_worker import INFO

ROUND = RoundId(7, Batch.B, 3)
SPAN = VerifySpan(1, 10, (5,), drafts=(6, 7), wants_features=True)
COMMAND = VerifyCommand(ROUND, (SPAN, VerifySpan(2, 3, (5,))), feature_layers=(-1, 4))


def rows(start: int, num_tokens: int, dtype: str = "bfloat16", size: int = 3) -> Features:
    return Features(start, Tensor(dtype, (num_tokens, size), bytes(num_tokens * size * ITEM_BYTES[dtype])))


def reply(features: Features | None, *, of_other: Features | None = None, error: str = "") -> VerifyReply:
    tokens, accepted_len = ((), 0) if error else ((6, 9), 1)
    verdicts = (
        Verdict(1, 11, accepted_len, tokens, error=error, features=features),
        Verdict(2, 4, 0, (9,), features=of_other),
    )
    return VerifyReply(ROUND, verdicts, Timing(), 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_verdict_brings_the_features_of_its_tokens_and_accepted_drafts(dtype: str) -> None:
    wire = verify_command_to_pb(COMMAND).SerializeToString()
    assert verify_command_from_pb(worker_pb2.VerifyRequest.FromString(wire), INFO) == COMMAND
    sent = reply(rows(10, 2, dtype))
    assert verify_reply_from_pb(verify_reply_to_pb(sent), COMMAND, INFO) == sent
    failed = reply(None, error="NUMERIC")
    assert verify_reply_from_pb(verify_reply_to_pb(failed), COMMAND, INFO) == failed


@pytest.mark.parametrize(
    "wrong",
    [
        reply(None),
        reply(rows(10, 2), of_other=rows(3, 1)),
        reply(rows(10, 1)),
        reply(rows(10, 3)),
        reply(rows(9, 2)),
        reply(rows(11, 1)),
        reply(rows(300, 2)),
        reply(rows(10, 2, "int32")),
        reply(rows(10, 2, size=MAX_FEATURE_SIZE + 1)),
        reply(Features(10, Tensor("float32", (2, 3), bytes(23)))),
        reply(Features(10, Tensor("float32", (2,), bytes(8)))),
        reply(rows(10, 2), error="NUMERIC"),
    ],
)
def test_features_that_do_not_belong_to_the_verdict_break_the_contract(wrong: VerifyReply) -> None:
    with pytest.raises(ProtocolError, match=r"verifier's reply: verdicts.features.* of request [12].*: .+"):
        verify_reply_from_pb(verify_reply_to_pb(wrong), COMMAND, INFO)


@given(lens=st.lists(st.integers(1, 9), max_size=8), prefix_len=st.integers(0, 9))
def test_a_draft_span_brings_pieces_of_features(lens: list[int], prefix_len: int) -> None:
    pieces = tuple(rows(prefix_len + sum(lens[:i]), lens[i]) for i in range(len(lens)))
    command = DraftCommand(ROUND, (DraftSpan(1, prefix_len, (5,) * 8, 3, features=pieces),))
    wire = draft_command_to_pb(command).SerializeToString()
    assert draft_command_from_pb(worker_pb2.DraftRequest.FromString(wire), INFO) == command


@pytest.mark.parametrize("pieces", [(rows(9, 1),) * 2, (rows(256, 1),), (rows(9, 1, "int32"),), (rows(255, 2),)])
def test_pieces_beyond_the_context_or_in_vain_are_refused_by_name(pieces: tuple[Features, ...]) -> None:
    command = DraftCommand(ROUND, (DraftSpan(1, 10, (5,), 3, features=pieces),))
    with pytest.raises(InvalidRequest, match=r"features.* of request 1") as caught:
        draft_command_from_pb(draft_command_to_pb(command), INFO)
    assert caught.value.request_id == 1


@pytest.mark.parametrize("layers", [(), (-2,), (MAX_FEATURE_LAYERS,), (1,) * (MAX_FEATURE_LAYERS + 1)])
def test_a_command_that_wants_features_says_of_which_layers(layers: tuple[int, ...]) -> None:
    with pytest.raises(InvalidRequest, match="feature_layers"):
        verify_command_from_pb(verify_command_to_pb(replace(COMMAND, feature_layers=layers)), INFO)


def test_a_span_that_follows_wants_no_features() -> None:
    """What it follows has no drafts, so there is no drafter that could read them."""
    span = VerifySpan(1, 10, (), follows=True, wants_features=True)
    with pytest.raises(InvalidRequest, match="follows"):
        verify_command_from_pb(verify_command_to_pb(replace(COMMAND, spans=(span,))), INFO)


def test_a_handshake_says_which_features_there_are() -> None:
    info = replace(INFO, feature_layers=(-1, 0, 1, 2), feature_size=64)
    assert common.info_from_pb(common.info_to_pb(info, 5), 4, 6) == info
    for wrong in (replace(info, feature_size=0), replace(info, feature_size=MAX_FEATURE_SIZE + 1)):
        with pytest.raises(InvalidRequest, match="feature_size"):
            common.info_from_pb(common.info_to_pb(wrong, 5), 4, 6)
    with pytest.raises(InvalidRequest, match="feature_layers"):
        common.info_from_pb(common.info_to_pb(replace(info, feature_layers=(-2,)), 5), 4, 6)
