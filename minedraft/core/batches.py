"""The two batch queues: who decodes where, kept balanced so that neither device waits."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft.core.request import Request
from minedraft.types import Batch


class BatchManager:
    """Keeps A and B (or A alone) and decides which a request joins and when one moves.

    The paper's rules with one repair: it never moves a running request, so under light load its two
    batches drift apart and it falls back to sequential work; here one moves at a round boundary
    whenever the sizes differ by more than one.
    """

    def __init__(self, num_batches: int, max_batch_size: int) -> None:
        assert num_batches in (1, 2)
        assert max_batch_size > 0
        self.max_batch_size = max_batch_size
        self._members: dict[Batch, list[Request]] = {Batch(i): [] for i in range(num_batches)}

    @property
    def batches(self) -> tuple[Batch, ...]:
        return tuple(self._members)

    @property
    def num_requests(self) -> int:
        return sum(map(len, self._members.values()))

    def members(self, batch: Batch) -> Sequence[Request]:
        return self._members[batch]

    def size(self, batch: Batch) -> int:
        return len(self._members.get(batch, ()))

    def has_seat(self) -> bool:
        return any(len(members) < self.max_batch_size for members in self._members.values())

    def join(self, request: Request, next_drafted: Batch) -> Batch:
        """Seat a newcomer in the smaller batch; between equals in the one drafted next, so that it
        starts soonest."""
        assert request.batch is None, f"request {request.id} is in batch {request.batch} already"
        assert self.has_seat(), "no seat is free"
        batch = min(self._members, key=lambda b: (len(self._members[b]), b != next_drafted))
        self._members[batch].append(request)
        request.batch = batch
        return batch

    def leave(self, request: Request) -> None:
        assert request.batch is not None, f"request {request.id} is in no batch"
        self._members[request.batch].remove(request)
        request.batch = None

    def rebalance(self, batch: Batch) -> Request | None:
        """Move one request out of `batch` when it has two or more than the other; called at the
        batch's round boundary. The newest moves: it has waited least for its place."""
        members = self._members[batch]
        if len(self._members) == 1 or len(members) - len(self._members[batch.other]) < 2:
            return None
        moved = next((r for r in reversed(members) if not r.in_round), None)
        if moved is not None:
            members.remove(moved)
            self._members[batch.other].append(moved)
            moved.batch = batch.other
        return moved
