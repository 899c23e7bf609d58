"""The library is built once, by whoever comes first, from these sources and no others."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.native import build
from minedraft_workers.native.library import Library, load_library

# A compiler in name: it writes what it is asked for, and a line for each call.
FAKE_COMPILER = """#!/bin/sh
echo "$@" >> {log}
case "$*" in *{refuses}*) echo "isa.cpp:1: error: unknown" >&2; exit 1;; esac
while [ "$1" != "-o" ]; do shift; done
echo made > "$2"
"""


@pytest.fixture
def compiler_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "cache"))
    return fake_compiler(tmp_path, monkeypatch, refuses="nothing-of-it")


def fake_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch, *, refuses: str) -> Path:
    program, log = folder / "compiler", folder / "calls"
    program.write_text(FAKE_COMPILER.format(log=log, refuses=refuses))
    program.chmod(0o755)
    monkeypatch.setenv(build.COMPILER_VARIABLE, str(program))
    return log


def quick_compiler(folder: Path) -> str:
    """Return a PATH on which the compiler does not optimise, which takes a quarter of the time."""
    name = build.find_compiler()[0]
    program = folder / "bin" / Path(name).name
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which(name)} "$@" -O0\n')
    program.chmod(0o755)
    return f"{program.parent}{os.pathsep}{os.environ['PATH']}"


def find_in_child(_: int) -> str:
    return str(build.find_library())


def test_builders_wait_for_each_other_and_one_of_them_builds(compiler_calls: Path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        found = set(pool.map(find_in_child, range(3)))
    assert found == {str(build.find_library())}
    assert len(compiler_calls.read_text().splitlines()) == len(build.ISA_FLAGS) + 2  # the entry points, and linking


def test_other_sources_make_another_library(compiler_calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = build.find_library()
    changed = tmp_path / "src"
    shutil.copytree(build.SOURCES, changed)
    (changed / "tile.h").write_text((changed / "tile.h").read_text() + "// more\n")
    monkeypatch.setattr(build, "SOURCES", changed)
    after = build.find_library()
    assert before != after
    assert before.exists()
    assert after.exists()


def test_what_nobody_has_used_for_long_goes_when_another_is_built(
    compiler_calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    used = build.find_library()
    folder = used.parent
    unused, young, left, other = (folder / name for name in ("kernels-a.so", "kernels-b.so", "building-x", "notes.so"))
    for path, days in ((used, 400), (unused, 31), (young, 29), (other, 400)):
        path.touch()
        os.utime(path, times=(0, time.time() - days * 86400))
    left.mkdir()
    assert build.find_library() == used, "which marks it as used"
    assert unused.exists(), "nothing was built"
    changed = tmp_path / "src"
    shutil.copytree(build.SOURCES, changed)
    (changed / "tile.h").write_text((changed / "tile.h").read_text() + "// more\n")
    monkeypatch.setattr(build, "SOURCES", changed)
    built = build.find_library()
    assert {path.name for path in folder.iterdir()} == {built.name, used.name, young.name, other.name, "build.lock"}


def test_a_library_that_cannot_be_removed_is_no_failure(compiler_calls: Path, monkeypatch: pytest.MonkeyPatch):
    folder = Path(os.environ["MINEDRAFT_CACHE"]) / "native"
    stuck = folder / "kernels-a.so"
    stuck.mkdir(parents=True)  # as a file that belongs to another user
    (folder / "kernels-b.so").touch()
    for path in folder.iterdir():
        os.utime(path, times=(0, 0))
    assert {path.name for path in (build.find_library(), stuck, folder / "build.lock")} == set(os.listdir(folder))


def test_a_library_that_others_may_have_written_is_built_anew(compiler_calls: Path):
    path = build.find_library()
    path.write_text("planted")
    path.chmod(0o777)
    assert build.find_library() == path
    assert path.read_text() == "made\n"
    assert not path.stat().st_mode & 0o022


def test_an_instruction_set_that_the_compiler_does_not_know_is_left_out(
    compiler_calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_compiler(tmp_path, monkeypatch, refuses="avx512bf16")
    build.find_library()
    link = compiler_calls.read_text().splitlines()[-1]
    assert "avx512.o" in link
    assert "avx512_bf16.o" not in link


def test_a_compiler_that_fails_is_reported_in_one_line(
    compiler_calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fake_compiler(tmp_path, monkeypatch, refuses="api.cpp")
    with pytest.raises(ConfigError, match=r"cannot build them: isa.cpp:1: error: unknown"):
        build.find_library()
    assert [path.name for path in (tmp_path / "cache/native").iterdir()] == ["build.lock"]


def test_without_a_compiler_one_line_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path))
    monkeypatch.delenv(build.COMPILER_VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"^kernels is 'native': needs a C\+\+ compiler, and there is none"):
        build.find_library()
    monkeypatch.setenv(build.COMPILER_VARIABLE, "no-such-compiler -O2")
    with pytest.raises(ConfigError, match="CXX is 'no-such-compiler -O2': there is no such program"):
        build.find_library()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MINEDRAFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="cannot build in "):
        build.find_library()


def test_a_file_that_is_no_library_is_refused_and_built_anew_where_it_is_ours(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = tmp_path / "broken.so"
    broken.write_text("no library")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_library(broken)
    monkeypatch.setattr("minedraft_workers.native.library.library_key", lambda: "another")
    with pytest.raises(ConfigError, match=r"was built from other sources \(.*, these are another\)"):
        load_library(build.find_library())


@pytest.mark.slow
def test_the_build_command_makes_a_library_that_loads(library: Library, tmp_path: Path):
    environment = {**os.environ, "MINEDRAFT_CACHE": str(tmp_path), "PATH": quick_compiler(tmp_path)}
    command = [sys.executable, "-m", "minedraft_workers.native.build"]
    cut_short = tmp_path / "native" / build.find_library().name
    cut_short.parent.mkdir()
    cut_short.write_text("cut short")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == f"native kernels: {cut_short}\n"  # it is there, and whether it loads shows when it is loaded
    program = "from minedraft_workers.native.library import load_library; print(load_library().built_from)"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == library.built_from
