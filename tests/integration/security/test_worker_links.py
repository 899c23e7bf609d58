"""Links to workers on a network: both ends show a certificate of the same CA, or nothing goes through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2

from minedraft.address import Address
from minedraft.errors import ConfigError, WorkerLost
from minedraft.rpc.channel import client_channel
from minedraft.rpc.connector import GrpcConnector
from minedraft.rpc.worker_link import GrpcVerifier
from minedraft.security.tls import ClientTls, worker_client_tls, worker_server_tls
from minedraft.types import Role
from minedraft.v1 import worker_pb2
from tests.fakes.certificates import certify
from tests.support.processes import free_port
from tests.support.served_worker import Served, command, served

METHODS = [
    f"/{service.full_name}/{method.name}"
    for file in (worker_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR)
    for service in file.services_by_name.values()
    for method in service.methods
]


@asynccontextmanager
async def far_worker(role: Role, folder: Path, certificates: Path) -> AsyncIterator[Served]:
    listen = Address.parse(f"127.0.0.1:{free_port()}")
    async with served(role, folder, listen=listen, tls=worker_server_tls(certificates, listen)) as worker:
        yield worker


async def test_a_scheduler_and_workers_of_one_ca_work_together(tmp_path: Path) -> None:
    here = certify(tmp_path / "ca")
    async with (
        far_worker(Role.VERIFIER, tmp_path, here) as verifier,
        far_worker(Role.DRAFTER, tmp_path, here) as drafter,
    ):
        connector = GrpcConnector(verifier.address, drafter.address, here)
        async with await connector.connect_verifier() as link:
            async with (await connector.connect_drafter(link.info)) or pytest.fail("no drafter"):
                assert (await link.verify(command(link, 1))).verdicts[0].accepted_len == 1
            async with await connector.reconnect_drafter(link.info) as again:
                assert again.info.role is Role.DRAFTER
        async with await connector.reconnect_verifier() as link:
            assert (await link.verify(command(link, 1))).verdicts[0].accepted_len == 1


@pytest.mark.parametrize("caller", ["without TLS", "without a certificate", "of another CA", "with a copied CA only"])
async def test_a_worker_answers_nobody_without_a_certificate_of_its_ca(tmp_path: Path, caller: str) -> None:
    here, other = certify(tmp_path / "ca"), certify(tmp_path / "other")
    roots = (here / "ca.pem").read_bytes()
    certificate, key = (other / "cert.pem").read_bytes(), (other / "key.pem").read_bytes()
    tls = {
        "without TLS": None,
        "without a certificate": ClientTls(roots),
        "of another CA": worker_client_tls(other, Address.parse("127.0.0.1:1")),
        "with a copied CA only": ClientTls(roots, certificate, key),
    }[caller]
    async with far_worker(Role.VERIFIER, tmp_path, here) as worker:
        async with client_channel(worker.address, tls) as channel:
            assert len(METHODS) >= 6
            for method in METHODS:
                call = channel.stream_stream(method)(timeout=60)
                assert await call.code() is grpc.StatusCode.UNAVAILABLE, method
        with pytest.raises(WorkerLost):
            await GrpcVerifier.connect(worker.address, tls=tls, connect_timeout_s=0.3)
        assert worker.actor.executed == []


async def test_a_scheduler_refuses_a_worker_of_another_ca_or_another_host(tmp_path: Path) -> None:
    here, other = certify(tmp_path / "ca"), certify(tmp_path / "other")
    elsewhere = certify(tmp_path / "ca", "elsewhere")
    for certificates in (other, elsewhere):
        async with far_worker(Role.VERIFIER, tmp_path, certificates) as worker:
            tls = worker_client_tls(here, worker.address)
            with pytest.raises(WorkerLost):
                await GrpcVerifier.connect(worker.address, tls=tls, connect_timeout_s=0.3)
            assert worker.actor.executed == []


async def test_certificates_are_read_again_at_each_connection(tmp_path: Path) -> None:
    here = certify(tmp_path / "ca")
    async with far_worker(Role.VERIFIER, tmp_path, here) as worker:
        connector = GrpcConnector(worker.address, None, here)
        await (await connector.connect_verifier()).close()
        for path in (tmp_path / "ca").glob("ca*.pem"):
            path.unlink()
        certify(tmp_path / "ca")  # another CA, on both ends
        await (await connector.reconnect_verifier()).close()
        (here / "key.pem").chmod(0o644)
        with pytest.raises(ConfigError, match=r"worker_tls.*key\.pem.*mode 0644"):
            await connector.reconnect_verifier()
