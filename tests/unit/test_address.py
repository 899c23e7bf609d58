import os
from pathlib import Path

import pytest

from minedraft.address import Address, default_listen
from minedraft.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "target", "is_local"),
    [
        ("unix:/run/m.sock", "unix:/run/m.sock", True),
        ("unix:///run/m.sock", "unix:/run/m.sock", True),
        ("127.0.0.1:50051", "127.0.0.1:50051", True),
        ("localhost:1", "localhost:1", True),
        ("[::1]:50051", "[::1]:50051", True),
        ("0.0.0.0:50051", "0.0.0.0:50051", False),
        ("example.org:443", "example.org:443", False),
        (Path("/run/m.sock"), "unix:/run/m.sock", True),
        ("unix:/a#b/c?d/p%20q é/m.sock", "unix:/a#b/c?d/p%20q é/m.sock", True),
    ],
)
def test_an_address_is_read_and_written(text, target, is_local):
    address = Address.parse(text)
    assert address.target == target
    assert address.is_local is is_local


@pytest.mark.parametrize(
    ("header", "is_called"),
    [
        ("gpu.example:1", True),
        ("GPU.EXAMPLE.", True),
        ("localhost:99", True),
        ("[::1]:80", True),
        ("10.0.0.7", True),
        ("10.0.0.8", False),
        ("gpu.example.evil", False),
        ("localhost.evil:80", False),
        ("[::1].evil", False),
        ("127.0.0.1:80:80", False),
        ("[::1", False),
        (" ", False),
        ("", False),
    ],
)
def test_a_host_header_calls_an_address_by_its_host_or_as_this_host(header, is_called):
    assert Address.parse("Gpu.example:8000").is_called(header, ("10.0.0.7",)) is is_called


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("unix:", "must have a path after unix:"),
        ("unix:/" + "x" * 120, "at most 107 bytes"),
        ("50051", "unix:PATH or host:port"),
        ("host:", "port"),
        ("host:0", r"\[1, 65535\]"),
        ("host:65536", r"\[1, 65535\]"),
        ("host:٣", "port"),
        ("host:" + "9" * 5000, "port"),
        ("http://127.0.0.1:50051", "unix:PATH or host:port"),
        ("a host:50051", "unix:PATH or host:port"),
        ("unix:~nobody-of-that-name/m.sock", "user that does not exist"),
        ("unix:/a\0b", "without NUL"),
        ("unix:/\udcff", "Unicode text"),
        ("unix:/a,b/m.sock", "comma"),
        (b"unix:/m.sock", "unix:PATH or host:port"),
        (50051, "unix:PATH or host:port"),
        (None, "unix:PATH or host:port"),
    ],
)
def test_a_bad_address_is_refused_with_its_field(text, limit):
    with pytest.raises(ConfigError, match=limit) as caught:
        Address.parse(text, "listen")
    assert caught.value.field == "listen"


def test_the_default_address_is_private_to_the_user(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_listen() == "unix:/run/user/7/minedraft.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_listen() == f"unix:/tmp/minedraft-{os.getuid()}/minedraft.sock"
