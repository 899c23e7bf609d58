"""What waits for the device thread: a queue for each session, taken from in turn."""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")


class FairMailbox(Generic[ItemT]):
    """Queues of items. The event loop puts them in and takes them back; one other thread gets them.

    Of the queues that have an item, each gives one before any gives its next: a session with many commands holds up
    another one by one command at a time. The order within a queue is kept.

    Args:
        num_queues: 1 or more; they are numbered from 0.
    """

    def __init__(self, num_queues: int) -> None:
        self._queues: Sequence[deque[ItemT]] = [deque() for _ in range(num_queues)]
        # One for each item ever put in, and one for the end: what the other thread sleeps on. It may find nothing
        # after it wakes, because items are taken back without their ticket.
        self._tickets: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._is_closed = False
        self._last = num_queues - 1  # of the other thread: the queue that the last item came from

    def put(self, number: int, item: ItemT) -> None:
        """Append an item to a queue."""
        self._queues[number].append(item)
        self._tickets.put(None)

    def take_back(self, number: int) -> list[ItemT]:
        """Return the items of a queue, which is empty then."""
        items: list[ItemT] = []
        while (item := _pop(self._queues[number])) is not None:
            items.append(item)
        return items

    def close(self) -> None:
        """Let `get` return None once all queues are empty."""
        self._is_closed = True
        self._tickets.put(None)

    def get(self) -> ItemT | None:
        """Wait for an item and return it; None at the end."""
        num_queues = len(self._queues)
        while True:
            self._tickets.get()
            for step in range(1, num_queues + 1):
                number = (self._last + step) % num_queues
                if (item := _pop(self._queues[number])) is not None:
                    self._last = number
                    return item
            if self._is_closed:
                return None


def _pop(items: deque[ItemT]) -> ItemT | None:
    """Return the first item, None if there is none: both threads may take the last one, only one gets it."""
    try:
        return items.popleft()
    except IndexError:
        return None
