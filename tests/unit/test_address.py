import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.address import Address, default_listen
from minedraft.claim import ListenClaim
from minedraft.errors import ConfigError
from tests.full_disk import full_disk


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
    ("text", "limit"),
    [
        ("unix:", "a path must follow"),
        ("unix:/" + "x" * 120, "at most 107 bytes"),
        ("50051", "unix:PATH or host:port"),
        ("host:", "port"),
        ("host:0", r"\[1, 65535\]"),
        ("host:65536", r"\[1, 65535\]"),
        ("host:٣", "port"),
        ("host:" + "9" * 5000, "port"),
        ("http://127.0.0.1:50051", "unix:PATH or host:port"),
        ("a host:50051", "unix:PATH or host:port"),
        ("unix:~nobody-of-that-name/m.sock", "no user of that name"),
        ("unix:/a\0b", "without zeros"),
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


def test_a_socket_in_use_is_refused_naming_its_process(tmp_path):
    address = Address(path=tmp_path / "m.sock")
    with ListenClaim(address), pytest.raises(ConfigError, match=f"process {os.getpid()} is listening there"):
        ListenClaim(address)
    ListenClaim(address).release()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_dead_process_is_reclaimed(tmp_path):
    path = tmp_path / "m.sock"
    program = (
        "import sys, socket, os\nfrom pathlib import Path\nfrom minedraft.address import Address, ListenClaim\n"
        "path = sys.argv[1]\nclaim = ListenClaim(Address(path=Path(path)))\n"
        "s = socket.socket(socket.AF_UNIX)\ns.bind(path)\nos._exit(9)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert path.is_socket()
    with ListenClaim(Address(path=path)):
        assert not path.exists()


def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="not a socket"):
        ListenClaim(Address(path=path))
    assert path.read_text() == "precious"


def test_a_port_in_use_is_refused():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*another process is listening there"):
            ListenClaim(Address(host="127.0.0.1", port=port))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used: File exists"):
        ListenClaim(Address(path=tmp_path / "file" / "m.sock"))


def test_a_full_disk_is_told_and_nothing_is_left_on_it(tmp_path):
    with full_disk(), pytest.raises(ConfigError, match=r"listen is .*m\.sock': cannot be used: File too large"):
        ListenClaim(Address(path=tmp_path / "m.sock"))
    assert list(tmp_path.iterdir()) == []


def test_the_default_address_is_private_to_the_user(monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_listen() == "unix:/run/user/7/minedraft.sock"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert default_listen() == f"unix:/tmp/minedraft-{os.getuid()}/minedraft.sock"
