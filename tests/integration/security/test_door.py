"""The clients' door with TLS and tokens: every method of every service is closed to callers without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from minedraft import AsyncClient, Client, SamplingParams
from minedraft.address import Address
from minedraft.errors import ConfigError, Unauthenticated, Unavailable
from minedraft.process.logs import RateLimit
from minedraft.rpc.channel import client_channel
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.rpc.token_check import TokenCheck
from minedraft.security.tls import Access
from minedraft.security.tokens import TokenFile
from minedraft.v1 import inference_pb2
from tests.fakes.certificates import HERE, certify, write_secret
from tests.fakes.service import FakeService, fake_service
from tests.support.processes import free_port

TOKEN = "the-token-of-this-test"
PARAMS = SamplingParams(max_new_tokens=4)


def _methods() -> Iterator[MethodDescriptor]:
    for file in (inference_pb2.DESCRIPTOR, health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR):
        for service in file.services_by_name.values():
            yield from service.methods


METHODS = sorted(f"/{method.containing_service.full_name}/{method.name}" for method in _methods())


@dataclass
class Door:
    """A service behind TLS on 127.0.0.1, and the files that belong to it."""

    service: FakeService
    folder: Path
    access: Access

    @property
    def address(self) -> str:
        return self.service.address

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def client(self, **changes: Any) -> AsyncClient:
        return AsyncClient(self.address, **{"tls_ca": self.ca, "token": TOKEN} | changes)


@asynccontextmanager
async def door(tmp_path: Path, **settings: Any) -> AsyncIterator[Door]:
    host = certify(tmp_path / "certs")
    token = write_secret(tmp_path / "token", f"{TOKEN}\n")
    listen = f"127.0.0.1:{free_port()}"
    access = Access.check(
        Address.parse(listen), token=TOKEN, tls_ca=host / "ca.pem", tls_cert=host / "cert.pem", tls_key=host / "key.pem"
    )
    tls = {"tls_cert": host / "cert.pem", "tls_key": host / "key.pem", "token_file": token}
    async with fake_service(tmp_path, access=access, listen=listen, **tls, **settings) as service:
        yield Door(service, tmp_path / "certs", access)


async def _code_of(
    channel: grpc.aio.Channel, method: str, *headers: str, message: bytes | None = None
) -> grpc.StatusCode:
    """Return how a call ends that shows these headers and sends this message, or never sends one.

    A call with a message goes out as a unary one, which looks the same on the wire: grpc.aio then waits for the status
    in the same batch. A message that is written by itself can find the call ended already, and that looks like an
    internal error.
    """
    metadata = [("authorization", header) for header in headers]
    call: Any
    if message is None:
        call = channel.stream_stream(method)(metadata=metadata, timeout=60)
    else:
        call = channel.unary_unary(method)(message, metadata=metadata, timeout=60)
    return await call.code()


async def test_every_method_is_closed_to_callers_without_a_valid_token(tmp_path: Path) -> None:
    assert len(METHODS) >= 7, "Inference, Health and reflection"
    async with (
        door(tmp_path, reflection=True) as it,
        client_channel(Address.parse(it.address), it.access.tls) as channel,
    ):
        wrong = (
            [],
            [""],
            [TOKEN],
            ["Bearer"],
            ["Bearer "],
            [f"bearer {TOKEN}"],
            [f"Bearer {TOKEN}x"],
            [f"Basic {TOKEN}"],
        )
        for method in [*METHODS, "/minedraft.v1.Inference/Unknown", "/a/b"]:
            for headers in (*wrong, [f"Bearer {TOKEN}", "Bearer x"]):
                code = await _code_of(channel, method, *headers)
                assert code is grpc.StatusCode.UNAUTHENTICATED, (method, headers)
            if not method.endswith("Watch"):  # it goes on
                code = await _code_of(channel, method, f"Bearer {TOKEN}", message=b"")
                assert code is not grpc.StatusCode.UNAUTHENTICATED, method
        assert not it.service.server.pipeline.scheduler.requests


async def test_a_caller_without_a_token_waits_for_no_message_of_its_own(tmp_path: Path) -> None:
    async with door(tmp_path) as it, client_channel(Address.parse(it.address), it.access.tls) as channel:
        for method in METHODS:
            call = channel.stream_stream(method)()  # it never writes
            assert await asyncio.wait_for(call.code(), 5) is grpc.StatusCode.UNAUTHENTICATED


async def test_a_client_with_the_token_is_served_and_others_are_told_why_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with door(tmp_path) as it:
        async with it.client() as client:
            assert len((await client.complete([1, 2], PARAMS)).token_ids) == 4
            assert (await client.status()).state == "serving"
            assert not await client.abort("nobody")
        async with it.client(token="another-token-altogether") as client:
            for call in (
                client.complete([1], PARAMS),
                client.status(),
                client.abort("x"),
                client.borrow().__aenter__(),
            ):
                with pytest.raises(Unauthenticated, match="shows no valid token"):
                    await call
        async with it.client() as client:
            assert (await client.status()).errors == {"UNAUTHENTICATED": 4}
    refusals = [record.getMessage() for record in caplog.records if "without a valid token" in record.getMessage()]
    assert len(refusals) == 4
    assert "127.0.0.1" in refusals[0]
    assert "another-token" not in caplog.text


async def test_the_blocking_client_shows_its_token_too(tmp_path: Path) -> None:
    def use(address: str, ca: Path, token_file: Path) -> None:
        with Client(address, tls_ca=ca, token_file=token_file) as client:
            assert client.complete([1], PARAMS).token_ids
            assert client.status().state == "serving"
        with Client(address, tls_ca=ca) as client, pytest.raises(Unauthenticated):
            client.status()

    async with door(tmp_path) as it:
        await asyncio.to_thread(use, it.address, it.ca, tmp_path / "token")


async def test_what_does_not_fit_the_door_gets_a_clear_error(tmp_path: Path) -> None:
    certify(tmp_path / "other")
    async with door(tmp_path) as it, fake_service(tmp_path / "b", listen=f"127.0.0.1:{free_port()}") as plain:
        for client, words in (
            (AsyncClient(it.address, token=TOKEN), "may want TLS: give tls_ca"),
            (it.client(tls_ca=tmp_path / "other" / "ca.pem"), "certificate is not signed by tls_ca"),
            (it.client(tls_ca="system"), "certificate is not signed by tls_ca"),
            (AsyncClient(plain.address, tls_ca=it.ca), "does not use TLS"),
        ):
            async with client:
                with pytest.raises(Unavailable, match=words) as caught:
                    await client.status()
                assert TOKEN not in str(caught.value)


async def test_a_certificate_for_another_host_is_not_accepted(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        elsewhere = certify(it.folder, "elsewhere")
        for name in ("key.pem", "cert.pem"):
            (elsewhere / name).replace(it.folder / "localhost" / name)  # the service takes it at the next connection
        async with it.client() as client:
            with pytest.raises(Unavailable, match="certificate is for other names"):
                await client.status()


async def test_clients_must_show_a_certificate_where_a_ca_for_them_is_set(tmp_path: Path) -> None:
    ca = certify(tmp_path / "certs") / "ca.pem"
    stranger = certify(tmp_path / "other")
    own = tmp_path / "certs" / HERE.split(",")[0]
    async with door(tmp_path, tls_client_ca=ca) as it:
        async with it.client(tls_cert=own / "cert.pem", tls_key=own / "key.pem") as client:
            assert (await client.status()).state == "serving"
        async with it.client() as client:
            with pytest.raises(Unavailable, match="may want a certificate of the client"):
                await client.status()
        async with it.client(tls_cert=stranger / "cert.pem", tls_key=stranger / "key.pem") as client:
            with pytest.raises(Unavailable):
                await client.status()


async def test_tokens_and_certificates_change_while_the_service_runs(tmp_path: Path) -> None:
    async with door(tmp_path) as it:
        async with it.client() as client:
            await client.status()
        write_secret(tmp_path / "next", "the-next-token-of-this-test\n").replace(tmp_path / "token")
        async with it.client() as client:
            with pytest.raises(Unauthenticated):
                await client.status()
        certify(it.folder / "new")
        fresh = it.folder / "new" / "localhost"
        for name in ("key.pem", "cert.pem"):
            (fresh / name).replace(it.folder / "localhost" / name)
        async with it.client(token="the-next-token-of-this-test") as client:
            with pytest.raises(Unavailable, match="not signed by tls_ca"):
                await client.status()
        async with it.client(token="the-next-token-of-this-test", tls_ca=it.folder / "new" / "ca.pem") as client:
            assert (await client.status()).state == "serving"


async def test_a_unix_socket_asks_for_a_token_if_one_is_set(tmp_path: Path) -> None:
    token = write_secret(tmp_path / "token", TOKEN)
    async with fake_service(tmp_path, access=Access(token=TOKEN), token_file=token) as service:
        async with AsyncClient(service.address) as client:
            with pytest.raises(Unauthenticated):
                await client.status()
        with pytest.raises(ConfigError, match=r"token_file: the server at unix:.* refuses its token"):
            await wait_serving(service.settings.listen_address, LIVE, Access(token="another-token-altogether"))
        async with AsyncClient(service.address, token_file=token) as client:
            assert (await client.status()).state == "serving"


async def test_callers_without_a_token_cannot_fill_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    refused: list[Unauthenticated] = []
    check = TokenCheck(TokenFile(write_secret(tmp_path / "token", TOKEN)), refused.append)
    server = grpc.aio.server(interceptors=[check])
    server.add_insecure_port(f"unix:{tmp_path}/s.sock")
    await server.start()
    async with grpc.aio.insecure_channel(f"unix:{tmp_path}/s.sock") as channel:
        for number in range(9):
            await _code_of(channel, f"/a/{number}")
    await server.stop(None)
    assert len(refused) == len(caplog.records) == 9
    now_s = 100.0
    limit = RateLimit(lambda: now_s)  # as in the log of every process
    lines = [record.getMessage() for record in caplog.records[:8] if limit.filter(record)]
    assert lines == ["refused a call without a valid token from unix:"] * 5
    now_s += 10
    assert limit.filter(caplog.records[8])
    assert caplog.messages[8].endswith("from unix: (3 lines like this were left out)")
