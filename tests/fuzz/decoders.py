"""Every decoder of this package, with a valid message of its type; used by the tests and by `scripts/fuzz`."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from google.protobuf.message import Message

from minedraft.carriers import Carrier, ChannelCommand, ChannelEnd, ChannelStep
from minedraft.messages import (
    Branch,
    ConfigureCommand,
    DraftCommand,
    DraftReply,
    DraftSpan,
    Features,
    Proposal,
    RunAhead,
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
from minedraft.output import BatchState, Output, RequestUsage, ServiceStatus, WorkerState
from minedraft.prompts import ChatPrompt, GenerateCall, TextPrompt, TokenPrompt
from minedraft.rpc.codec import channel, common, draft, inference, link, verify
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, FinishReason, LoanTerms, Mode, Role, RoundId, SequenceSpec
from minedraft.v1 import inference_pb2, worker_pb2

INFO = WorkerInfo(
    role=Role.VERIFIER,
    epoch=7,
    protocol_version=1,
    vocab_size=97,
    vocab_fingerprint="f" * 64,
    num_blocks=64,
    block_size=4,
    max_model_len=128,
    model_name="tiny",
    device="cpu:0",
    dtype="float32",
    feature_layers=(-1,),
    feature_size=1,
)
ROUND = RoundId(7, Batch.B, 3)
SAMPLING = SamplingParams(temperature=0.5, top_p=0.5, seed=7, stop=("x",), logit_bias={3: 1.0}, logprobs=2)
SPEC = SequenceSpec(SAMPLING, 4, 5, Acceptance.REJECTION, (2, 3))


def _q(num_drafts: int) -> TruncatedQ:
    ids, probs = struct.pack(f"<{2 * num_drafts}i", *range(2 * num_drafts)), struct.pack("<f", 0.5) * 2 * num_drafts
    return TruncatedQ(Tensor("int32", (num_drafts, 2), ids), Tensor("float32", (num_drafts, 2), probs))


def _features(start: int, num_rows: int) -> Features:
    return Features(start, Tensor("float32", (num_rows, 1), bytes(4 * num_rows)))


DRAFT = DraftCommand(
    ROUND,
    (
        DraftSpan(1, 0, (4, 5, 6, 7), 2, SPEC, (_features(0, 3),)),
        DraftSpan(2, 6, (8, 9, 10), 3, ahead=RunAhead(2, 4), branch=1),
    ),
    released=(3, 4),
)
DRAFTED = DraftReply(
    ROUND,
    (
        Proposal(1, 4, (5, 6), _q(2), scores=(0.5, 0.25)),
        Proposal(2, 10, (5, 6, 7), branch=Branch(2, 9)),
        Proposal(2, 8, (5,), branch=Branch(0, 11)),
    ),
    Timing(1, 2, 3, 4, 5000),
    9,
)
VERIFY = VerifyCommand(
    ROUND,
    (
        VerifySpan(1, 0, (4, 5, 6, 7), (8, 9), _q(2), spec=SPEC, wants_features=True),
        VerifySpan(2, 9, (8,), (3,)),
        VerifySpan(3, 5, (), follows=True),
        VerifySpan(4, 0, (1, 2, 3), sample=False, spec=SPEC),
    ),
    released=(5,),
    feature_layers=(-1,),
)
VERIFIED = VerifyReply(
    ROUND,
    (
        Verdict(1, 4, 1, (8, 10), (TokenLogprobs(-0.5, (8, 9), (-0.5, -2.0)),) * 2, features=_features(0, 5)),
        Verdict(2, 10, 1, (3, 4)),
        Verdict(3, 6, 0, (), error="NUMERIC"),
        Verdict(4, 3, 0, ()),
    ),
    Timing(1, 2, 3, 4, 5000),
    9,
)
OPEN = ChannelCommand(ChannelStep.OPEN, Carrier.SHM)
JOIN = ChannelCommand(ChannelStep.JOIN, Carrier.SHM, ChannelEnd(Carrier.SHM, segment=5, num_bytes=4096, pid=1, fd=3))
OUTPUT = Output(
    "text",
    (1, 2),
    FinishReason.STOP,
    RequestUsage(1, 2, 3, 4, 5, 0.5, 0.5, 0.5),
    (TokenLogprobs(-0.5, (1,), (-0.5,)),) * 2,
)
STATUS = ServiceStatus(state="serving", mode="sd", batches=(BatchState("A", 1, 2),), workers=(WorkerState("drafter"),))
CALL = GenerateCall(TextPrompt("good day"), SAMPLING, "mine", timeout_s=5.0)
CHAT = ChatPrompt(({"role": "user", "content": "good day"},))


@dataclass(frozen=True)
class Decoder:
    """One way in. valid: messages that it accepts. decode: raises typed errors only, for any message of the type."""

    name: str
    valid: tuple[Message, ...]
    decode: Callable[[Any], object]

    @property
    def kind(self) -> type[Message]:
        return type(self.valid[0])


def _draft_command(message: worker_pb2.DraftRequest) -> DraftCommand:
    channel.freed_from_pb(message)
    return draft.draft_command_from_pb(message, INFO)


def _verify_command(message: worker_pb2.VerifyRequest) -> VerifyCommand:
    channel.freed_from_pb(message)
    return verify.verify_command_from_pb(message, INFO)


def _handshake(message: worker_pb2.HandshakeRequest) -> object:
    return common.protocol_version_from_pb(message), common.handshake_from_pb(message)


DECODERS = [
    Decoder(
        "generate",
        (
            inference.generate_to_pb(CALL),
            inference.generate_to_pb(replace(CALL, prompt=TokenPrompt((5, 6, 7)))),
            inference.generate_to_pb(replace(CALL, prompt=CHAT)),
        ),
        inference.generate_from_pb,
    ),
    Decoder("borrow", (inference.borrow_to_pb(LoanTerms(Mode.SD, 4, 2)),), inference.borrow_from_pb),
    Decoder("output", (inference.output_to_pb(OUTPUT),), inference.output_from_pb),
    Decoder("status", (inference.status_to_pb(STATUS),), inference.status_from_pb),
    Decoder("draft", (draft.draft_command_to_pb(DRAFT),), _draft_command),
    Decoder("verify", (verify.verify_command_to_pb(VERIFY),), _verify_command),
    Decoder("release", (common.release_to_pb(7, (1, 2)),), common.release_from_pb),
    Decoder("configure", (common.configure_to_pb(ConfigureCommand(7, 1, (0, 1))),), common.configure_from_pb),
    Decoder(
        "channel",
        (channel.channel_command_to_pb(OPEN), channel.channel_command_to_pb(JOIN)),
        channel.channel_command_from_pb,
    ),
    Decoder("handshake", (common.handshake_to_pb("scheduler", 97),), _handshake),
    Decoder("info", (common.info_to_pb(INFO, 5),), lambda message: common.info_from_pb(message, 0, 10)),
    Decoder(
        "drafted", (draft.draft_reply_to_pb(DRAFTED),), lambda message: draft.draft_reply_from_pb(message, DRAFT, INFO)
    ),
    Decoder(
        "verified",
        (verify.verify_reply_to_pb(VERIFIED),),
        lambda message: verify.verify_reply_from_pb(message, VERIFY, INFO),
    ),
    Decoder("released", (common.release_reply_to_pb(5),), lambda m: common.release_reply_from_pb(m, INFO)),
    Decoder(
        "configured",
        (common.configure_reply_to_pb(Timing(1, 2, 3, 4, 5000)),),
        lambda message: common.configure_reply_from_pb(message, INFO),
    ),
    Decoder(
        "opened",
        (channel.channel_reply_to_pb(JOIN.peer),),
        lambda message: channel.channel_reply_from_pb(message, OPEN),
    ),
    Decoder("refusal", (worker_pb2.Refusal(reason="PROTOCOL", message="no", request_id=3),), link.refusal_from_pb),
]
# A string that is looked up, numbers that are compared with the last ones, or nothing at all.
WITHOUT_DECODER = (
    inference_pb2.AbortRequest,
    inference_pb2.AbortReply,
    inference_pb2.GetStatusRequest,
    inference_pb2.BorrowReply,
    worker_pb2.CurtailRequest,
    worker_pb2.Heartbeat,
)
ENVELOPES = (worker_pb2.Command, worker_pb2.Reply)


def arriving() -> set[str]:
    """Return the full names of the types of all messages that can arrive at a process of this package."""
    names: set[str] = set()
    for file in (inference_pb2.DESCRIPTOR, worker_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            for method in service.methods:
                names |= {method.input_type.full_name, method.output_type.full_name}
    for envelope in ENVELOPES:
        names.discard(envelope.DESCRIPTOR.full_name)
        names |= {field.message_type.full_name for field in envelope.DESCRIPTOR.fields if field.message_type}
    return names
