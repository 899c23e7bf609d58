"""The worker protocol's messages survive the wire, and no number out of range comes off it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.errors import InvalidRequest, ProtocolError, StaleRound
from minedraft.messages import (
    DraftCommand,
    DraftReply,
    DraftSpan,
    Proposal,
    Tensor,
    Timing,
    TokenLogprobs,
    TruncatedQ,
    Verdict,
    VerifyCommand,
    VerifyReply,
    VerifySpan,
    WorkerInfo,
)
from minedraft.rpc.codec.draft import (
    draft_command_from_pb,
    draft_command_to_pb,
    draft_reply_from_pb,
    draft_reply_to_pb,
)
from minedraft.rpc.codec.verify import (
    verify_command_from_pb,
    verify_command_to_pb,
    verify_reply_from_pb,
    verify_reply_to_pb,
)
from minedraft.sampling_params import SamplingParams
from minedraft.types import MAX_SPAN_DRAFTS, MAX_STEPS, Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft.v1 import worker_pb2

INFO = WorkerInfo(
    role=Role.VERIFIER,
    epoch=7,
    protocol_version=1,
    vocab_size=100,
    vocab_fingerprint="f" * 64,
    num_blocks=32,
    block_size=16,
    max_model_len=256,
    model_name="tiny",
    device="cpu:0",
    dtype="float32",
)
ROUND = RoundId(7, Batch.B, 3)
TOKEN = st.integers(0, INFO.vocab_size - 1)
SPEC = SequenceSpec(SamplingParams(temperature=0.5, stop=("x",)), 4, (1 << 63) - 1, Acceptance.REJECTION, (2, 3))


def tokens(max_size: int, min_size: int = 0) -> st.SearchStrategy[tuple[int, ...]]:
    return st.lists(TOKEN, min_size=min_size, max_size=max_size).map(tuple)


def make_q(num_drafts: int, m: int = 2) -> TruncatedQ:
    ids = struct.pack(f"<{num_drafts * m}i", *range(num_drafts * m))
    probs = struct.pack(f"<{num_drafts * m}f", *([1 / m] * (num_drafts * m)))
    return TruncatedQ(Tensor("int32", (num_drafts, m), ids), Tensor("float32", (num_drafts, m), probs))


ROUNDS = st.builds(RoundId, st.integers(0, (1 << 64) - 1), st.sampled_from(Batch), st.integers(0, (1 << 64) - 1))
TIMINGS = st.builds(
    Timing, *[st.integers(0, (1 << 64) - 1)] * 4, start_ns=st.integers(0, 1 << 53).map(lambda us: us * 1000)
)


@st.composite
def draft_commands(draw: st.DrawFn) -> DraftCommand:
    spans = []
    for request_id in draw(st.sets(st.integers(0, (1 << 64) - 1), max_size=5)):
        is_new = draw(st.booleans())
        spans.append(
            DraftSpan(
                request_id=request_id,
                prefix_len=0 if is_new else draw(st.integers(0, 200)),
                tokens=draw(tokens(20, min_size=1)),
                draft_len=draw(st.integers(0, MAX_SPAN_DRAFTS)),
                spec=SPEC if is_new else None,
            )
        )
    return DraftCommand(draw(ROUNDS), tuple(spans), tuple(draw(st.lists(st.integers(0, 1 << 40), max_size=5))))


@st.composite
def draft_replies(draw: st.DrawFn) -> tuple[DraftCommand, DraftReply]:
    command = draw(draft_commands())
    proposals = []
    for span in command.spans:
        if span.draft_len:
            drafts = draw(tokens(span.draft_len))
            q = make_q(len(drafts)) if drafts and draw(st.booleans()) else None
            proposals.append(Proposal(span.request_id, span.prefix_len + len(span.tokens), drafts, q))
    num_free, num_not_finite = draw(st.integers(0, INFO.num_blocks)), draw(st.integers(0, 1 << 10))
    return command, DraftReply(command.round, tuple(proposals), draw(TIMINGS), num_free, num_not_finite)


@st.composite
def verify_commands(draw: st.DrawFn) -> VerifyCommand:
    spans = []
    for request_id in draw(st.sets(st.integers(0, (1 << 64) - 1), max_size=5)):
        if draw(st.booleans()):
            num_steps = draw(st.integers(1, MAX_STEPS))
            spans.append(VerifySpan(request_id, draw(st.integers(0, 200)), (), follows=True, num_steps=num_steps))
            continue
        is_new, sample = draw(st.booleans()), draw(st.booleans())
        drafts = draw(tokens(5)) if sample else ()
        spans.append(
            VerifySpan(
                request_id=request_id,
                prefix_len=0 if is_new else draw(st.integers(0, 200)),
                tokens=draw(tokens(20, min_size=1)),
                drafts=drafts,
                q=make_q(len(drafts)) if drafts and draw(st.booleans()) else None,
                sample=sample,
                spec=SPEC if is_new else None,
                num_steps=draw(st.integers(1, MAX_STEPS)) if sample and not drafts else 1,
            )
        )
    return VerifyCommand(draw(ROUNDS), tuple(spans), tuple(draw(st.lists(st.integers(0, 1 << 40), max_size=5))))


LOGPROBS = TokenLogprobs(-0.5, (4, 5), (-0.5, float("-inf")))


@st.composite
def verify_replies(draw: st.DrawFn) -> tuple[VerifyCommand, VerifyReply]:
    command = draw(verify_commands())
    verdicts = []
    for span in command.spans:
        committed_len = span.committed_len
        if span.follows and draw(st.booleans()):
            verdicts.append(Verdict(span.request_id, committed_len, 0, (), error="STALE_ROUND"))
        elif not span.sample:
            verdicts.append(Verdict(span.request_id, committed_len, 0, ()))
        elif draw(st.booleans()):
            verdicts.append(Verdict(span.request_id, committed_len, 0, (), error="NUMERIC"))
        else:
            accepted_len = draw(st.integers(0, len(span.drafts)))
            chosen = (*span.drafts[:accepted_len], *draw(tokens(span.num_steps, min_size=1)))
            logprobs = (LOGPROBS,) * len(chosen) if draw(st.booleans()) else ()
            verdicts.append(Verdict(span.request_id, committed_len, accepted_len, chosen, logprobs))
    return command, VerifyReply(command.round, tuple(verdicts), draw(TIMINGS), draw(st.integers(0, INFO.num_blocks)))


@given(draft_commands())
def test_a_draft_command_survives_the_wire(command: DraftCommand) -> None:
    wire = draft_command_to_pb(command).SerializeToString()
    assert draft_command_from_pb(worker_pb2.DraftRequest.FromString(wire), INFO) == command


@given(draft_replies())
def test_a_draft_reply_survives_the_wire(pair: tuple[DraftCommand, DraftReply]) -> None:
    command, reply = pair
    wire = draft_reply_to_pb(reply).SerializeToString()
    assert draft_reply_from_pb(worker_pb2.DraftReply.FromString(wire), command, INFO) == reply


@given(verify_commands())
def test_a_verify_command_survives_the_wire(command: VerifyCommand) -> None:
    wire = verify_command_to_pb(command).SerializeToString()
    assert verify_command_from_pb(worker_pb2.VerifyRequest.FromString(wire), INFO) == command


@given(verify_replies())
def test_a_verify_reply_survives_the_wire(pair: tuple[VerifyCommand, VerifyReply]) -> None:
    command, reply = pair
    wire = verify_reply_to_pb(reply).SerializeToString()
    assert verify_reply_from_pb(worker_pb2.VerifyReply.FromString(wire), command, INFO) == reply


def test_replies_are_matched_by_request_and_not_by_position() -> None:
    spans = tuple(VerifySpan(id_, 5, (1,), drafts=(2, 3)) for id_ in (8, 9))
    verdicts = (Verdict(9, 6, 0, (9,)), Verdict(8, 6, 1, (2, 8)))
    reply = VerifyReply(ROUND, verdicts, Timing(), 3)
    decoded = verify_reply_from_pb(verify_reply_to_pb(reply), VerifyCommand(ROUND, spans), INFO)
    assert [(verdict.request_id, verdict.tokens) for verdict in decoded.verdicts] == [(8, (2, 8)), (9, (9,))]


def test_greedy_messages_of_16_requests_stay_under_10_kilobytes() -> None:
    drafts = (48_000, 48_001, 48_002, 48_003, 48_004)
    info = replace(INFO, vocab_size=49_152, max_model_len=8192, num_blocks=4000)
    ids = range(10_000, 10_016)
    round_id = RoundId((1 << 64) - 1, Batch.B, 100_000)
    timing = Timing(10**9, 10**9, 10**9, 10**9)
    draft = DraftCommand(round_id, tuple(DraftSpan(id_, 8000, drafts[:2], 5) for id_ in ids))
    proposed = DraftReply(round_id, tuple(Proposal(id_, 8002, drafts) for id_ in ids), timing, 4000)
    verify = VerifyCommand(round_id, tuple(VerifySpan(id_, 8001, drafts[:1], drafts) for id_ in ids))
    verdicts = VerifyReply(round_id, tuple(Verdict(id_, 8002, 5, (*drafts, 7)) for id_ in ids), timing, 4000)
    assert verify_reply_from_pb(verify_reply_to_pb(verdicts), verify, info) == verdicts
    messages = (
        draft_command_to_pb(draft),
        draft_reply_to_pb(proposed),
        verify_command_to_pb(verify),
        verify_reply_to_pb(verdicts),
    )
    assert sum(message.ByteSize() for message in messages) < 10_000


VERIFY = VerifyCommand(ROUND, (VerifySpan(1, 10, (5,), drafts=(6, 7)), VerifySpan(2, 0, (5, 6), sample=False)))
VERDICTS = VerifyReply(ROUND, (Verdict(1, 11, 1, (6, 9)), Verdict(2, 2, 0, ())), Timing(), 5)
DRAFT = DraftCommand(ROUND, (DraftSpan(1, 10, (5,), 3), DraftSpan(2, 0, (5, 6), 0)))
PROPOSALS = DraftReply(ROUND, (Proposal(1, 11, (6, 7, 8)),), Timing(), 5)


def _verdict(index: int, **changes: object) -> VerifyReply:
    verdicts = list(VERDICTS.verdicts)
    verdicts[index] = replace(verdicts[index], **changes)  # type: ignore[arg-type]
    return replace(VERDICTS, verdicts=tuple(verdicts))


@pytest.mark.parametrize(
    "reply",
    [
        replace(VERDICTS, verdicts=VERDICTS.verdicts[:1]),
        replace(VERDICTS, verdicts=(*VERDICTS.verdicts, Verdict(3, 1, 0, (1,)))),
        replace(VERDICTS, verdicts=(VERDICTS.verdicts[0], VERDICTS.verdicts[0])),
        replace(VERDICTS, num_free_blocks=33),
        _verdict(0, request_id=5),
        _verdict(0, committed_len=10),
        _verdict(0, accepted_len=3, tokens=(6, 7, 8, 9)),
        _verdict(0, accepted_len=2),
        _verdict(0, accepted_len=0),
        _verdict(0, tokens=(7, 9)),
        _verdict(0, tokens=(6, 100)),
        _verdict(0, tokens=()),
        _verdict(0, error="NUMERIC"),
        _verdict(0, error="HACKED"),
        _verdict(0, error="STALE_ROUND", tokens=(), accepted_len=0),
        _verdict(0, logprobs=(LOGPROBS,)),
        _verdict(0, logprobs=(TokenLogprobs(0.5),) * 2),
        _verdict(0, logprobs=(TokenLogprobs(float("nan")),) * 2),
        _verdict(0, logprobs=(TokenLogprobs(-1.0, (-1,), (-1.0,)),) * 2),
        _verdict(0, logprobs=(TokenLogprobs(-1.0, (100,), (-1.0,)),) * 2),
        _verdict(0, logprobs=(TokenLogprobs(-1.0, (1, 2), (-1.0,)),) * 2),
        _verdict(0, logprobs=(TokenLogprobs(-1.0, (1,) * 21, (-1.0,) * 21),) * 2),
        _verdict(1, tokens=(1,)),
        _verdict(1, accepted_len=1),
    ],
)
def test_a_verifier_s_reply_that_breaks_the_contract_is_refused(reply: VerifyReply) -> None:
    assert verify_reply_from_pb(verify_reply_to_pb(VERDICTS), VERIFY, INFO) == VERDICTS
    with pytest.raises(ProtocolError, match=r"verifier's reply: .+ is .+: .+"):
        verify_reply_from_pb(verify_reply_to_pb(reply), VERIFY, INFO)


def _proposal(**changes: object) -> DraftReply:
    return replace(PROPOSALS, proposals=(replace(PROPOSALS.proposals[0], **changes),))  # type: ignore[arg-type]


def _q(num_drafts: int = 3, m: int = 2, **changes: object) -> TruncatedQ:
    q = make_q(num_drafts, m)
    return replace(q, probs=replace(q.probs, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "reply",
    [
        replace(PROPOSALS, proposals=()),
        replace(PROPOSALS, proposals=(*PROPOSALS.proposals, Proposal(2, 2, ()))),
        replace(PROPOSALS, proposals=PROPOSALS.proposals * 2),
        _proposal(request_id=2),
        _proposal(committed_len=10),
        _proposal(tokens=(1, 2, 3, 4)),
        _proposal(tokens=(1, 100)),
        _proposal(q=make_q(2)),
        _proposal(tokens=(), q=make_q(1)),
        _proposal(q=make_q(3, m=1025)),
        _proposal(q=_q(shape=(3, 1))),
        _proposal(q=_q(shape=(3, 2, 1))),
        _proposal(q=_q(shape=())),
        _proposal(q=_q(data=b"")),
        _proposal(q=_q(dtype="int32")),
    ],
)
def test_a_drafter_s_reply_that_breaks_the_contract_is_refused(reply: DraftReply) -> None:
    assert draft_reply_from_pb(draft_reply_to_pb(PROPOSALS), DRAFT, INFO) == PROPOSALS
    with pytest.raises(ProtocolError, match=r"drafter's reply: .+ is .+: .+"):
        draft_reply_from_pb(draft_reply_to_pb(reply), DRAFT, INFO)


@pytest.mark.parametrize("stale", [replace(ROUND, epoch=6), replace(ROUND, number=2), replace(ROUND, batch=Batch.A)])
def test_a_reply_of_another_round_is_stale(stale: RoundId) -> None:
    with pytest.raises(StaleRound):
        verify_reply_from_pb(verify_reply_to_pb(replace(VERDICTS, round=stale)), VERIFY, INFO)
    with pytest.raises(StaleRound):
        draft_reply_from_pb(draft_reply_to_pb(replace(PROPOSALS, round=stale)), DRAFT, INFO)


SPAN = VerifySpan(1, 10, (5,), drafts=(6, 7))


@pytest.mark.parametrize(
    ("spans", "field"),
    [
        ((replace(SPAN, tokens=()),), "tokens"),
        ((replace(SPAN, tokens=(100,)),), "tokens"),
        ((replace(SPAN, drafts=(100,)),), "drafts"),
        ((replace(SPAN, drafts=(1,) * 65),), "drafts"),
        ((replace(SPAN, sample=False),), "drafts"),
        ((replace(SPAN, prefix_len=254),), "fit in the context"),
        ((replace(SPAN, prefix_len=(1 << 32) - 1),), "fit in the context"),
        ((replace(SPAN, spec=SPEC),), "prefix_len"),
        ((replace(SPAN, drafts=(), follows=True),), "follows"),
        ((replace(SPAN, tokens=(), follows=True),), "follows"),
        ((VerifySpan(1, 256, (), follows=True),), "fit in the context"),
        ((VerifySpan(1, 10, (), sample=False, follows=True),), "follows"),
        ((replace(SPAN, num_steps=2),), "num_steps"),
        ((replace(SPAN, drafts=(), sample=False, num_steps=2),), "num_steps"),
        ((replace(SPAN, drafts=(), num_steps=MAX_STEPS + 1),), "num_steps"),
        ((replace(SPAN, drafts=(), prefix_len=253, num_steps=4),), "fit in the context"),
        ((VerifySpan(1, 253, (), follows=True, num_steps=4),), "fit in the context"),
        ((replace(SPAN, q=make_q(1)),), "q"),
        ((SPAN, SPAN), "request id twice"),
        ((replace(SPAN, prefix_len=0, spec=replace(SPEC, prompt_len=0)),), "spec.prompt_len"),
        ((replace(SPAN, prefix_len=0, spec=replace(SPEC, seed=1 << 63)),), "spec.seed"),
        ((replace(SPAN, prefix_len=0, spec=replace(SPEC, stop_ids=(100,))),), "spec.stop_ids"),
        (
            (replace(SPAN, prefix_len=0, spec=replace(SPEC, sampling=SamplingParams(logit_bias={100: 1.0}))),),
            "logit_bias",
        ),
        (tuple(replace(SPAN, request_id=id_) for id_ in range(1025)), "spans"),
    ],
)
def test_a_bad_verify_command_is_refused_by_name(spans: tuple[VerifySpan, ...], field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        verify_command_from_pb(verify_command_to_pb(VerifyCommand(ROUND, spans)), INFO)


DRAFT_SPAN = DraftSpan(1, 10, (5,), 3)


@pytest.mark.parametrize(
    ("span", "field"),
    [
        (replace(DRAFT_SPAN, tokens=()), "tokens"),
        (replace(DRAFT_SPAN, tokens=(100,)), "tokens"),
        (replace(DRAFT_SPAN, draft_len=65), "draft_len"),
        (replace(DRAFT_SPAN, prefix_len=256), "fit in the context"),
        (replace(DRAFT_SPAN, spec=SPEC), "prefix_len"),
    ],
)
def test_a_bad_draft_command_is_refused_by_name(span: DraftSpan, field: str) -> None:
    with pytest.raises(InvalidRequest, match=field):
        draft_command_from_pb(draft_command_to_pb(DraftCommand(ROUND, (span,))), INFO)


def test_an_unnamed_batch_or_acceptance_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"round\.batch"):
        verify_command_from_pb(worker_pb2.VerifyRequest(), INFO)
    message = verify_command_to_pb(VerifyCommand(ROUND, (replace(SPAN, prefix_len=0, spec=SPEC),)))
    message.spans[0].spec.acceptance = worker_pb2.ACCEPTANCE_UNSPECIFIED
    with pytest.raises(InvalidRequest, match=r"spec\.acceptance"):
        verify_command_from_pb(message, INFO)


@settings(max_examples=200)
@given(st.binary(max_size=120), st.sampled_from(["verify", "draft", "verdicts", "proposals"]))
def test_arbitrary_bytes_decode_to_a_valid_value_or_a_typed_error(data: bytes, kind: str) -> None:
    decode: dict[str, Callable[[], object]] = {
        "verify": lambda: verify_command_from_pb(_parse(worker_pb2.VerifyRequest, data), INFO),
        "draft": lambda: draft_command_from_pb(_parse(worker_pb2.DraftRequest, data), INFO),
        "verdicts": lambda: verify_reply_from_pb(_parse(worker_pb2.VerifyReply, data), VERIFY, INFO),
        "proposals": lambda: draft_reply_from_pb(_parse(worker_pb2.DraftReply, data), DRAFT, INFO),
    }
    try:
        decode[kind]()
    except (InvalidRequest, ProtocolError) as error:
        assert str(error)  # noqa: PT017 - either outcome is fine, an unnamed failure is not


def _parse(kind: type, data: bytes) -> object:
    """Like protobuf, but where the bytes are no message at all, the empty one."""
    from google.protobuf.message import DecodeError

    try:
        return kind.FromString(data)
    except DecodeError:
        return kind()
