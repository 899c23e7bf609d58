"""An opened library with a pool of threads, for the kernels that compute and for those that choose tokens."""

from __future__ import annotations

import weakref

from minedraft.errors import ConfigError
from minedraft_workers.native.library import ISAS, Library, choose_isa, load_library
from minedraft_workers.native.program import check_status

MAX_THREADS = 256


class KernelPool:
    """The threads of one device thread's kernels, itself among them, and the instructions that they use."""

    def __init__(self, isa: str = "auto", num_threads: int = 1, library: Library | None = None) -> None:
        """Load the library, building it if need be.

        isa: auto, or one of `ISAS`; "scalar" is a slow reference.

        Raises:
            ConfigError: there is no library and it cannot be built, this CPU lacks `isa`, or there are no threads.
        """
        _check(num_threads)
        self.library = library or load_library()
        self.isa = choose_isa(self.library, isa)
        self.num_threads = num_threads
        handle = self.library.open(ISAS.index(self.isa), num_threads)
        if not handle:
            raise ConfigError("num_threads", num_threads, "the system gives no more threads or memory")
        self.handle: int = handle
        weakref.finalize(self, self.library.close, handle)

    def resize(self, num_threads: int) -> None:
        """Compute on so many threads from now on, on the cores that the calling thread may use. Programs stay as
        they are, and so does every bit.

        Raises:
            ConfigError: the number is out of range. InternalError: another thread is in a call, or there are no
                more threads; nothing has changed.
        """
        _check(num_threads)
        check_status(self.library.resize(self.handle, num_threads))
        self.num_threads = num_threads


class PooledKernels:
    """Kernels of one device thread: one call at a time of all that have the same pool.

    Those that compute and those that choose take turns, so one pool does: a thread goes on looking for work for a
    while after a call, and the thread of a second pool would have to share its core.
    """

    def __init__(
        self,
        isa: str = "auto",
        num_threads: int = 1,
        library: Library | None = None,
        *,
        pool: KernelPool | None = None,
    ) -> None:
        """Take the pool of other kernels, or else make one; other arguments and errors are those of `KernelPool`."""
        self.pool = pool or KernelPool(isa, num_threads, library)
        self._library, self._handle = self.pool.library, self.pool.handle

    @property
    def isa(self) -> str:
        return self.pool.isa


def _check(num_threads: int) -> None:
    if not 1 <= num_threads <= MAX_THREADS:
        raise ConfigError("num_threads", num_threads, f"must be 1 to {MAX_THREADS}")
