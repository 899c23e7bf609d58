"""The first call on a link: which worker answers, in which epoch, and whether it is the one that was meant."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from dataclasses import dataclass

import grpc
import grpc.aio

from minedraft.address import Address
from minedraft.errors import ConfigError, InvalidRequest, MineDraftError, ProtocolError, WorkerLost
from minedraft.messages import WorkerInfo
from minedraft.rpc.codec import common
from minedraft.types import PROTOCOL_VERSION, Role
from minedraft.v1 import worker_pb2

_IN_USE_POLL_S = 0.2
_IN_USE_WAIT_S = 3.0  # after a restart, the previous scheduler may still be exiting


@dataclass(frozen=True, slots=True)
class WorkerCall:
    """Whom a scheduler calls: the gRPC service of a role, at an address."""

    role: Role
    service: str
    address: Address

    @property
    def name(self) -> str:
        """The worker's name, for messages to people."""
        return f"{self.role.value} at {self.address}"

    async def shake_hands(
        self, channel: grpc.aio.Channel, target_vocab_size: int, timeout_s: float
    ) -> tuple[WorkerInfo, int]:
        """Begin a new epoch of the worker. Return its answer, and the bytes that went both ways.

        Raises:
            ConfigError: the server at the address is no such worker, speaks another protocol version, or
                is in use by another scheduler.
            WorkerLost: no answer in time. ProtocolError: the answer breaks a rule.
        """
        handshake = channel.unary_unary(
            f"/minedraft.v1.{self.service}/Handshake",
            request_serializer=worker_pb2.HandshakeRequest.SerializeToString,
            response_deserializer=worker_pb2.HandshakeReply.FromString,
        )
        request = common.handshake_to_pb(_own_name(), target_vocab_size)
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + timeout_s
        in_use_until_s = loop.time() + min(timeout_s, _IN_USE_WAIT_S)
        while True:
            try:
                sent_ns = time.monotonic_ns()
                message = await handshake(request, timeout=deadline_s - loop.time(), wait_for_ready=True)
                received_ns = time.monotonic_ns()
                break
            except grpc.aio.AioRpcError as error:
                is_in_use = error.code() is grpc.StatusCode.ABORTED
                if not is_in_use or loop.time() + _IN_USE_POLL_S >= in_use_until_s:
                    raise self._to_error(error, timeout_s) from None
            await asyncio.sleep(_IN_USE_POLL_S)
        try:
            info = common.info_from_pb(message, sent_ns, received_ns)
        except InvalidRequest as error:
            raise ProtocolError(f"{self.role.value}'s handshake: {error}") from error
        self._check(info)
        return info, request.ByteSize() + message.ByteSize()

    def _check(self, info: WorkerInfo) -> None:
        if info.protocol_version != PROTOCOL_VERSION:
            limit = f"this scheduler speaks protocol version {PROTOCOL_VERSION}, the worker {info.protocol_version}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)
        if info.role is not self.role:
            limit = f"a {info.role.value} answers there, not a {self.role.value}"
            raise ConfigError(f"{self.role.value} address", str(self.address), limit)

    def _to_error(self, error: grpc.aio.AioRpcError, timeout_s: float) -> MineDraftError:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            other = Role.DRAFTER if self.role is Role.VERIFIER else Role.VERIFIER
            limit = f"a {other.value} or another service answers there, not a {self.role.value}"
            return ConfigError(f"{self.role.value} address", str(self.address), limit)
        if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED):
            return ConfigError(f"{self.role.value} address", str(self.address), str(error.details()))
        if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
            return WorkerLost(f"{self.name} did not answer within {timeout_s:g} s")
        return WorkerLost(f"{self.name}: {error.details()}")


def _own_name() -> str:
    """Return the name of this scheduler, as shown to another one that wants the same worker."""
    return f"the scheduler with process id {os.getpid()} on {socket.gethostname()}"
