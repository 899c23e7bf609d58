"""One scheduler at a time: a worker whose commands come from two of them would answer both wrongly."""

from __future__ import annotations

from minedraft.errors import StaleRound, WorkerInUse


class Tenancy:
    """Who has the worker. A handshake makes the caller the next tenant, its stream makes it the tenant,
    and the end of that stream frees the worker; one that never opens a stream blocks nobody.

    Attributes:
        tenant: the name of the scheduler whose stream is open.
    """

    def __init__(self) -> None:
        self._next: tuple[str, int] | None = None  # name and epoch
        self.tenant: str | None = None

    def check_free(self) -> None:
        """Raise WorkerInUse where a scheduler's stream is open."""
        if self.tenant is not None:
            raise WorkerInUse(f"in use by {self.tenant}; a worker serves one scheduler at a time")

    def announce(self, name: str, epoch: int) -> None:
        """The handshake of `name` has begun `epoch`; check that the worker is free first."""
        self._next = (name, epoch)

    def move_in(self, epoch: int) -> None:
        """The stream that follows a handshake is open.

        Raises:
            WorkerInUse: another stream is open. StaleRound: another handshake came after this one's.
        """
        self.check_free()
        if self._next is None:
            raise StaleRound(f"the epoch is not {epoch}: nobody has taken this worker")
        name, latest = self._next
        if epoch != latest:
            raise StaleRound(f"the epoch is {latest}, not {epoch}: {name} has taken this worker")
        self.tenant = name

    def move_out(self) -> None:
        self.tenant = None
