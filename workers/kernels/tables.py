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
    blocks: np.ndarray  # int64 [num_blocks], block ids from the request's first token on

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)


class BlockTables:
    """The owners of the blocks, in `pool`, and the number of tokens that each has cached."""

    def __init__(self, layers: Sequence[LayerShape], num_blocks: int, block_size: int) -> None:
        self.pool = BlockPool(num_blocks, block_size)
        self.layers = tuple(layers)
        self._lengths: dict[int, int] = {}

    def length(self, request_id: int) -> int:
        """Return the number of tokens cached for this request; 0 if it is unknown."""
        return self._lengths.get(request_id, 0)

    def resize(self, lengths: Sequence[tuple[int, int]]) -> list[list[int]]:
        """Give each (request id, num_tokens) exactly the blocks it needs. Return the block tables.

        Raises:
            BlocksExhausted: together they do not fit; nothing was changed.
        """
        pool = self.pool
        growth = [pool.num_blocks_for(num_tokens) - pool.num_owned(owner) for owner, num_tokens in lengths]
        if sum(growth) > pool.num_free:
            raise BlocksExhausted(lengths[growth.index(max(growth))][0], sum(growth), pool.num_free)
        freed: list[int] = []
        for (owner, num_tokens), num_more in zip(lengths, growth, strict=True):
            if num_more < 0:
                freed.extend(pool.table(owner)[num_more:])
                pool.resize(owner, num_tokens)
        self._clear(freed)
        tables = [pool.resize(owner, num_tokens) for owner, num_tokens in lengths]
        self._lengths.update(lengths)
        return tables

    def release(self, request_id: int) -> None:
        """Free the request's blocks; an unknown request is ignored."""
        self._clear(self.pool.table(request_id))
        self.pool.release(request_id)
        self._lengths.pop(request_id, None)

    def release_all(self) -> None:
        """Free everything: a new epoch begins."""
        for request_id in self.pool.owners:
            self.release(request_id)

    def _clear(self, blocks: Sequence[int]) -> None:
        """Blocks are free now; a cache whose free blocks must be zeros clears them."""
