"""Ownership of KV blocks. Pure bookkeeping, used with real block ids by the workers and as a mirror
by the scheduler, so that both can tell whether a command fits before it runs.

Invariant: every block is free or owned by exactly one request; totals balance after every call.
"""

from __future__ import annotations

from minedraft.errors import InternalError


class BlocksExhausted(InternalError):
    """More blocks were requested than are free; nothing was changed."""

    reason = "KV_EXHAUSTED"

    def __init__(self, owner: int, num_needed: int, num_free: int) -> None:
        super().__init__(f"request {owner} needs {num_needed} more KV blocks, {num_free} are free")


class BlockPool:
    """A fixed set of equal blocks, each holding the KV of `block_size` tokens. Their ids begin with `first_block`."""

    def __init__(self, num_blocks: int, block_size: int, first_block: int = 0) -> None:
        assert num_blocks > 0, num_blocks
        assert block_size > 0, block_size
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.first_block = first_block
        self._num_untouched = num_blocks  # the last so many ids, never handed out yet
        self._free: list[int] = []  # a stack: the block freed last is the likeliest to be in the CPU's cache
        self._tables: dict[int, list[int]] = {}

    @property
    def num_free(self) -> int:
        return self._num_untouched + len(self._free)

    @property
    def owners(self) -> frozenset[int]:
        return frozenset(self._tables)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Return the number of blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def num_owned(self, owner: int) -> int:
        return len(self._tables.get(owner, ()))

    def table(self, owner: int) -> list[int]:
        """Return the owner's block ids in token order, empty for an unknown owner. Do not modify the list."""
        return self._tables.get(owner, [])

    def resize(self, owner: int, num_tokens: int) -> list[int]:
        """Give `owner` exactly the blocks that `num_tokens` tokens need and return its table.

        Raises:
            BlocksExhausted: not enough free blocks; nothing was changed.
        """
        num_wanted = self.num_blocks_for(num_tokens)
        num_more = num_wanted - self.num_owned(owner)
        if num_more > self.num_free:
            raise BlocksExhausted(owner, num_more, self.num_free)
        table = self._tables.setdefault(owner, [])
        for _ in range(num_more):
            table.append(self._take())
        while len(table) > num_wanted:
            self._free.append(table.pop())
        return table

    def release(self, owner: int) -> None:
        """Free all of the owner's blocks; an unknown owner is ignored, so that releases can be repeated."""
        self._free.extend(reversed(self._tables.pop(owner, [])))

    def hand_over(self, owner: int, to: int) -> None:
        """Append the owner's blocks to those of `to`; the owner has none then, and is unknown."""
        self._tables.setdefault(to, []).extend(self._tables.pop(owner, []))

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self._num_untouched -= 1
        return self.first_block + self.num_blocks - 1 - self._num_untouched
