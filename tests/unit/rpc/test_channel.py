"""Where servers listen: sockets for their user only, and a typed error where it cannot be."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import grpc.aio
import pytest

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.rpc.channel import bind, client_server, worker_server
from minedraft.rpc.health import LIVE, add_health, wait_serving
from minedraft.security.tls import ServerTls
from tests.fakes.certificates import certify

BOTH = pytest.mark.parametrize("make", [client_server, worker_server])


@BOTH
async def test_a_socket_is_for_its_user_only(make: Callable[[], grpc.aio.Server], tmp_path: Path) -> None:
    server = make()
    bind(server, Address.parse(f"unix:{tmp_path}/a.sock"))
    await server.start()
    assert (tmp_path / "a.sock").stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    assert (tmp_path / "file").stat().st_mode & 0o777 != 0o600, "other files are made as before"
    await server.stop(None)


@BOTH
async def test_an_address_that_is_not_of_this_host_is_refused(
    make: Callable[[], grpc.aio.Server], tmp_path: Path
) -> None:
    host = certify(tmp_path)
    server = make()
    with pytest.raises(ConfigError, match=r"listen is '192\.0\.2\.1:7000': cannot listen there"):
        bind(server, Address.parse("192.0.2.1:7000"), ServerTls(host / "cert.pem", host / "key.pem"))
    await server.stop(None)


@BOTH
@pytest.mark.parametrize("address", ["0.0.0.0:7000", "[::]:7000", "10.0.0.1:7000", "somewhere:7000"])
async def test_no_server_is_open_to_other_hosts_without_tls(make: Callable[[], grpc.aio.Server], address: str) -> None:
    server = make()
    with pytest.raises(ConfigError, match="reachable from other hosts, which requires TLS"):
        bind(server, Address.parse(address))
    await server.stop(None)


async def test_a_unix_socket_is_used_without_tls(tmp_path: Path) -> None:
    host = certify(tmp_path)
    server, address = client_server(), Address.parse(f"unix:{tmp_path}/a.sock")
    await add_health(server)
    bind(server, address, ServerTls(host / "cert.pem", host / "key.pem"))
    await server.start()
    async with asyncio.timeout(60):
        await wait_serving(address, LIVE)
    await server.stop(None)
