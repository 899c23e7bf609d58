"""Attention of one packed forward over the paged cache: which rows belong together, and the matmuls.

A forward packs the tokens of many requests into one row of length T. Neighbouring requests with the
same number of query tokens form a *group*: their cached blocks are gathered, padded to the longest,
and attended by one batched matmul per side. Query heads that share a key head are folded into the
query length, so keys and values are never expanded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from minedraft_workers.kernels.kvcache import KVCache, storable, to_device
from minedraft_workers.kernels.tables import LayerShape, QuerySpan

# Longer spans are attended in pieces: the scores stay in cache, and early pieces skip late keys.
MAX_QUERY_LEN = 64
# Padding, in blocks, that costs as much as the dozen operator calls of one more group.
_MAX_PADDING_BLOCKS = 12


@dataclass(frozen=True, slots=True)
class Group:
    """Consecutive spans of equal query length, attended together."""

    first_row: int
    spans: tuple[QuerySpan, ...]

    @property
    def query_len(self) -> int:
        return self.spans[0].num_tokens

    @property
    def num_rows(self) -> int:
        return self.query_len * len(self.spans)


@dataclass(frozen=True, slots=True)
class GroupTensors:
    """The tensors that the matmuls of a group read, the same for all layers of one shape and window.

    rows: int64 [batch * num_blocks], the cache rows to gather; batch = num_seqs * num_kv_heads.
    key_buffer, value_buffer: [batch * num_blocks, block_size * dim], filled anew by each layer;
    keys [batch, key_dim, num_keys] and values [batch, num_keys, value_dim] are views of the same memory.
    is_hidden: bool, [batch, 1, num_keys] for one query token per request, else [num_seqs, 1, query_len, 1, num_keys].
        The key of a token that is hidden may be anything.
    """

    rows: torch.Tensor
    is_hidden: torch.Tensor
    key_buffer: torch.Tensor
    value_buffer: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor

    def gather(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Fill the buffers from a layer's cache: keys and values [cache rows, block_size * dim]."""
        torch.index_select(keys, 0, self.rows, out=self.key_buffer)
        torch.index_select(values, 0, self.rows, out=self.value_buffer)


@dataclass(slots=True)
class Scratch:
    """Memory reused by every gather of one executor: fresh large buffers cost page faults each time."""

    buffers: dict[str, torch.Tensor] = field(default_factory=dict)

    def get(self, name: str, num_rows: int, width: int, like: torch.Tensor) -> torch.Tensor:
        """Return an uninitialised [num_rows, width] of `like`'s dtype and device, valid until the next call."""
        buffer = self.buffers.get(name)
        if buffer is None or buffer.numel() < num_rows * width:
            buffer = self.buffers[name] = like.new_empty(num_rows * width * 5 // 4)
        return buffer[: num_rows * width].view(num_rows, width)


class ForwardContext:
    """Everything that attention must know about one packed forward; made anew for each forward.

    Index tensors are built once for each kind of layer (key heads, window), not for each layer.
    """

    def __init__(self, cache: KVCache, scratch: Scratch, spans: Sequence[QuerySpan]) -> None:
        self.cache = cache
        self.scratch = scratch
        self._groups = _group([piece for span in spans for piece in _pieces(span, cache.pool.block_size)])
        self._slots = np.concatenate([_slots(span, cache.pool.block_size) for span in spans])
        self._write_rows: dict[int, torch.Tensor] = {}
        self._plans: dict[tuple[LayerShape, int], list[tuple[Group, GroupTensors]]] = {}

    def write(self, layer_id: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store the keys and values, [T, num_kv_heads, dim], of the packed tokens."""
        shape = self.cache.layers[layer_id]
        rows = self._write_rows.get(shape.num_heads)
        if rows is None:
            rows = self._write_rows[shape.num_heads] = self._make_write_rows(shape.num_heads)
        keys, values = storable(key.reshape(-1, shape.key_dim), value.reshape(-1, shape.value_dim))
        self.cache.token_keys[layer_id].index_copy_(0, rows, keys)
        self.cache.token_values[layer_id].index_copy_(0, rows, values)

    def plan(self, layer_id: int, window: int) -> list[tuple[Group, GroupTensors]]:
        """Return the groups with their tensors, for a layer whose tokens see `window` tokens (0 = all)."""
        shape = self.cache.layers[layer_id]
        plan = self._plans.get((shape, window))
        if plan is None:
            plan = [(group, self._make_tensors(group, shape, window)) for group in self._groups]
            self._plans[shape, window] = plan
        return plan

    def _make_write_rows(self, num_heads: int) -> torch.Tensor:
        block_size = self.cache.pool.block_size
        blocks, offsets = np.divmod(self._slots, block_size)
        heads = np.arange(num_heads)
        rows = (blocks[:, None] * num_heads + heads) * block_size + offsets[:, None]
        return self._to_device(rows.reshape(-1))

    def _make_tensors(self, group: Group, shape: LayerShape, window: int) -> GroupTensors:
        block_size = self.cache.pool.block_size
        first_blocks = [max(0, span.start - window + 1) // block_size if window else 0 for span in group.spans]
        num_blocks = max(span.num_blocks - first for span, first in zip(group.spans, first_blocks, strict=True))
        blocks = np.full((len(group.spans), num_blocks), self.cache.padding_block)
        for row, (span, first) in enumerate(zip(group.spans, first_blocks, strict=True)):
            blocks[row, : span.num_blocks - first] = span.blocks[first:]
        rows = blocks[:, None, :] * shape.num_heads + np.arange(shape.num_heads)[None, :, None]

        starts = self._to_device(np.array([span.start for span in group.spans]))
        key_starts = self._to_device(np.array(first_blocks) * block_size)
        steps = torch.arange(max(num_blocks * block_size, group.query_len), device=starts.device)
        query_ids = starts[:, None] + steps[: group.query_len]
        key_ids = key_starts[:, None] + steps[: num_blocks * block_size]
        is_hidden = key_ids[:, None, :] > query_ids[:, :, None]
        if window:
            is_hidden |= key_ids[:, None, :] <= query_ids[:, :, None] - window
        if group.query_len == 1:
            is_hidden = is_hidden.repeat_interleave(shape.num_heads, 0)
        else:
            is_hidden = is_hidden[:, None, :, None, :]
        batch = len(group.spans) * shape.num_heads
        like = self.cache.keys[0]
        key_buffer = self.scratch.get("keys", rows.size, block_size * shape.key_dim, like)
        value_buffer = self.scratch.get("values", rows.size, block_size * shape.value_dim, like)
        return GroupTensors(
            rows=self._to_device(rows.reshape(-1)),
            is_hidden=is_hidden,
            key_buffer=key_buffer,
            value_buffer=value_buffer,
            keys=key_buffer.view(batch, -1, shape.key_dim).transpose(1, 2),
            values=value_buffer.view(batch, -1, shape.value_dim),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.cache.keys[0].device)


def attend_paged(
    context: ForwardContext,
    layer_id: int,
    queries: torch.Tensor,
    scale: float,
    *,
    window: int = 0,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attend the packed queries, [T, num_heads, key_dim], to their own requests' cached tokens up to their own.

    Args:
        scale: factor of the scores. window: tokens that each sees (0 = all).
        softcap: bound that tanh squashes the scores to; None for no bound.

    Returns:
        [T, num_heads, value_dim].
    """
    cache = context.cache
    out = queries.new_empty(*queries.shape[:2], cache.layers[layer_id].value_dim)
    for group, tensors in context.plan(layer_id, window):
        rows = slice(group.first_row, group.first_row + group.num_rows)
        tensors.gather(cache.keys[layer_id], cache.values[layer_id])
        if group.query_len == 1 and softcap is None:
            _attend_single(queries[rows], tensors, scale, out[rows])
        else:
            _attend_group(queries[rows], len(group.spans), tensors, scale, softcap, out[rows])
    return out


def _attend_single(queries: torch.Tensor, tensors: GroupTensors, scale: float, out: torch.Tensor) -> None:
    """Attend one query token per request to the gathered keys and values: `queries` [num_seqs, num_heads,
    key_dim] -> `out` [num_seqs, num_heads, value_dim]."""
    batch, key_dim, _ = tensors.keys.shape
    folded = queries.reshape(batch, -1, key_dim)
    scores = torch.bmm(folded, tensors.keys).mul_(scale).masked_fill_(tensors.is_hidden, -torch.inf)
    torch.bmm(_softmax(scores), tensors.values, out=out.view(batch, -1, tensors.values.shape[2]))


def _attend_group(
    queries: torch.Tensor,
    num_seqs: int,
    tensors: GroupTensors,
    scale: float,
    softcap: float | None,
    out: torch.Tensor,
) -> None:
    """Attend a group's query tokens to the gathered keys and values.

    The query heads that share a key head are folded into the query length: a batch of `num_seqs` *
    num_kv_heads matrices, [query_len * num_shared, key_dim] each.

    Args:
        queries: [num_seqs * query_len, num_heads, key_dim].
        num_seqs: requests of the group.
        scale: factor of the scores. softcap: bound that tanh squashes the scores to; None for no bound.
        out: [num_seqs * query_len, num_heads, value_dim], filled.
    """
    batch, key_dim, num_keys = tensors.keys.shape
    num_rows, num_heads, _ = queries.shape
    query_len, num_kv_heads = num_rows // num_seqs, batch // num_seqs
    num_shared = num_heads // num_kv_heads
    parted = queries.view(num_seqs, query_len, num_kv_heads, num_shared, key_dim)
    folded = parted.transpose(1, 2).reshape(batch, query_len * num_shared, key_dim)
    scores = torch.bmm(folded, tensors.keys).mul_(scale)
    if softcap is not None:
        scores.div_(softcap).tanh_().mul_(softcap)
    if query_len > 1:
        scores = scores.view(num_seqs, num_kv_heads, query_len, num_shared, num_keys)
    scores = scores.masked_fill_(tensors.is_hidden, -torch.inf).view(batch, -1, num_keys)
    mixed = torch.bmm(_softmax(scores), tensors.values)
    mixed = mixed.view(num_seqs, num_kv_heads, query_len, num_shared, -1)
    out.view(num_seqs, query_len, num_kv_heads, num_shared, -1).copy_(mixed.transpose(1, 2))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def _pieces(span: QuerySpan, block_size: int) -> Iterator[QuerySpan]:
    end = span.start + span.num_tokens
    for start in range(span.start, end, MAX_QUERY_LEN):
        num_tokens = min(MAX_QUERY_LEN, end - start)
        yield QuerySpan(start, num_tokens, span.table[: -(-(start + num_tokens) // block_size)])


def _group(spans: Sequence[QuerySpan]) -> list[Group]:
    groups: list[Group] = []
    first_row, members, num_padding = 0, [spans[0]], 0
    for span in spans[1:]:
        num_padding += abs(members[0].num_blocks - span.num_blocks)
        is_long = span.num_tokens > MAX_QUERY_LEN // 4
        if span.num_tokens != members[0].num_tokens or is_long or num_padding > _MAX_PADDING_BLOCKS:
            groups.append(Group(first_row, tuple(members)))
            first_row, members, num_padding = first_row + groups[-1].num_rows, [], 0
        members.append(span)
    return [*groups, Group(first_row, tuple(members))]


def _slots(span: QuerySpan, block_size: int) -> np.ndarray:
    token_ids = np.arange(span.start, span.start + span.num_tokens)
    return span.blocks[token_ids // block_size] * block_size + token_ids % block_size
