"""The requests without a seat: those that wait for one, and those whose clients do not read. Bounded."""

from __future__ import annotations

from collections import deque

from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest, Request
from minedraft.errors import Overloaded


class WaitingRoom:
    """Every live request is either here or in a batch.

    Attributes:
        queue: those that wait for a seat, the next one first.
        paused: by id, those that want no seat until they are resumed. They keep their KV while nobody needs it.
    """

    def __init__(self) -> None:
        self.queue: deque[Request] = deque()
        self.paused: dict[int, Request] = {}
        self._lens: dict[int, int] = {}  # tokens of those in the queue, which get none while they wait
        self._num_tokens = 0  # of all of them: a long queue is not counted again for each newcomer

    def check_room(self, new: NewRequest, limits: SchedulerLimits, num_free_seats: int) -> None:
        """Raise Overloaded unless the request may wait here. Seats count as room: a burst that fits the batches is not
        a queue."""
        num_here = len(self.queue) + len(self.paused)
        if num_here >= (most := limits.max_waiting + num_free_seats):
            raise Overloaded(f"{num_here} requests are waiting, the limit is {most}")
        if len(self.queue) <= num_free_seats:
            return
        num_tokens = self._num_tokens
        if num_tokens + len(new.prompt_token_ids) > limits.max_waiting_tokens:
            raise Overloaded(
                f"requests of {num_tokens} tokens are waiting, this one has {len(new.prompt_token_ids)}, "
                f"the limit is {limits.max_waiting_tokens}"
            )

    def enter(self, request: Request, *, is_first: bool = True) -> None:
        """Take a request without a seat; by default one that had a seat before, and is the next to get one."""
        if request.is_paused:
            self.paused[request.id] = request
            return
        self._lens[request.id] = len(request.tokens)
        self._num_tokens += len(request.tokens)
        if is_first:
            self.queue.appendleft(request)
        else:
            self.queue.append(request)

    def leave(self, request: Request) -> None:
        if self.paused.pop(request.id, None) is None:
            self.queue.remove(request)
            self._num_tokens -= self._lens.pop(request.id)

    def find_idle(self, kv: KvLedger) -> Request | None:
        """Return the youngest paused request that has KV, None if there is none: the first to lose it."""
        idle = [r for r in self.paused.values() if kv.pool.num_owned(r.id) and not kv.is_leaving(r.id)]
        return max(idle, key=lambda request: request.seniority, default=None)
