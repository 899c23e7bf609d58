import pytest

from minedraft.process.run_folder.absent_doors import read_absent, tell_absent
from minedraft.process.run_folder.folder import RunFolder


@pytest.fixture
def base(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


def test_the_run_folder_is_private_and_goes_with_its_owner(base):
    folder = RunFolder()
    assert folder.path.stat().st_mode & 0o777 == 0o700
    folder.remove()
    assert list(base.iterdir()) == []


def test_the_folder_of_a_dead_owner_is_removed_and_that_of_a_live_one_stays(base):
    live = RunFolder()
    stale = base / "minedraft-run-stale"
    stale.mkdir()
    (stale / "lock").touch()
    other = RunFolder()
    assert sorted(base.iterdir()) == sorted([live.path, other.path])
    live.remove()
    other.remove()


def test_the_absent_doors_are_those_that_were_told_last(tmp_path):
    assert read_absent(tmp_path) == ""
    tell_absent(tmp_path, ["http", "grpc"])
    assert read_absent(tmp_path) == "http grpc"
    tell_absent(tmp_path, [])
    assert read_absent(tmp_path) == ""
    tell_absent(tmp_path / "gone", ["http"])  # no error: the launcher goes on
