"""Named points in time inside a worker process, at which a test has it do something, once.

Test and worker share a folder. The test writes a file named after role and point; the worker that comes to the point
takes the file away, says who it is and when, and does what the file says.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import NoReturn

from minedraft.types import Role


class Point(str, Enum):
    """A point in the life of a worker. `in`: inside the forward, whose numbers are computed and not used yet."""

    LOADING = "loading"
    BEFORE_DRAFT = "before_draft"
    IN_DRAFT = "in_draft"
    AFTER_DRAFT = "after_draft_before_reply"
    IN_PREFILL = "in_prefill"
    BEFORE_VERIFY = "before_verify"
    IN_VERIFY = "in_verify"
    AFTER_VERIFY = "after_verify_before_reply"
    REPLY = "reply"  # in the event loop, with the reply in hand


class Action(str, Enum):
    """What the worker does. The first ones it does to itself at once, the others are for the code at the point."""

    KILL = "kill"
    STOP = "stop"  # SIGSTOP: every thread of the process
    HANG = "hang"  # the device thread waits for ever
    SPIN = "spin"  # the device thread computes for ever
    RAISE = "raise"  # an error that nobody expects, as of a broken device
    REFUSE = "refuse"  # the process ends with exit code 78, as for a bad setting
    NAN = "nan"  # the first row of logits becomes NaN
    TWICE = "twice"  # the reply is sent twice
    LATE = "late"  # the reply is sent after the next one
    GARBAGE = "garbage"  # bytes that are no message are sent in place of the reply
    WRONG = "wrong"  # a well-formed reply with a number out of range is sent in its place
    CUT = "cut"  # the connection ends in place of the reply


@dataclass(frozen=True, slots=True)
class Reached:
    """A worker came to an armed point: its process id, and when, in seconds of the monotonic clock."""

    pid: int
    at_s: float


class Gate:
    """The test's side."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def arm(self, role: Role, point: Point, action: Action, *, after: int = 0) -> None:
        """Have the worker of `role` act when it comes to the point, after so many times that it just passes."""
        _write(self._folder / _name(role, point), {"action": action.value, "after": after})

    def reached(self, role: Role, point: Point) -> Reached | None:
        """Return who has come to the point that was armed last, and when."""
        path = self._folder / f"{_name(role, point)}.reached"
        return Reached(**json.loads(path.read_text())) if path.exists() else None

    def clear(self) -> None:
        """Disarm everything and forget who came."""
        for path in self._folder.iterdir():
            path.unlink(missing_ok=True)


class WorkerGate:
    """The worker's side. It may be asked in any thread."""

    def __init__(self, folder: Path, role: Role) -> None:
        self._folder = folder
        self._role = role
        self._passed: dict[Point, int] = {}

    def come(self, point: Point) -> Action | None:
        """Do what is asked for at this point. Return what the caller must do itself."""
        path = self._folder / _name(self._role, point)
        if not path.exists():
            self._passed.pop(point, None)
            return None
        asked = json.loads(path.read_text())
        passed = self._passed.get(point, 0)
        if passed < asked["after"]:
            self._passed[point] = passed + 1
            return None
        path.unlink()
        _write(path.with_name(f"{path.name}.reached"), {"pid": os.getpid(), "at_s": time.monotonic()})
        return _act(Action(asked["action"]))


def _act(action: Action) -> Action | None:
    match action:
        case Action.KILL:
            os.kill(os.getpid(), signal.SIGKILL)
        case Action.STOP:
            os.kill(os.getpid(), signal.SIGSTOP)
            return None  # another process let it go on
        case Action.REFUSE:
            os._exit(78)
        case Action.HANG:
            _hang()
        case Action.SPIN:
            _spin()
        case Action.RAISE:
            raise RuntimeError("CUDA error: unspecified launch failure (of a test)")
    return action


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _spin() -> NoReturn:
    while True:
        pass


def _name(role: Role, point: Point) -> str:
    return f"{role.value}-{point.value}"


def _write(path: Path, content: dict[str, object]) -> None:
    """Write a small file so that nobody sees half of it."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(json.dumps(content))
    new.replace(path)
