"""The two batches and their seats, kept balanced so that neither device waits."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.core.request import Request
from minedraft.types import Batch


class BatchManager:
    """Keeps batches A and B (or A alone) and decides which one a request joins and when a request moves.

    The paper's rules with one repair: the paper never moves a running request, so under light load its
    two batches drift apart and it falls back to sequential work; here a request moves at a round
    boundary whenever the sizes differ by more than one.

    Number and size of the batches can change at any time. A closed batch admits no request; its members
    go on in it until the open batch has seats, and move at their own round boundary.
    """

    def __init__(self, num_batches: int, max_batch_size: int) -> None:
        self.max_batch_size = max_batch_size
        self._members: dict[Batch, list[Request]] = {batch: [] for batch in Batch}
        self._open: tuple[Batch, ...] = ()
        self.resize(num_batches, max_batch_size)

    @property
    def batches(self) -> tuple[Batch, ...]:
        """The open batches, and a closed batch while it has members."""
        return tuple(batch for batch, members in self._members.items() if members or batch in self._open)

    @property
    def num_requests(self) -> int:
        return sum(map(len, self._members.values()))

    @property
    def seated(self) -> list[Request]:
        """The requests of all batches."""
        return [request for members in self._members.values() for request in members]

    @property
    def num_active(self) -> int:
        """Batches that have members."""
        return sum(bool(members) for members in self._members.values())

    @property
    def num_free_seats(self) -> int:
        return sum(max(self.max_batch_size - len(self._members[batch]), 0) for batch in self._open)

    @property
    def is_settled(self) -> bool:
        """Whether no closed batch has members and no batch has more than its size."""
        return all(
            len(members) <= (self.max_batch_size if batch in self._open else 0)
            for batch, members in self._members.items()
        )

    def members(self, batch: Batch) -> Sequence[Request]:
        return self._members[batch]

    def size(self, batch: Batch) -> int:
        return len(self._members[batch])

    def has_seat(self) -> bool:
        return any(len(self._members[batch]) < self.max_batch_size for batch in self._open)

    def resize(self, num_batches: int, max_batch_size: int) -> None:
        """Open `num_batches` batches of at most `max_batch_size` requests. No request moves now: members
        beyond that keep their seats until `rebalance` moves them or they end."""
        assert num_batches in (1, 2)
        assert max_batch_size > 0
        self.max_batch_size = max_batch_size
        self._open = tuple(Batch)[:num_batches]

    def join(self, request: Request, next_drafted: Batch) -> Batch:
        """Seat a request in the smaller batch, of equal ones in `next_drafted`, where it starts soonest; return
        the batch."""
        assert request.batch is None, f"request {request.id} is in batch {request.batch} already"
        assert self.has_seat(), "no seat is free"
        batch = min(self._open, key=lambda b: (len(self._members[b]), b != next_drafted))
        self._members[batch].append(request)
        request.batch = batch
        return batch

    def leave(self, request: Request) -> None:
        assert request.batch is not None, f"request {request.id} is in no batch"
        self._members[request.batch].remove(request)
        request.batch = None

    def rebalance(self, batch: Batch) -> Request | None:
        """Move one request from `batch` to the other batch and return it; None if none should move.

        A request moves if `batch` has at least two requests more than the other, or is closed while the
        other has a seat; the newest one moves. Call this at the round boundary of `batch`.
        """
        members, others = self._members[batch], self._members[batch.other]
        if batch not in self._open:
            if len(others) >= self.max_batch_size:
                return None
        elif batch.other not in self._open or len(members) - len(others) < 2:
            return None
        moved = next((r for r in reversed(members) if not r.in_round), None)
        if moved is not None:
            members.remove(moved)
            others.append(moved)
            moved.batch = batch.other
        return moved
