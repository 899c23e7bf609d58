import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.errors import ConfigError
from minedraft.models import catalogue
from minedraft.models.cache import cache_root, is_intact, locked, publish, staging, write_manifest
from minedraft.models.catalogue import (
    NOT_FETCHED,
    PAIRS,
    UNAVAILABLE,
    check_fetch,
    ensure_model,
    ensure_pair,
    find_pair,
    is_available,
    list_models,
)


def test_the_cache_is_where_the_environment_says():
    assert cache_root({"MINEDRAFT_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/h"}) == Path("/a")
    assert cache_root({"XDG_CACHE_HOME": "/b", "HOME": "/h"}) == Path("/b/minedraft")
    assert cache_root({"XDG_CACHE_HOME": "~/b"}) == Path.home() / "b/minedraft"
    assert cache_root({"HOME": "/h"}) == Path("/h/.cache/minedraft")


def test_a_cache_that_cannot_be_made_is_a_configuration_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigError, match=r"cache is .*cannot be written \(Not a directory\); set MINEDRAFT_CACHE"):
        ensure_model("smollm2-135m-instruct")


def test_a_cache_that_cannot_be_used_is_found_without_writing_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "cache"))
    assert find_pair() is None
    check_fetch()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cache").write_text("")
    with pytest.raises(ConfigError, match=r"cache is .*cannot be created \(.*/cache is not a folder\)"):
        check_fetch()
    (tmp_path / "cache").unlink()
    monkeypatch.setattr(catalogue, "_CONVERT_MODULES", ("no_such_module",))
    with pytest.raises(ConfigError, match="needs no_such_module"):
        check_fetch()


def test_the_lock_keeps_other_processes_out_and_ends_with_its_holder(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from minedraft.models.cache import locked\n"
        "with locked(Path(sys.argv[1]), 'm', lambda: None): print('held', flush=True); sys.stdin.read()"
    )
    root = Path(catalogue.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        said: list[str] = []

        def on_wait() -> None:
            said.append("waiting")
            holder.kill()  # only its end lets the wait end

        with locked(tmp_path, "m", on_wait):
            assert said == ["waiting"]
    with locked(tmp_path, "m", lambda: pytest.fail("nobody holds it now")):
        pass


def test_a_staging_folder_starts_empty_and_is_gone_afterwards(tmp_path: Path):
    (tmp_path / "building" / "m").mkdir(parents=True)
    (tmp_path / "building" / "m" / "left behind").touch()
    with staging(tmp_path, "m") as folder:
        assert list(folder.iterdir()) == []
        (folder / "half").touch()
    assert not folder.exists()
    with pytest.raises(KeyboardInterrupt), staging(tmp_path, "m"):
        raise KeyboardInterrupt
    assert not folder.exists()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "a").write_text("one")
    (folder / "b").write_text("two")
    write_manifest(folder, "source 1")
    return folder


def test_an_untouched_or_copied_folder_is_intact(folder: Path, tmp_path: Path):
    assert is_intact(folder, "source 1")
    assert not is_intact(folder, "source 2")
    assert is_intact(Path(shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copy)), "source 1")


@pytest.mark.parametrize("change", ["content", "length", "missing", "no manifest", "broken manifest"])
def test_a_damaged_folder_is_not_intact(folder: Path, change: str):
    file = folder / "b"
    if change == "content":
        file.write_text("tow")
        os.utime(file, ns=(0, 0))
    elif change == "length":
        file.write_text("twoo")
    elif change == "missing":
        file.unlink()
    elif change == "no manifest":
        (folder / "minedraft_manifest.json").unlink()
    else:
        (folder / "minedraft_manifest.json").write_text("[]")
    assert not is_intact(folder, "source 1")


def test_publishing_replaces_an_unusable_folder(folder: Path, tmp_path: Path):
    final = tmp_path / "models" / "m"
    final.mkdir(parents=True)
    (final / "broken").touch()
    with staging(tmp_path, "m") as stage:
        folder.rename(stage / "m")
        publish(stage / "m", final)
    assert is_intact(final, "source 1")
    assert list((tmp_path / "building").iterdir()) == []


def test_an_empty_cache_lists_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path))
    entries = {entry.name: entry for entry in list_models()}
    assert {name for pair in PAIRS.values() for name in (pair.target, pair.draft)} | {"smollm2-135m-eagle"} == set(
        entries
    )
    for name, entry in entries.items():
        assert entry.state == (NOT_FETCHED if is_available(name) else UNAVAILABLE)
        assert entry.path == tmp_path / "models" / name
    assert list(tmp_path.iterdir()) == [], "listing makes nothing"


def test_a_drafter_without_its_assets_is_not_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalogue, "_ASSETS", tmp_path)
    assert not is_available("smollm2-135m-drafter")
    assert is_available("smollm2-135m-instruct")


def test_an_unknown_pair_lists_the_known_ones():
    with pytest.raises(ConfigError, match="known pairs: smollm2, qwen"):
        ensure_pair("llama")
