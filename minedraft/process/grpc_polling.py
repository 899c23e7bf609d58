"""Which threads of a serving process use its gRPC connections."""

from __future__ import annotations

import os

_VARIABLE = "GRPC_EXPERIMENTS"
_OWN_THREADS = (
    "event_engine_client",
    "event_engine_listener",
    "event_engine_for_all_other_endpoints",
    "event_engine_callback_cq",
)


def poll_in_place() -> None:
    """Have gRPC use its connections in the thread that polls them, as it did until its event engine was made the
    default: that hands each message from thread to thread, a fifth of the CPU time of a round beside its forward.

    gRPC reads this when it is imported: the packages of scheduler and workers call it, and a process that has imported
    gRPC before stays as it is. What the operator has set in GRPC_EXPERIMENTS stays too. A gRPC that no longer knows one
    of these names says so on stderr, and goes on.
    """
    os.environ.setdefault(_VARIABLE, ",".join(f"-{name}" for name in _OWN_THREADS))
