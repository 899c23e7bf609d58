"""The commands of one link that wait for an answer, and whether the worker that owes them still lives."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from minedraft.core.liveness.judgement import LivenessJudge, Signs
from minedraft.errors import LossCause
from minedraft.v1 import worker_pb2

logger = logging.getLogger("minedraft.rpc.worker_link")

LOOK_S = 0.5
_SLOW_COMMAND_S = 60.0  # a command that takes longer is logged, once
_OUTSIDE_DEVICE = frozenset({"channel"})  # executed beside the device, with a deadline of their own

_WORDS = {
    LossCause.SILENT: "it hangs: no sign of life for {:.1f} s",
    LossCause.NO_PROGRESS: "it hangs: its device has not moved for {:.1f} s",
}


@dataclass(slots=True)
class OpenCommand:
    """A command without an answer."""

    kind: str
    sent_s: float
    answer: asyncio.Future[worker_pb2.Reply]
    is_told: bool = False


class LinkWatch:
    """Keeps the open commands of a link, and calls `lose` if the worker that owes their answers hangs.

    Args:
        name: of the worker, for the log.
        lose: takes the cause, in words and as a kind.
    """

    def __init__(self, name: str, lose: Callable[[str, LossCause], object]) -> None:
        self._name = name
        self._lose = lose
        self._judge = LivenessJudge()
        self._open: dict[int, OpenCommand] = {}  # by number of the call, the oldest first
        self._num_beside = 0
        self._num_heard = 0
        self._num_answered = 0
        self._progress = 0

    def begin(self, call: int, kind: str) -> asyncio.Future[worker_pb2.Reply]:
        """Note that a command is sent; return the future of its answer."""
        loop = asyncio.get_running_loop()
        command = self._open[call] = OpenCommand(kind, loop.time(), loop.create_future())
        self._num_beside += kind in _OUTSIDE_DEVICE
        return command.answer

    def end(self, call: int) -> None:
        """Forget a command, answered or not."""
        if (command := self._open.pop(call, None)) is not None:
            self._num_beside -= command.kind in _OUTSIDE_DEVICE

    def answer(self, call: int, reply: worker_pb2.Reply) -> bool:
        """Hand an answer to whoever waits for it. Return False if nobody does."""
        self._num_heard += 1
        command = self._open.get(call)
        if command is None:
            return False
        if not command.answer.done():
            if command.kind not in _OUTSIDE_DEVICE:
                self._num_answered += 1
                self._judge.times.add(asyncio.get_running_loop().time() - command.sent_s)
            command.answer.set_result(reply)
        return True

    def hear(self, progress: int) -> None:
        """Take a heartbeat."""
        self._num_heard += 1
        self._progress = progress

    def fail_all(self, make_error: Callable[[], Exception]) -> None:
        """End every open command with an error."""
        for command in self._open.values():
            if not command.answer.done():
                command.answer.set_exception(make_error())

    async def run(self) -> None:
        """Look at the worker until it must be taken to hang."""
        loop = asyncio.get_running_loop()
        while not self.look(loop.time()):  # noqa: ASYNC110 - a hang is the absence of events
            await asyncio.sleep(LOOK_S)

    def look(self, now_s: float) -> bool:
        """Judge the worker now. Return whether it is lost."""
        num_owed = len(self._open)
        signs = Signs(num_owed, num_owed - self._num_beside, self._num_heard, self._num_answered, self._progress)
        cause = self._judge.look(now_s, signs)
        if cause is not None:
            self._lose(_WORDS[cause].format(self._judge.limit_s), cause)
            return True
        self._tell_slow(now_s)
        return False

    def _tell_slow(self, now_s: float) -> None:
        oldest = next(iter(self._open.values()), None)
        if oldest is not None and not oldest.is_told and now_s - oldest.sent_s > _SLOW_COMMAND_S:
            oldest.is_told = True
            logger.warning(
                "%s has not answered a %s command for %.0f s, but its device moves; still waiting",
                self._name,
                oldest.kind,
                now_s - oldest.sent_s,
            )
