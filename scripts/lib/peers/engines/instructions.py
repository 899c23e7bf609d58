"""The instructions that engines may use: all of this machine's, or AVX2 on a machine that has more.

A library that chooses its code at run time is told by a variable. Whether a thread used AVX-512 all the same is asked
of Linux, which notes for each thread when it last had something in the registers that only AVX-512 has.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

import psutil

_PROC = Path("/proc")
_LINE = "AVX512_elapsed_ms:"


class Instructions(StrEnum):
    """native: what this machine has. avx2: AVX2, FMA and F16C at most."""

    NATIVE = "native"
    AVX2 = "avx2"


_AVX2 = {
    # glibc copies and compares with AVX-512, and its registers then count as used.
    "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX512BW,-AVX512DQ,-AVX512CD",
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    "OPENBLAS_CORETYPE": "Haswell",
    # The first three are numpy's groups since 2.4, the others before; names that it does not know are left out.
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512_ICL AVX512_SPR AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL",
    "PYTHONWARNINGS": "ignore::ImportWarning",  # numpy's about those names
    "MINEDRAFT_ISA": "avx2",
}


def variables_for(instructions: Instructions) -> Mapping[str, str]:
    """Return the variables that hold the libraries of a process to these instructions, from its start on."""
    return _AVX2 if instructions is Instructions.AVX2 else {}


class Watch:
    """Tells which threads used AVX-512 since this object was made."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def users_of_avx512(self, processes: Iterable[psutil.Process]) -> list[str]:
        """Return the names of the threads of these processes that did; none on a CPU that has no AVX-512.

        A thread that runs is noted when it next leaves its core, so wait for some of its work first.
        """
        since_ms = (time.monotonic() - self._began_s) * 1e3
        return [name for name, ago_ms in _last_uses(processes) if 0 <= ago_ms < since_ms]


def can_watch() -> bool:
    """Whether this kernel notes the use of AVX-512. It says nothing where the CPU has none, either."""
    with suppress(OSError):
        return _LINE in (_PROC / "self" / "arch_status").read_text(encoding="ascii")
    return False


def _last_uses(processes: Iterable[psutil.Process]) -> Iterator[tuple[str, int]]:
    """Yield each thread's name and the milliseconds since it used AVX-512, -1 for never."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            for thread in process.threads():
                with suppress(OSError):  # it has ended
                    # Only under its own number; its process's folder tells of the first thread.
                    folder = _PROC / str(thread.id)
                    lines = (folder / "arch_status").read_text(encoding="ascii").splitlines()
                    name = (folder / "comm").read_text(encoding="utf-8", errors="replace").strip()
                    yield from ((name, int(line.split()[1])) for line in lines if line.startswith(_LINE))
