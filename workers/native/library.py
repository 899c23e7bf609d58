"""The C entry points of the native library, as ctypes sees them. No argument is checked here."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from minedraft.errors import ConfigError
from minedraft_workers.native.build import ISA_FLAGS, REFERENCES, find_library, library_key
from minedraft_workers.pulse import PULSE

_P, _L, _I, _F = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_CACHE = (_P, _P, _L, _L, _L, _L, _I)
_SIGNATURES: dict[str, tuple[type | None, tuple[type, ...]]] = {
    "key": (ctypes.c_char_p, ()),
    "has": (_I, (_I,)),
    "open": (_P, (_I, _I)),
    "resize": (_I, (_P, _I)),
    "beats": (_L, ()),
    "close": (None, (_P,)),
    "packed_bytes": (_L, (_P, _L, _L, _I)),
    "pack": (None, (_P, _P, _I, _L, _L, _P)),
    "rows": (None, (_P, _P, _I, _L, _P, _L, _P)),
    "linear": (_I, (_P, _P, _L, _P, _P, _P, _L, _L, _L, _L, _I, _I, _I)),
    "norm": (_I, (_P, _P, _L, _P, _L, _P, _P, _L, _L, _L, _F, _I)),
    "rope": (_I, (_P, _P, _L, _P, _P, _L, _L, _L, _L, _I)),
    "silu_mul": (_I, (_P, _P, _P, _L, _P, _L, _L, _L, _I)),
    "argmax": (_I, (_P, _P, _L, _L, _L, _I, _P, _P)),
    "store": (_I, (_P, *_CACHE, _P, _P, _L, _L, _P, _L)),
    "attention": (_I, (_P, *_CACHE, _P, _L, _P, _L, _L, _L, _P, _L, _P, _F)),
    "new_program": (_P, ()),
    "free_program": (None, (_P,)),
    "record": (None, (_P, _P)),
    "run": (_I, (_P, _P, _L, _P, _L, _P, _P)),
    "choose": (_I, (_P, _P, _L, _L, _L, _P, _P, _P, _L, _P, _P)),
}
ISAS = tuple(ISA_FLAGS)
# Those that "auto" chooses from, the best one last.
FAST_ISAS = tuple(isa for isa in ISAS if isa not in REFERENCES)
# What `has` says of one, see src/api.cpp.
_USABLE, _UNBUILT, _REFUSED = 2, 1, 3
# For tests and measurements: what "auto" chooses.
ISA_VARIABLE = "MINEDRAFT_ISA"
# Linux refuses tiles where a thread's stack for signals has no room for their state.
REFUSED = "the operating system does not let this process use it"


class Library:
    """The loaded library: each entry point is an attribute, without its prefix."""

    def __init__(self, path: Path) -> None:
        loaded = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(loaded, f"minedraft_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        PULSE.add_source(str(path), self.beats)

    def __getattr__(self, name: str) -> ctypes._NamedFuncPointer:
        raise AttributeError(name)  # all are set above; this tells the type checker what they are

    @property
    def built_from(self) -> str:
        return bytes(self.key()).decode()


def load_library(path: Path | None = None) -> Library:
    """The library at `path`, or the one of these sources, built if need be.

    A file of these sources' name that does not load, or says that it is of others, is built anew.

    Raises:
        ConfigError: it cannot be built or loaded, or is built from other sources.
    """
    if path is not None:
        return _open(path)
    try:
        return _open(find_library())
    except _WrongLibraryError:
        return _open(find_library(rebuild=True))


class _WrongLibraryError(ConfigError):
    """The file is no library of these sources."""


def _open(path: Path) -> Library:
    try:
        library = Library(path)
        built_from = library.built_from
    except (OSError, AttributeError) as error:
        raise _WrongLibraryError("kernels", str(path), f"cannot be loaded: {error}") from error
    if built_from != library_key():
        limit = f"was built from other sources ({built_from}, these are {library_key()})"
        raise _WrongLibraryError("kernels", str(path), limit)
    return library


def choose_isa(library: Library, name: str) -> str:
    """The instruction set to use: `name`; for "auto" the one that $MINEDRAFT_ISA names, or the best one here.

    Raises:
        ConfigError: the name is unknown, this CPU lacks it, or the library was built without it.
    """
    if name == "auto":
        name = os.environ.get(ISA_VARIABLE) or name
    if name == "auto":
        usable = [isa for isa in FAST_ISAS if library.has(ISAS.index(isa)) == _USABLE]
        if not usable:
            raise ConfigError("isa", name, "this CPU has none of " + ", ".join(FAST_ISAS))
        return usable[-1]
    if name not in ISAS:
        raise ConfigError("isa", name, f"must be auto or one of {', '.join(ISAS)}")
    state = library.has(ISAS.index(name))
    if state == _USABLE:
        return name
    limits = {_UNBUILT: "the compiler that built the kernels does not know it", _REFUSED: REFUSED}
    raise ConfigError("isa", name, limits.get(state, "this CPU lacks it"))


def refused_isas(library: Library) -> list[str]:
    """Instruction sets that this CPU has, and that the operating system does not let this process use."""
    return [isa for number, isa in enumerate(ISAS) if library.has(number) == _REFUSED]
