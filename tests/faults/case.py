"""What a row of the fault matrix is."""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.types import Role
from tests.faults.gate import Action, Point


@dataclass(frozen=True, slots=True)
class Live:
    """A fault that a worker of the running service makes at a point, and what must follow.

    Attributes:
        after: times that the worker passes the point first.
        health: states of the service from the fault on, without the first one.
        says: a pattern; exactly one line of the log has it.
        counts: the counter of `ServiceStatus.faults` that grows by one; "stale_replies" is one of its own.
        dies_loading: the next process of the worker is killed while it loads.
        is_lost: the worker is replaced, or joins again with a new epoch.
        num_failed: requests that end with `fails_with`, at most; the others have their tokens.
        resume_after_s: a stopped process gets SIGCONT after so many seconds, unless it has ended.
    """

    role: Role
    point: Point
    action: Action
    after: int = 0
    health: tuple[str, ...] = ()
    says: str = ""
    counts: str = ""
    dies_loading: bool = False
    is_lost: bool = True
    num_failed: int = 0
    fails_with: str = ""
    resume_after_s: float | None = None

    @property
    def num_deaths(self) -> int:
        """Processes of the worker that end."""
        is_deadly = self.action in (Action.KILL, Action.STOP, Action.HANG, Action.SPIN, Action.RAISE)
        return is_deadly + self.dies_loading

    def __str__(self) -> str:
        return f"{self.role.value}-{self.action.value}-{self.point.value}"


@dataclass(frozen=True, slots=True)
class Case:
    """One row.

    Attributes:
        row: its number in the matrix.
        when: the points at which it is made; "" where there is only one.
        client: what a client sees.
        bound: what is promised.
        proofs: the tests that show it, by node id without parameters, besides `live`.
        live: made in the running service by `test_matrix.py`.
        skipped: why a part of it is not run here.
    """

    row: int
    fault: str
    client: str
    bound: str
    when: str = ""
    proofs: tuple[str, ...] = ()
    live: tuple[Live, ...] = ()
    skipped: str = ""
