"""What every step finds: the path, folders that take files, and no variable that spoils a GPU's figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from scripts.gpu import surroundings
from scripts.gpu.surroundings import make_environment


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    return folder


def test_the_product_is_on_the_path_before_what_was_there(site: Path) -> None:
    made = make_environment(site, {"PYTHONPATH": "/elsewhere", "HOME": "/unused"}, is_cuda=True)
    assert made["PYTHONPATH"].split(os.pathsep) == [str(site), str(surroundings.ROOT), "/elsewhere"]
    assert (site / "minedraft_workers" / "verifier.py").exists()
    assert (made["HF_HUB_OFFLINE"], made["OMP_NUM_THREADS"]) == ("1", "1")


@pytest.mark.parametrize("is_cuda", [True, False])
def test_programs_are_not_interpreted_on_a_gpu(is_cuda: bool, site: Path) -> None:
    made = make_environment(site, {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "2"}, is_cuda=is_cuda)
    assert ("TRITON_INTERPRET" in made) is not is_cuda
    assert made["OMP_NUM_THREADS"] == "2"


def test_a_home_that_cannot_be_written_is_replaced(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    given = {"HOME": str(home), "TRITON_CACHE_DIR": "/proc/none/cache", "HF_HOME": str(tmp_path / "hub")}
    assert make_environment(site, given, is_cuda=True)["HOME"] == str(home)
    writable = surroundings.can_write
    monkeypatch.setattr(surroundings, "can_write", lambda folder: folder != home and writable(folder))
    made = make_environment(site, given, is_cuda=True)
    assert Path(made["HOME"]) == site / "home"
    assert Path(made["HOME"]).is_dir()
    assert made["PYTHONUSERBASE"] == str(home / ".local")
    assert "TRITON_CACHE_DIR" not in made, "Triton then takes one in the home folder"
    assert made["HF_HOME"] == given["HF_HOME"]


def test_a_folder_is_writable_that_can_be_made_and_has_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert surroundings.can_write(tmp_path / "a" / "b")
    assert not surroundings.can_write(Path("/proc/none"))
    monkeypatch.setattr(surroundings, "_NEEDED_BYTES", 1 << 60)
    assert not surroundings.can_write(tmp_path)


def test_sockets_get_a_short_path(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", "/tmp/" + "long" * 20)
    assert make_environment(site, {}, is_cuda=False)["TMPDIR"] == "/tmp"
    monkeypatch.setattr("tempfile.tempdir", "/tmp")
    assert "TMPDIR" not in make_environment(site, {}, is_cuda=False)
