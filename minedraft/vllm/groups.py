"""Which requests are verified together, and whose turn it is. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from minedraft.types import Batch


class Groups:
    """The decoding requests in two groups that take turns; a group that is empty is left out.

    Args:
        num_groups: 2; or 1 for speculative decoding without overlap.
    """

    def __init__(self, num_groups: int = 2) -> None:
        self._num_groups = num_groups
        self._batches: dict[str, Batch] = {}
        self._last = Batch.B  # whose turn it was

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._batches))

    def __contains__(self, request_id: object) -> bool:
        return request_id in self._batches

    def members(self, batch: Batch) -> tuple[str, ...]:
        """Return the requests of a group, the oldest member first."""
        return tuple([request_id for request_id, own in self._batches.items() if own is batch])

    @property
    def num_active(self) -> int:
        """Groups that have requests."""
        return len(set(self._batches.values()))

    def next_turn(self) -> Batch:
        """Return whose turn it is now: that of the other group, unless it is empty."""
        if self.members(self._last.other) or not self.members(self._last):
            self._last = self._last.other
        return self._last

    def join(self, request_id: str, drafted_next: Batch) -> Batch:
        """Seat a newcomer in the group that is drafted next, or in the other one if that has fewer. Return it."""
        num_own, num_other = len(self.members(drafted_next)), len(self.members(drafted_next.other))
        batch = drafted_next.other if num_other < num_own and self._num_groups > 1 else drafted_next
        self._batches[request_id] = batch
        return batch

    def leave(self, request_id: str) -> None:
        """Drop a request that has ended or lost its seat; an unknown one is ignored."""
        self._batches.pop(request_id, None)

    def rebalance(self, verified: Batch) -> tuple[str, ...]:
        """Move requests out of the group that was just verified, the newest first, until it has at most one more than
        the other. They have no drafts then, so the move loses none. Return them."""
        if self._num_groups == 1:
            return ()
        members = self.members(verified)
        num_moves = max(len(members) - len(self.members(verified.other)), 0) // 2
        moved = members[len(members) - num_moves :]
        for request_id in moved:
            self._batches[request_id] = verified.other
        return moved
