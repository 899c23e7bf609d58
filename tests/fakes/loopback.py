"""A worker link without gRPC: the product's codecs both ways, and each refusal raised as its error."""

from __future__ import annotations

from collections.abc import Callable

from minedraft.errors import MineDraftError, ProtocolError
from minedraft.messages import DraftCommand, DraftReply, VerifyCommand, VerifyReply, WorkerInfo
from minedraft.rpc.codec.draft import (
    draft_command_from_pb,
    draft_command_to_pb,
    draft_reply_from_pb,
    draft_reply_to_pb,
)
from minedraft.rpc.codec.link import encode, refusal_from_pb, refusal_to_pb
from minedraft.rpc.codec.verify import (
    verify_command_from_pb,
    verify_command_to_pb,
    verify_reply_from_pb,
    verify_reply_to_pb,
)
from minedraft_workers.rounds.actors import REFUSALS


def deliver_draft(command: DraftCommand, info: WorkerInfo, run: Callable[[DraftCommand], DraftReply]) -> DraftReply:
    """Return the reply of a drafter with `info` that executes commands with `run`."""
    message = encode(draft_command_to_pb, command)
    try:
        reply = run(draft_command_from_pb(message, info))
    except REFUSALS as error:
        raise _refusal(error) from error
    return draft_reply_from_pb(draft_reply_to_pb(reply), command, info)


def deliver_verify(
    command: VerifyCommand, info: WorkerInfo, run: Callable[[VerifyCommand], VerifyReply]
) -> VerifyReply:
    """Return the reply of a verifier with `info` that executes commands with `run`."""
    message = encode(verify_command_to_pb, command)
    try:
        reply = run(verify_command_from_pb(message, info))
    except REFUSALS as error:
        raise _refusal(error) from error
    return verify_reply_from_pb(verify_reply_to_pb(reply), command, info)


def _refusal(error: MineDraftError) -> MineDraftError:
    refusal = refusal_from_pb(refusal_to_pb(1, error).refusal)
    assert isinstance(refusal, ProtocolError), "a refusal leaves the worker alive"
    return refusal
