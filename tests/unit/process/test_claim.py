import os
import socket
import subprocess
import sys

import pytest

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.process.claim import ListenClaim
from tests.support.full_disk import full_disk


def test_a_socket_in_use_is_refused_naming_its_process(tmp_path):
    address = Address(path=tmp_path / "m.sock")
    with ListenClaim(address), pytest.raises(ConfigError, match=f"process {os.getpid()} is listening there"):
        ListenClaim(address)
    ListenClaim(address).release()
    assert list(tmp_path.iterdir()) == []


def test_the_socket_of_a_dead_process_is_reclaimed(tmp_path):
    path = tmp_path / "m.sock"
    program = (
        "import sys, socket, os\nfrom pathlib import Path\n"
        "from minedraft.address import Address\nfrom minedraft.process.claim import ListenClaim\n"
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


def test_a_port_in_use_is_refused_naming_its_process():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1:{port}.*process {os.getpid()} is listening there"):
            ListenClaim(Address(host="127.0.0.1", port=port))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be used: File exists"):
        ListenClaim(Address(path=tmp_path / "file" / "m.sock"))


def test_one_folder_is_made_and_no_more(tmp_path):
    with ListenClaim(Address(path=tmp_path / "new" / "m.sock")):
        assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert not (tmp_path / "new").exists()
    with pytest.raises(ConfigError, match="No such file or directory"):
        ListenClaim(Address(path=tmp_path / "slip" / "of" / "m.sock"))
    assert not (tmp_path / "slip").exists()


def test_a_folder_with_other_files_or_of_another_maker_stays(tmp_path):
    with ListenClaim(Address(path=tmp_path / "new" / "m.sock")):
        (tmp_path / "new" / "precious").touch()
    ListenClaim(Address(path=tmp_path / "new" / "m.sock")).release()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["precious"]
    (tmp_path / "old").mkdir()
    ListenClaim(Address(path=tmp_path / "old" / "m.sock")).release()
    assert (tmp_path / "old").is_dir()


def test_a_folder_that_its_maker_removes_meanwhile_is_made_again(tmp_path, monkeypatch):
    folder, lstat = tmp_path / "new", os.lstat

    def remove_first(path):
        monkeypatch.setattr(os, "lstat", lstat)
        os.rmdir(folder)
        return lstat(path)

    monkeypatch.setattr(os, "lstat", remove_first)
    with ListenClaim(Address(path=folder / "m.sock")):
        assert [path.name for path in folder.iterdir()] == ["m.sock.lock"]
    assert not folder.exists()


def test_a_full_disk_is_told_and_nothing_is_left_on_it(tmp_path):
    with full_disk(), pytest.raises(ConfigError, match=r"listen is .*m\.sock': cannot be used: File too large"):
        ListenClaim(Address(path=tmp_path / "m.sock"))
    assert list(tmp_path.iterdir()) == []
