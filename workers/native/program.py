"""Calls of kernels that are checked once and made many times, all of them in one call of the library.

A forward makes some ten calls a layer. One by one they cost microseconds each: the checks, the way into the
library, and on several threads the waking of the others. A program pays that once.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

from minedraft.errors import InternalError
from minedraft_workers.native.library import Library
from minedraft_workers.native.tensors import SpanPlan

_FAILURES = {
    1: "another thread is in a call of the same kernels",
    2: "no memory for the kernels' scratch",
    3: "this call cannot be recorded",
    4: "more rows than a program was recorded with",
    5: "the system gives no more threads or memory",
}


@dataclass(slots=True, eq=False, weakref_slot=True)
class Program:
    """What `NativeKernels.recording` has recorded; it keeps every tensor that its calls read or write.

    plan: stands for the forward's plan in the calls that are recorded: `num_rows` is how many rows there are
    memory for. pointer: the library's.
    """

    plan: SpanPlan
    pointer: int
    kept: list[object] = field(default_factory=list)

    @classmethod
    def make(cls, library: Library, max_rows: int, num_blocks: int, block_size: int) -> Program:
        """An empty program.

        Raises:
            InternalError: there is no memory.
        """
        pointer = library.new_program()
        if not pointer:
            raise InternalError("no memory for a program")
        program = cls(SpanPlan.stand_in(max_rows, num_blocks, block_size), pointer)
        weakref.finalize(program, library.free_program, pointer)
        return program


def check_status(status: int) -> None:
    """Raises InternalError where the library says that a call failed."""
    if status:
        raise InternalError(_FAILURES.get(status, f"the kernels return {status}"))
