"""Which requests have a seat and KV: who is admitted, who makes room for others, and who is paused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from minedraft.core import events
from minedraft.core.batches import BatchManager
from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.queueing.waiting_room import WaitingRoom
from minedraft.core.request import Request
from minedraft.types import Batch


class Memory(Protocol):
    """What the workers have room for at present; the scheduler knows."""

    limits: SchedulerLimits
    verifier_kv: KvLedger
    book: DraftBook | None


class Seating:
    """Moves requests between the batches and the waiting room.

    Args:
        tell: takes what has happened.
    """

    def __init__(
        self, memory: Memory, batches: BatchManager, room: WaitingRoom, tell: Callable[[events.Event], None]
    ) -> None:
        self._memory = memory
        self._batches = batches
        self._room = room
        self._tell = tell
        self._num_admitted = 0

    def admit(self, next_drafted: Batch) -> None:
        """Give free seats to those who wait, as long as their KV has room."""
        if not self._room.queue or not self._batches.has_seat():
            return
        # Admit only if the whole prompt fits now and every running request can still grow by one round; otherwise the
        # newcomer would be preempted and readmitted in a loop.
        kv, num_more = self._memory.verifier_kv, self._memory.limits.max_draft_len + 1
        headroom = sum([kv.num_to_come(r.id, len(r.tokens), num_more) for r in self._batches.seated])
        while self._room.queue and self._batches.has_seat():
            request = self._room.queue[0]
            if kv.is_leaving(request.id):
                return
            if not kv.can_reserve(request.id, len(request.tokens), headroom):
                self._take_idle_memory()
                return
            self._room.leave(request)
            kv.reserve(request.id, len(request.tokens))
            headroom += kv.num_to_come(request.id, len(request.tokens), num_more)
            batch = self._batches.join(request, next_drafted)
            if not request.seniority:
                self._num_admitted += 1
                request.seniority = self._num_admitted
            self._tell(events.RequestSeated(request.id, batch))

    def make_room(self, request: Request, num_tokens: int) -> bool:
        """Take the KV of paused requests, then that of the youngest, until `num_tokens` will fit. Return whether they
        fit now.

        Released blocks count as room, but can be used only once the worker has acknowledged, so the
        request mostly sits this round out. A victim in a round of the other batch leaves when that ends.
        """
        seated, kv = self._batches.seated, self._memory.verifier_kv
        while not kv.will_fit(request.id, num_tokens, [r.id for r in seated if r.must_leave]):
            if self._take_idle_memory():
                continue
            victim = max((r for r in seated if not r.must_leave), key=lambda r: r.seniority)
            if victim.in_round:
                victim.must_leave = True
            else:
                self.preempt(victim)
                seated.remove(victim)
            if victim is request:
                return False
        return kv.can_reserve(request.id, num_tokens)

    def preempt(self, request: Request) -> None:
        """Take the seat and the KV of a request that is in no round."""
        self._drop_memory(request)
        self.unseat(request)

    def unseat(self, request: Request) -> None:
        """Send a request that is in no round to the waiting room; it keeps its KV."""
        if request.batch is not None:
            self._batches.leave(request)
        request.must_leave = False
        self._room.enter(request)
        self._tell((events.RequestPaused if request.is_paused else events.RequestPreempted)(request.id))

    def pause(self, request: Request) -> None:
        """Let a request give up its seat, now or when its round ends, until `resume`."""
        if request.is_paused:
            return
        if request.batch is None:
            self._room.leave(request)
        request.is_paused = True
        if not request.in_round:
            self.unseat(request)

    def resume(self, request: Request) -> None:
        """Let a paused request wait for a seat, before the others."""
        if not request.is_paused:
            return
        is_away = request.batch is None
        if is_away:
            self._room.leave(request)
        request.is_paused = False
        if is_away:
            self._room.enter(request)
            self._tell(events.RequestResumed(request.id))

    def remove(self, request: Request) -> None:
        """Forget a request, wherever it is."""
        if request.batch is None:
            self._room.leave(request)
        else:
            self._batches.leave(request)

    def _take_idle_memory(self) -> bool:
        """Free the KV of a paused request. Return False if none has any."""
        request = self._room.find_idle(self._memory.verifier_kv)
        if request is not None:
            self._drop_memory(request)
        return request is not None

    def _drop_memory(self, request: Request) -> None:
        """Free a request's KV on both workers; it is computed again when the request goes on."""
        self._memory.verifier_kv.release(request.id)
        if self._memory.book is not None:
            self._memory.book.release(request.id)
        request.verifier_len = 0
