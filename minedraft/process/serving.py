"""The event loop of a process that serves until it is told to stop, and the threads of its gRPC."""

from __future__ import annotations

import gc
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import uvloop

ServedT = TypeVar("ServedT")

_VARIABLE = "GRPC_EXPERIMENTS"
_OWN_THREADS = (
    "event_engine_client",
    "event_engine_listener",
    "event_engine_for_all_other_endpoints",
    "event_engine_callback_cq",
)


def run_serving(main: Coroutine[Any, Any, ServedT]) -> ServedT:
    """Run a coroutine in an event loop of its own and return its result. Call it when all is imported and loaded.

    What exists by then stays: it is taken out of the garbage collector's sight, because a look at all of it takes a
    tenth of a second, in which nobody is answered. uvloop, because between two forwards of a model the CPU's caches
    hold nothing of the loop, and its code is smaller: it takes a seventh less time for a round.
    """
    gc.collect()
    gc.freeze()
    return uvloop.run(main)


def poll_in_place() -> None:
    """Have gRPC use its connections in the thread that polls them, as it did until its event engine was made the
    default: that hands each message from thread to thread, a fifth of the CPU time of a round beside its forward.

    gRPC reads this when it is imported: the packages of scheduler and workers call it, and a process that has imported
    gRPC before stays as it is. What the operator has set in GRPC_EXPERIMENTS stays too. A gRPC that no longer knows one
    of these names says so on stderr, and goes on.
    """
    os.environ.setdefault(_VARIABLE, ",".join(f"-{name}" for name in _OWN_THREADS))
