"""An event loop whose clock jumps to the next timer: a program that sleeps for hours is done at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

from minedraft.errors import InternalError

_Result = TypeVar("_Result")


class _Jumping(selectors.DefaultSelector):
    """Instead of waiting, moves the clock on."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready: list[tuple[selectors.SelectorKey, int]] = super().select(0)
        if not ready:
            if timeout is None:
                raise InternalError("everything waits for something that nobody does")
            self.now_s += max(timeout, 0.0)
        return ready


class _VirtualTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def run_virtual(main: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a program whose only waiting is for timers and for its own tasks; `loop.time()` is its clock.

    Raises:
        InternalError: everything waits, and no timer runs.
    """
    with asyncio.Runner(loop_factory=_VirtualTimeLoop) as runner:
        return runner.run(main)
