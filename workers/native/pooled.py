"""An opened library with a pool of threads: the base of the kernels that compute and of those that choose tokens."""

from __future__ import annotations

import weakref

from minedraft.errors import ConfigError
from minedraft_workers.native.library import ISAS, Library, choose_isa, load_library
from minedraft_workers.native.program import check_status

MAX_THREADS = 256


class PooledKernels:
    """One device thread's kernels: one call at a time, on `num_threads` threads of its own pool."""

    def __init__(self, isa: str = "auto", num_threads: int = 1, library: Library | None = None) -> None:
        """Load the library, building it if need be.

        isa: auto, or one of `ISAS`; "scalar" is a slow reference.

        Raises:
            ConfigError: there is no library and it cannot be built, this CPU lacks `isa`, or there are no threads.
        """
        _check(num_threads)
        self._library = lib = library or load_library()
        self.isa = choose_isa(lib, isa)
        self.num_threads = num_threads
        handle = lib.open(ISAS.index(self.isa), num_threads)
        if not handle:
            raise ConfigError("num_threads", num_threads, "the system gives no more threads or memory")
        self._handle: int = handle
        weakref.finalize(self, lib.close, handle)

    def resize(self, num_threads: int) -> None:
        """Compute on so many threads from now on, on the cores that the calling thread may use. Programs stay as
        they are, and so does every bit.

        Raises:
            ConfigError: the number is out of range. InternalError: another thread is in a call, or there are no
                more threads; nothing has changed.
        """
        _check(num_threads)
        check_status(self._library.resize(self._handle, num_threads))
        self.num_threads = num_threads


def _check(num_threads: int) -> None:
    if not 1 <= num_threads <= MAX_THREADS:
        raise ConfigError("num_threads", num_threads, f"must be 1 to {MAX_THREADS}")
