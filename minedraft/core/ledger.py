"""The scheduler's mirror of one worker's KV blocks.

It never counts fewer blocks than the worker uses: blocks grow here when a round is planned, before
the worker grows them, and are free here only after the worker has acknowledged the release. So a
command that fits here fits there, in whatever order two batches' commands arrive.
"""

from __future__ import annotations

from collections.abc import Iterable

from minedraft.core.blocks import BlockPool

_NO_LIMIT = 1 << 30  # blocks: more than all requests together can have


class KvLedger:
    """Blocks promised to requests on one worker, and releases on their way to it.

    Args:
        num_blocks: KV blocks of the worker; 0: it holds no KV, so every request fits.
        block_size: tokens per block. max_model_len: tokens per request.
    """

    def __init__(self, num_blocks: int, block_size: int, max_model_len: int) -> None:
        self.num_blocks = num_blocks
        self.pool = BlockPool(num_blocks or _NO_LIMIT, block_size)
        self.max_model_len = max_model_len
        self._unsent: dict[int, None] = {}  # an ordered set
        self._unacknowledged: set[int] = set()

    @property
    def capacity(self) -> int:
        """Tokens that one request can have in an empty cache."""
        return min(self.pool.num_blocks * self.pool.block_size, self.max_model_len)

    @property
    def num_free(self) -> int:
        """Free blocks of the worker; 0 if it holds no KV."""
        return self.pool.num_free if self.num_blocks else 0

    def fits(self, num_tokens: int) -> bool:
        """Whether a request of this length fits an empty cache."""
        return num_tokens <= self.capacity

    def is_leaving(self, request_id: int) -> bool:
        """Whether the request's release is not acknowledged yet. Do not introduce it again before: the release
        could free the new KV."""
        return request_id in self._unsent or request_id in self._unacknowledged

    def can_reserve(self, request_id: int, num_tokens: int, headroom: int = 0, num_extra: int = 0) -> bool:
        """Whether `num_tokens` and `num_extra` blocks beside them fit now with `headroom` blocks left."""
        num_more = self._num_more(request_id, num_tokens, num_extra) + headroom
        return num_tokens <= self.max_model_len and num_more <= self.pool.num_free

    def will_fit(self, request_id: int, num_tokens: int, leaving: Iterable[int]) -> bool:
        """Whether `num_tokens` fit once all pending releases are done and the requests `leaving` are released."""
        on_the_way_out = self._unsent.keys() | self._unacknowledged | set(leaving)
        num_coming = sum(self.pool.num_owned(owner) for owner in on_the_way_out if owner != request_id)
        return self._num_more(request_id, num_tokens) <= self.pool.num_free + num_coming

    def num_to_come(self, request_id: int, num_tokens: int, num_more: int) -> int:
        """Return the blocks that a request of `num_tokens` may still ask for: to grow by `num_more` tokens, and
        those that it lacks for the tokens it has, as after a loss of the worker."""
        pool = self.pool
        num_lacking = max(pool.num_blocks_for(num_tokens) - pool.num_owned(request_id), 0)
        return pool.num_blocks_for(num_more) + num_lacking

    def reserve(self, request_id: int, num_tokens: int, num_extra: int = 0) -> None:
        """Give the request at least the blocks for `num_tokens`, and `num_extra` blocks beside them. Spare blocks are
        kept: they are needed again soon."""
        if self._num_more(request_id, num_tokens, num_extra):
            self.pool.resize(request_id, (self.pool.num_blocks_for(num_tokens) + num_extra) * self.pool.block_size)

    def release(self, request_id: int) -> None:
        """Have the request's KV freed; its blocks count as owned until the worker acknowledges."""
        if self.pool.num_owned(request_id):
            self._unsent[request_id] = None

    @property
    def has_releases(self) -> bool:
        """Whether releases wait for a command that carries them."""
        return bool(self._unsent)

    def take_releases(self) -> tuple[int, ...]:
        """Return the releases that the next command to the worker must carry."""
        released = tuple(self._unsent)
        self._unsent.clear()
        self._unacknowledged.update(released)
        return released

    def return_releases(self, request_ids: Iterable[int]) -> None:
        """Queue these releases again: the command that carried them was not executed."""
        for request_id in request_ids:
            self._unacknowledged.discard(request_id)
            self._unsent[request_id] = None

    def acknowledge(self, request_ids: Iterable[int]) -> None:
        """Free the blocks of these requests: the worker has executed a command that carried their releases."""
        for request_id in request_ids:
            self._unacknowledged.discard(request_id)
            self.pool.release(request_id)

    def _num_more(self, request_id: int, num_tokens: int, num_extra: int = 0) -> int:
        return max(self.pool.num_blocks_for(num_tokens) + num_extra - self.pool.num_owned(request_id), 0)
