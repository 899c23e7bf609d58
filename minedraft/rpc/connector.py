"""Makes links to worker processes, and waits for those that are still loading."""

from __future__ import annotations

from pathlib import Path

from minedraft.address import Address
from minedraft.messages import WorkerInfo
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.security.tls import Access, worker_client_tls

_CONNECT_TIMEOUT_S = 60.0  # a worker may be in a long forward, for a scheduler that has gone
_RECONNECT_TIMEOUT_S = 3.0


class GrpcConnector:
    """Links to worker processes.

    Args:
        target: the verifier's address. draft: the drafter's address; None decodes without drafts.
        tls: folder of the certificates for workers on a network, read at each connection; see `worker_client_tls`.
    """

    def __init__(self, target: Address, draft: Address | None, tls: Path | None = None) -> None:
        self._target = target
        self._draft = draft
        self._tls = tls

    async def connect_verifier(self) -> GrpcVerifier:
        tls = worker_client_tls(self._tls, self._target)
        await wait_serving(self._target, LIVE, Access(tls))
        return await GrpcVerifier.connect(self._target, connect_timeout_s=_CONNECT_TIMEOUT_S, tls=tls)

    async def connect_drafter(self, verifier: WorkerInfo) -> GrpcDrafter | None:
        if self._draft is None:
            return None
        tls = worker_client_tls(self._tls, self._draft)
        await wait_serving(self._draft, LIVE, Access(tls))
        return await GrpcDrafter.connect(
            self._draft,
            target_vocab_size=verifier.vocab_size,
            connect_timeout_s=_CONNECT_TIMEOUT_S,
            tls=tls,
        )

    async def reconnect_verifier(self) -> GrpcVerifier:
        tls = worker_client_tls(self._tls, self._target)
        return await GrpcVerifier.connect(self._target, connect_timeout_s=_RECONNECT_TIMEOUT_S, tls=tls)

    async def reconnect_drafter(self, verifier: WorkerInfo) -> GrpcDrafter:
        assert self._draft is not None, "there was a drafter before"
        tls = worker_client_tls(self._tls, self._draft)
        return await GrpcDrafter.connect(
            self._draft, target_vocab_size=verifier.vocab_size, connect_timeout_s=_RECONNECT_TIMEOUT_S, tls=tls
        )
