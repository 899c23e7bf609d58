import pytest

from minedraft.process.run_folder import RunFolder


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
