"""Which scheduler has which session of a worker. Pure.

With commands of two schedulers in one session, a worker would answer both wrongly.
"""

from __future__ import annotations

from dataclasses import dataclass

from minedraft.errors import StaleRound, WorkerInUse


@dataclass(slots=True)
class _Seat:
    """A session's scheduler. `tenant`: whose stream is open. `latest`: name and epoch of the last handshake, number
    `order` of all; it is `pending` until its stream is opened or another handshake takes the session."""

    tenant: str | None = None
    latest: tuple[str, int] | None = None
    order: int = 0
    is_pending: bool = False


class Tenancy:
    """The schedulers that use a worker. A handshake makes a scheduler the next tenant of a session, its stream makes
    it the tenant, and the end of the stream frees the session. A handshake without a stream blocks no other.

    Args:
        num_sessions: schedulers that the worker serves at once.
    """

    def __init__(self, num_sessions: int = 1) -> None:
        self._seats = [_Seat() for _ in range(num_sessions)]
        self._num_handshakes = 0

    @property
    def tenants(self) -> tuple[str, ...]:
        """The names of the schedulers whose streams are open."""
        return tuple(seat.tenant for seat in self._seats if seat.tenant is not None)

    def find_free(self) -> int:
        """Return the number of the session for a handshake: one that nobody waits for, else that of the oldest
        handshake, whose scheduler may have gone.

        Raises:
            WorkerInUse: the stream of every session is open.
        """
        free = [number for number, seat in enumerate(self._seats) if seat.tenant is None]
        if not free:
            limit = "one scheduler" if len(self._seats) == 1 else f"{len(self._seats)} schedulers (its --sessions)"
            raise WorkerInUse(f"in use by {', '.join(self.tenants)}; a worker serves {limit} at a time")
        return min(free, key=lambda number: (self._seats[number].is_pending, self._seats[number].order))

    def announce(self, number: int, name: str, epoch: int) -> None:
        """Record that the handshake of scheduler `name` began `epoch` of a session that `find_free` gave."""
        self._num_handshakes += 1
        seat = self._seats[number]
        seat.latest, seat.order, seat.is_pending = (name, epoch), self._num_handshakes, True

    def move_in(self, epoch: int) -> int:
        """Record that the stream of the handshake that began `epoch` is open. Return its session's number.

        Raises:
            WorkerInUse: another stream is open in its session. StaleRound: there was no such handshake, or a later one.
        """
        for number, seat in enumerate(self._seats):
            if seat.is_pending and seat.latest is not None and seat.latest[1] == epoch:
                seat.tenant, seat.is_pending = seat.latest[0], False
                return number
        if len(self.tenants) == len(self._seats):
            self.find_free()
        taken = [seat for seat in self._seats if seat.latest is not None]
        if not taken:
            raise StaleRound(f"the epoch is not {epoch}: no scheduler has taken this worker")
        names = ", ".join(seat.latest[0] for seat in taken if seat.latest is not None)
        raise StaleRound(f"the epoch is not {epoch}: {names} has taken this worker")

    def move_out(self, number: int) -> None:
        """Record that the stream of a session has ended."""
        self._seats[number].tenant = None
