"""The gRPC edge of a worker: decode, hand to the runtime, encode. Generic handlers, one per RPC."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from minedraft_workers.runtime import DraftingActor, VerifyingActor, Work, WorkerRuntime

from minedraft.blocks import BlocksExhausted
from minedraft.errors import InternalError, InvalidRequest, MineDraftError, Overloaded, ProtocolError, StaleRound
from minedraft.rpc import codec, status
from minedraft.rpc.codec_draft import draft_command_from_pb, draft_reply_to_pb
from minedraft.rpc.codec_verify import verify_command_from_pb, verify_reply_to_pb
from minedraft.types import PROTOCOL_VERSION, DraftCommand, DraftReply, Proposal, VerifyReply
from minedraft.v1 import worker_pb2

logger = logging.getLogger("minedraft.worker")

DRAFTER_SERVICE = "minedraft.v1.Drafter"
VERIFIER_SERVICE = "minedraft.v1.Verifier"

_Context = grpc.aio.ServicerContext[Any, Any]
RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)

# What each refusal is on the wire. The scheduler never passes these codes on to its clients.
_CODES: tuple[tuple[type[MineDraftError], grpc.StatusCode], ...] = (
    (StaleRound, grpc.StatusCode.FAILED_PRECONDITION),
    (InvalidRequest, grpc.StatusCode.INVALID_ARGUMENT),
    (ProtocolError, grpc.StatusCode.INVALID_ARGUMENT),
    (BlocksExhausted, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (Overloaded, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (InternalError, grpc.StatusCode.INTERNAL),
)


def drafter_handler(actor: DraftingActor, runtime: WorkerRuntime) -> grpc.GenericRpcHandler[Any, Any]:
    """The Drafter service."""

    async def run(
        method: str, message: worker_pb2.DraftRequest, execute: Callable[[DraftCommand], Work[Proposal]]
    ) -> worker_pb2.DraftReply:
        command = draft_command_from_pb(message, runtime.info)
        done = await runtime.execute(method, command.round, lambda: execute(command))
        return draft_reply_to_pb(DraftReply(command.round, done.rows, done.timing, done.num_free_blocks))

    async def draft(message: worker_pb2.DraftRequest) -> worker_pb2.DraftReply:
        return await run("Draft", message, actor.draft)

    async def prefill(message: worker_pb2.DraftRequest) -> worker_pb2.DraftReply:
        return await run("Prefill", message, actor.prefill)

    methods = {
        "Draft": _method(draft, worker_pb2.DraftRequest),
        "Prefill": _method(prefill, worker_pb2.DraftRequest),
        **_shared_methods(runtime),
    }
    return grpc.method_handlers_generic_handler(DRAFTER_SERVICE, methods)


def verifier_handler(actor: VerifyingActor, runtime: WorkerRuntime) -> grpc.GenericRpcHandler[Any, Any]:
    """The Verifier service."""

    async def verify(message: worker_pb2.VerifyRequest) -> worker_pb2.VerifyReply:
        command = verify_command_from_pb(message, runtime.info)
        done = await runtime.execute("Verify", command.round, lambda: actor.verify(command))
        return verify_reply_to_pb(VerifyReply(command.round, done.rows, done.timing, done.num_free_blocks))

    methods = {"Verify": _method(verify, worker_pb2.VerifyRequest), **_shared_methods(runtime)}
    return grpc.method_handlers_generic_handler(VERIFIER_SERVICE, methods)


def _shared_methods(runtime: WorkerRuntime) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
    async def handshake(message: worker_pb2.HandshakeRequest) -> worker_pb2.HandshakeReply:
        version = codec.protocol_version_from_pb(message)
        if version != PROTOCOL_VERSION:
            raise ProtocolError(f"protocol version {version} was asked for, this worker speaks {PROTOCOL_VERSION}")
        info = runtime.start_epoch()
        logger.info("epoch %d begins", info.epoch)
        return codec.info_to_pb(info)

    async def release(message: worker_pb2.ReleaseRequest) -> worker_pb2.ReleaseReply:
        epoch, request_ids = codec.release_from_pb(message)
        return codec.release_reply_to_pb(await runtime.release(epoch, request_ids))

    return {
        "Handshake": _method(handshake, worker_pb2.HandshakeRequest),
        "Release": _method(release, worker_pb2.ReleaseRequest),
    }


def _method(
    answer: Callable[[RequestT], Awaitable[ReplyT]], request_type: type[RequestT]
) -> grpc.RpcMethodHandler[Any, Any]:
    async def handle(message: RequestT, context: _Context) -> ReplyT:
        try:
            return await answer(message)
        except MineDraftError as error:
            code = next((code for kind, code in _CODES if isinstance(error, kind)), grpc.StatusCode.INTERNAL)
            if code is not grpc.StatusCode.INTERNAL:  # a crash has its own line
                logger.warning("command refused: %s", error)
            await status.abort(context, error, code)

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=request_type.FromString,
        response_serializer=_serialize,
    )


def _serialize(reply: Message) -> bytes:
    return reply.SerializeToString()
