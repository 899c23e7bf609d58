"""Which blocks of a KV cache each request has, whatever holds the keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from minedraft.core.blocks import BlockPool, BlocksExhausted


@dataclass(frozen=True, slots=True)
class LayerShape:
    """What one attention layer caches per token: `num_heads` keys of `key_dim` and values of `value_dim`."""

    num_heads: int
    key_dim: int
    value_dim: int

    @property
    def num_elements(self) -> int:
        return self.num_heads * (self.key_dim + self.value_dim)


@dataclass(frozen=True, slots=True)
class QuerySpan:
    """`num_tokens` consecutive query rows of one request; the first is its token number `start`."""

    start: int
    num_tokens: int
    table: Sequence[int]  # block ids from the request's first token on

    @property
    def num_blocks(self) -> int:
        return len(self.table)

    @property
    def blocks(self) -> np.ndarray:
        """The table as int64 [num_blocks]."""
        return np.asarray(self.table, dtype=np.int64)


class BlockTables:
    """The owners of the blocks, in `pool`, and the number of tokens that each has cached.

    A *fork* is another continuation of a request's first tokens. It reads the request's blocks as far as they are
    full, and owns the blocks after them: a copy of the one that is not full, and its own. So a block still has one
    owner. The request may grow while it has forks; before it shrinks, they are dropped or one is adopted.
    """

    def __init__(self, layers: Sequence[LayerShape], num_blocks: int, block_size: int, first_block: int = 0) -> None:
        self.pool = BlockPool(num_blocks, block_size, first_block)
        self.layers = tuple(layers)
        self._lengths: dict[int, int] = {}
        self._borrowed: dict[int, list[int]] = {}  # of each fork, the blocks of its request that it reads
        self._forks: dict[int, list[int]] = {}  # of each request that has some
        self._last_fork = 0  # forks are numbered downwards from -1, requests upwards from 1

    def length(self, request_id: int) -> int:
        """Return the number of tokens cached for this request; 0 if it is unknown."""
        return self._lengths.get(request_id, 0)

    def resize(self, lengths: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Give each (request id, num_tokens) exactly the blocks it needs. Return the block tables.

        Raises:
            BlocksExhausted: together they do not fit; nothing was changed.
        """
        pool = self.pool
        own_lengths = [(owner, num_tokens - self._num_borrowed(owner)) for owner, num_tokens in lengths]
        growth = [pool.num_blocks_for(num_tokens) - pool.num_owned(owner) for owner, num_tokens in own_lengths]
        if sum(growth) > pool.num_free:
            raise BlocksExhausted(lengths[growth.index(max(growth))][0], sum(growth), pool.num_free)
        for (owner, num_tokens), num_more in zip(own_lengths, growth, strict=True):
            if num_more < 0:
                pool.resize(owner, num_tokens)
        tables = [
            [*self._borrowed.get(owner, ()), *pool.resize(owner, num_tokens)] for owner, num_tokens in own_lengths
        ]
        self._lengths.update(lengths)
        return tables

    def fork(self, request_id: int, num_tokens: int) -> int:
        """Return the id of a new fork, which has the request's first `num_tokens` tokens cached.

        Raises:
            BlocksExhausted: no block is free for its copy; nothing was changed.
        """
        assert num_tokens <= self.length(request_id), f"{num_tokens} of {self.length(request_id)} tokens"
        num_full, num_more = divmod(num_tokens, self.pool.block_size)
        table, fork = self.pool.table(request_id), self._last_fork - 1
        for block in self.pool.resize(fork, num_more):
            self._copy(table[num_full], block)
        self._last_fork = fork
        self._borrowed[fork] = table[:num_full]
        self._lengths[fork] = num_tokens
        self._forks.setdefault(request_id, []).append(fork)
        return fork

    def adopt(self, request_id: int, fork: int) -> None:
        """Make one of the request's forks the request, and drop its others."""
        self._forks[request_id].remove(fork)
        self.drop_forks(request_id)
        num_kept = len(self._borrowed.pop(fork)) * self.pool.block_size
        self.pool.resize(request_id, num_kept)
        self.pool.hand_over(fork, request_id)
        self._lengths[request_id] = self._lengths.pop(fork)

    def drop_forks(self, request_id: int) -> None:
        """Free the blocks of all the request's forks; one without forks is ignored."""
        for fork in self._forks.pop(request_id, ()):
            self.pool.release(fork)
            del self._lengths[fork], self._borrowed[fork]

    def release(self, request_id: int) -> None:
        """Free the blocks of the request and its forks; an unknown request is ignored."""
        self.drop_forks(request_id)
        self.pool.release(request_id)
        self._lengths.pop(request_id, None)

    def release_all(self) -> None:
        """Free everything: a new epoch begins."""
        for owner in self.pool.owners - self._borrowed.keys():
            self.release(owner)

    def divide(self, num_parts: int) -> list[BlockTables]:
        """Return tables of as many equal parts of the blocks, with owners of their own. Nobody may have a block yet,
        and these tables are not used for any from now on."""
        assert not self.pool.owners, "nobody has a block yet"
        size = self.pool.num_blocks // num_parts
        return [_Part(self, part * size, size) for part in range(num_parts)]

    def _num_borrowed(self, owner: int) -> int:
        """Return the number of tokens in the blocks that a fork reads of its request."""
        return len(self._borrowed.get(owner, ())) * self.pool.block_size

    def _copy(self, source: int, target: int) -> None:
        """Copy the keys and values of a whole block; what holds them does it."""


class _Part(BlockTables):
    """A part of the blocks of other tables, which hold the keys and values."""

    def __init__(self, whole: BlockTables, first_block: int, num_blocks: int) -> None:
        super().__init__(whole.layers, num_blocks, whole.pool.block_size, first_block)
        self._whole = whole

    def _copy(self, source: int, target: int) -> None:
        self._whole._copy(source, target)
