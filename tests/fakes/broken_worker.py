"""A worker without a model whose event loop fails: `python -m tests.fakes.broken_worker WHERE drafter|verifier FLAGS`.

WHERE: `command`, when a release comes; `reply`, when it is answered; `watchdog`, in the task that feeds it, once a
release has come; `handshake`, when a scheduler comes.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, NoReturn

import minedraft_workers.server as server
import minedraft_workers.servicer as servicer
from scripts.lib.null_worker import main

SAYS = "the dog ate the loop"


def fail(*_: Any) -> NoReturn:
    raise RuntimeError(SAYS)


def break_at(where: str) -> None:
    """Put a function that fails in the place of one of the product's."""
    if where == "command":
        servicer.common.release_from_pb = fail
    elif where == "reply":
        servicer._encode_release = fail
    elif where == "handshake":
        servicer.common.handshake_from_pb = fail
    else:
        released = asyncio.Event()
        encode = servicer._encode_release

        def encode_release(*args: Any) -> Any:
            released.set()
            return encode(*args)

        async def feed_watchdog(*_: Any) -> None:
            await released.wait()
            fail()

        servicer._encode_release = encode_release
        server.feed_watchdog = feed_watchdog


if __name__ == "__main__":
    break_at(sys.argv.pop(1))
    main()
