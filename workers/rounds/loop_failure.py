"""Failures of a worker's event loop: code of ours that raises where nobody waits for it.

An event loop goes on after a callback or a task has failed, and a worker would then owe an answer for ever. It ends
instead, as after a failure of its device thread: what it holds can be computed again, and what it is, nobody knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from traceback import walk_tb
from typing import Any

_OURS = ("minedraft.", "minedraft_workers.")

OnFailure = Callable[[BaseException], None]


def watch_loop(loop: asyncio.AbstractEventLoop, on_failure: OnFailure) -> None:
    """Have an exception that nobody takes call `on_failure` if code of ours has raised or passed it. What the
    libraries raise within themselves is only logged."""

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, BaseException) and _passed_by_us(error):
            on_failure(error)
        else:
            loop.default_exception_handler(context)

    loop.set_exception_handler(handle)


def watch_task(task: asyncio.Task[Any], on_failure: OnFailure) -> None:
    """Have the end of a task by an exception call `on_failure`, while whoever waits for it gets the exception, too."""

    def look(task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            on_failure(error)

    task.add_done_callback(look)


def _passed_by_us(error: BaseException) -> bool:
    return any(str(frame.f_globals.get("__name__")).startswith(_OURS) for frame, _ in walk_tb(error.__traceback__))
