"""Builds the native library from `src/`, and finds the one that was built.

It is built on first use, or by `python -m minedraft_workers.native.build`, into the user's cache, not by
the package's installer: an editable install would keep the library of older sources, and an installer
cannot give each instruction set's file the flags it needs. The file's name holds a hash of everything
that goes into it, so a library of other sources is never loaded; the library says its hash too, for the
case that a file was renamed or cut short. Builders wait for each other, and the file appears at once.

Who builds a library removes those of other sources that nobody has asked for in a month, and what a builder that was
killed has left. A process that has loaded one keeps it, and one that has found but not loaded it builds it anew.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from minedraft.errors import ConfigError
from minedraft.models.cache import cache_root

logger = logging.getLogger("minedraft.worker")

COMPILER_VARIABLE = "CXX"
SOURCES = Path(__file__).with_name("src")
_COMPILERS = ("g++", "clang++", "c++")
# Warnings are not shown to users, and are errors in a test. gcc 12 warns of its own AVX-512 header.
_WARNINGS = ("-Wall", "-Wextra", "-Wno-uninitialized", "-Wno-unknown-warning-option", "-Wno-maybe-uninitialized")
# Contracted multiply-adds would make a sum depend on how its loop was inlined.
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-fno-math-errno", *_WARNINGS)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
# In the order of cpu.h. All but the references may be missing: an old compiler does not know them.
ISA_FLAGS: dict[str, tuple[str, ...]] = {
    "scalar": (),
    "scalar_tiles": (),
    "avx2": _AVX2,
    "avx512": _AVX512,
    "avx512_bf16": (*_AVX512, "-mavx512bf16"),
    "amx_bf16": (*_AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
}
# Plain C++ for any machine, slow: what the others are held against. "scalar_tiles" rounds as amx_bf16 does.
REFERENCES = ("scalar", "scalar_tiles")
_TIMEOUT_S = 600
_DAY_S = 86400.0
_KEPT_DAYS = 30  # after the last use, for another version that is installed beside this one
_WORK_PREFIX = "building-"


def library_key() -> str:
    """A hash of the sources, the flags, the kind of machine and the compiler that $CXX names."""
    digest = hashlib.sha256()
    for part in (repr(_FLAGS), repr(ISA_FLAGS), platform.machine(), os.environ.get(COMPILER_VARIABLE, "")):
        digest.update(part.encode() + b"\0")
    for path in sorted(path for path in SOURCES.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(SOURCES)).encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:20]


def find_library(*, rebuild: bool = False) -> Path:
    """The library built from the sources beside this file; builds it if it is not in the cache.

    Raises:
        ConfigError: there is no compiler, it fails, or the cache cannot be written.
    """
    key = library_key()
    folder = cache_root() / "native"
    path = folder / f"kernels-{key}.so"
    if not rebuild and _is_ours(path):
        _mark_used(path)
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _lock(folder / "build.lock"):
            if rebuild or not _is_ours(path):
                logger.info("building the native kernels, once, into %s", folder)
                compile_library(path, key)
                _remove_unused(folder)
    except OSError as error:
        raise ConfigError("kernels", "native", f"cannot build in {folder}: {error.strerror or error}") from error
    return path


def compile_library(path: Path, key: str, extra_flags: Sequence[str] = ()) -> None:
    """Compile the sources; `path` appears when it is complete.

    Raises:
        ConfigError: there is no compiler, or it fails.
        OSError: the folder of `path` cannot be written.
    """
    compiler = find_compiler()
    flags = (*_FLAGS, *extra_flags)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_WORK_PREFIX) as work:
        jobs = {"api": (*flags, f'-DMINEDRAFT_KEY="{key}"', str(SOURCES / "api.cpp"))}
        for number, (name, isa_flags) in enumerate(ISA_FLAGS.items()):
            if name in REFERENCES or platform.machine() in ("x86_64", "AMD64"):
                jobs[name] = (*flags, *isa_flags, f"-DMINEDRAFT_ISA={number}", str(SOURCES / "isa.cpp"))

        def compile_one(name: str) -> str | None:
            return _run([*compiler, *jobs[name], "-c", "-o", f"{work}/{name}.o"])

        with ThreadPoolExecutor(max(1, len(os.sched_getaffinity(0)))) as threads:
            errors = dict(zip(jobs, threads.map(compile_one, jobs), strict=True))
        fatal = errors["api"] or next(filter(None, (errors[name] for name in REFERENCES)), None)
        objects = [f"{work}/{name}.o" for name in jobs if errors[name] is None]
        fatal = fatal or _run([*compiler, *flags, "-shared", "-pthread", "-o", f"{work}/out.so", *objects])
        if fatal:
            raise ConfigError("kernels", "native", f"{compiler[0]} cannot build them: {fatal}")
        os.chmod(f"{work}/out.so", 0o755)  # noqa: S103 - whatever the umask: see _is_ours
        os.replace(f"{work}/out.so", path)


def find_compiler() -> list[str]:
    """The command that $CXX names, or the first compiler found.

    Raises:
        ConfigError: there is none.
    """
    chosen = os.environ.get(COMPILER_VARIABLE)
    if chosen:
        command = shlex.split(chosen)
        if shutil.which(command[0]) is None:
            raise ConfigError(COMPILER_VARIABLE, chosen, "there is no such program")
        return command
    for name in _COMPILERS:
        if shutil.which(name):
            return [name]
    limit = f"needs a C++ compiler, and there is none ({', '.join(_COMPILERS)}; {COMPILER_VARIABLE} names another)"
    raise ConfigError("kernels", "native", limit)


def _run(command: list[str]) -> str | None:
    """Run the compiler; return None, or what it says is wrong in one line."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode == 0:
        return None
    lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()
    return lines[0] if lines else f"exit status {done.returncode}"


def _is_ours(path: Path) -> bool:
    """Whether the file is there and nobody else can have written it."""
    with contextlib.suppress(OSError):
        status = path.stat()
        return status.st_uid in (0, os.getuid()) and not status.st_mode & 0o022
    return False


def _mark_used(path: Path) -> None:
    """Set the file's time to now, once a day: it says when a process last wanted the library."""
    with contextlib.suppress(OSError):  # the cache cannot be written, and then nobody removes anything from it either
        if time.time() - path.stat().st_mtime > _DAY_S:
            os.utime(path)


def _remove_unused(folder: Path) -> None:
    """Remove the libraries that nobody has wanted for _KEPT_DAYS, and the work of builders that were killed. Call it
    under the lock: nobody else builds, and the library that was just built is new."""
    oldest_s = time.time() - _KEPT_DAYS * _DAY_S
    for path in folder.glob("kernels-*.so"):
        with contextlib.suppress(OSError):  # another user's file: it stays
            if path.stat().st_mtime < oldest_s:
                path.unlink()
                logger.info("removed native kernels that nobody has used for %d days: %s", _KEPT_DAYS, path.name)
    for path in folder.glob(f"{_WORK_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> None:
    """Build the library now, and say in one line where it is or why there is none."""
    try:
        sys.stdout.write(f"native kernels: {find_library()}\n")
    except ConfigError as error:
        sys.stdout.write(f"native kernels: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
