"""MineDraft: batch-parallel speculative decoding.

    from minedraft import AsyncClient, Client, SamplingParams

Each name is imported on first use: a worker that needs `minedraft.errors` or another plain module does not load the
clients, and a program is quickly where Ctrl-C ends it without a traceback (`minedraft.process.quiet_start`).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minedraft.client import AsyncClient, Client
    from minedraft.errors import MineDraftError
    from minedraft.output import Output, ServiceStatus
    from minedraft.sampling_params import SamplingParams

__version__ = "0.1.0"
__all__ = ["AsyncClient", "Client", "MineDraftError", "Output", "SamplingParams", "ServiceStatus"]

# For every lost peer, gRPC's own log repeats what our errors say. gRPC reads this when it is imported.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

_LAZY = {
    "AsyncClient": "minedraft.client",
    "Client": "minedraft.client",
    "MineDraftError": "minedraft.errors",
    "Output": "minedraft.output",
    "SamplingParams": "minedraft.sampling_params",
    "ServiceStatus": "minedraft.output",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)
