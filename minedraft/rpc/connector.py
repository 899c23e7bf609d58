"""Makes links to worker processes, and waits for those that are still loading."""

from __future__ import annotations

from minedraft.address import Address
from minedraft.messages import WorkerInfo
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier

_RECONNECT_TIMEOUT_S = 3.0


class GrpcConnector:
    """Links to worker processes.

    Args:
        target: the verifier's address. draft: the drafter's address; None decodes without drafts.
    """

    def __init__(self, target: Address, draft: Address | None) -> None:
        self._target = target
        self._draft = draft

    async def connect_verifier(self) -> GrpcVerifier:
        await wait_serving(self._target, LIVE)
        return await GrpcVerifier.connect(self._target)

    async def connect_drafter(self, verifier: WorkerInfo) -> GrpcDrafter | None:
        if self._draft is None:
            return None
        await wait_serving(self._draft, LIVE)
        return await GrpcDrafter.connect(self._draft, target_vocab_size=verifier.vocab_size)

    async def reconnect_verifier(self) -> GrpcVerifier:
        return await GrpcVerifier.connect(self._target, connect_timeout_s=_RECONNECT_TIMEOUT_S)

    async def reconnect_drafter(self, verifier: WorkerInfo) -> GrpcDrafter:
        assert self._draft is not None, "there was a drafter before"
        return await GrpcDrafter.connect(
            self._draft, target_vocab_size=verifier.vocab_size, connect_timeout_s=_RECONNECT_TIMEOUT_S
        )
