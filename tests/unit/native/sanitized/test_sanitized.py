"""The entry points under the address and undefined-behaviour sanitizers, with random and with broken arguments."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.errors import ConfigError
from minedraft.models.cache import cache_root
from minedraft_workers.native import build

FLAGS = ("-Werror", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O0")
RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so")


def runtime_libraries() -> list[str]:
    """Paths of the sanitizers' runtimes, which must come before everything else in a process."""
    try:
        compiler = build.find_compiler()
    except ConfigError as error:
        pytest.skip(str(error))
    paths = []
    for name in RUNTIMES:
        command = [*compiler, f"-print-file-name={name}"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if not Path(said).is_absolute():
            pytest.skip(f"{compiler[0]} has no {name}")
        paths.append(said)
    return paths


def built_library() -> Path:
    """Return the sanitized library of these sources and flags, built where the cache has none."""
    key = hashlib.sha256(f"{build.library_key()} {FLAGS} {build.find_compiler()}".encode()).hexdigest()[:20]
    path = cache_root() / "native" / f"sanitized-{key}.so"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        build.compile_library(path, build.library_key(), FLAGS)
    return path


def fuzz(library: Path, rounds: int) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "LD_PRELOAD": ":".join(runtime_libraries()),
        # Python and torch leak by design, and are built without sanitizers.
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=99",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    command = [sys.executable, str(Path(__file__).with_name("fuzz.py")), str(library), str(rounds)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_argument_that_passes_the_checks_reads_or_writes_beyond_its_memory():
    runtime_libraries()  # skips before building
    library = built_library()
    done = fuzz(library, 40)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1].startswith("refused "), done.stdout
    control = fuzz(library, 0)
    assert control.returncode == 99
    assert "heap-buffer-overflow" in control.stderr
