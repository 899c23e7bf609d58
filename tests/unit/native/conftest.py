"""Kernels of every instruction set that this machine has."""

from __future__ import annotations

from functools import cache
from typing import TypeVar

import pytest

from minedraft.errors import ConfigError
from minedraft_workers.native.choosing import ChoosingKernels
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import ISAS, Library, load_library

Kernels = TypeVar("Kernels", NativeKernels, ChoosingKernels)


@cache
def built_library() -> Library | ConfigError:
    try:
        return load_library()
    except ConfigError as error:
        return error


def open_kernels(isa: str, num_threads: int = 1) -> NativeKernels:
    """Skips the test, visibly, where there is no compiler or the CPU lacks the instruction set."""
    return _open(NativeKernels, isa, num_threads)


def open_choosing(isa: str, num_threads: int = 1) -> ChoosingKernels:
    """The same for the kernels that choose tokens."""
    return _open(ChoosingKernels, isa, num_threads)


def _open(kind: type[Kernels], isa: str, num_threads: int) -> Kernels:
    library = built_library()
    if isinstance(library, ConfigError):
        pytest.skip(str(library))
    try:
        return kind(isa, num_threads, library)
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def library() -> Library:
    found = built_library()
    if isinstance(found, ConfigError):
        pytest.skip(str(found))
    return found


@pytest.fixture(scope="session", params=ISAS)
def kernels(request: pytest.FixtureRequest) -> NativeKernels:
    return open_kernels(request.param)
