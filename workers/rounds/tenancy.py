"""One scheduler at a time: with commands from two, a worker would answer both wrongly."""

from __future__ import annotations

from minedraft.errors import StaleRound, WorkerInUse


class Tenancy:
    """The scheduler that uses the worker. A handshake makes a scheduler the next tenant, its stream makes it
    the tenant, and the end of the stream frees the worker. A handshake without a stream blocks no other.

    Attributes:
        tenant: the name of the scheduler whose stream is open; None if the worker is free.
    """

    def __init__(self) -> None:
        self._next: tuple[str, int] | None = None  # name and epoch
        self.tenant: str | None = None

    def check_free(self) -> None:
        """Raise WorkerInUse if a scheduler's stream is open."""
        if self.tenant is not None:
            raise WorkerInUse(f"in use by {self.tenant}; a worker serves one scheduler at a time")

    def announce(self, name: str, epoch: int) -> None:
        """Record that the handshake of scheduler `name` began `epoch`. Call `check_free` before."""
        self._next = (name, epoch)

    def move_in(self, epoch: int) -> None:
        """Record that the stream of the handshake that began `epoch` is open.

        Raises:
            WorkerInUse: another stream is open. StaleRound: there was no such handshake, or a later one.
        """
        self.check_free()
        if self._next is None:
            raise StaleRound(f"the epoch is not {epoch}: no scheduler has taken this worker")
        name, latest = self._next
        if epoch != latest:
            raise StaleRound(f"the epoch is {latest}, not {epoch}: {name} has taken this worker")
        self.tenant = name

    def move_out(self) -> None:
        self.tenant = None
