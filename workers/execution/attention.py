"""Attention of one packed forward over the paged cache: which rows belong together, and the matmuls.

A forward packs the tokens of many requests into one row of length T. Neighbouring requests with the
same number of query tokens form a *group*: their cached blocks are gathered, padded to the longest,
and attended by one batched matmul per side. Query heads that share a key head are folded into the
query length, so keys and values are never expanded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from minedraft_workers.execution.kvcache import KVCache, to_device
from minedraft_workers.execution.tables import LayerShape

# The name under which transformers' models find `attend`. No mask function is registered for it, so that
# the models build no mask: `attend` knows which tokens are visible.
ATTENTION_NAME = "minedraft_paged"
# The keyword under which the models' own forward passes the context to `attend`.
CONTEXT_KEYWORD = "minedraft_context"
# Longer spans are attended in pieces: the scores stay in cache, and early pieces skip late keys.
MAX_QUERY_LEN = 64
# Padding, in blocks, that costs as much as the dozen operator calls of one more group.
_MAX_PADDING_BLOCKS = 12


@dataclass(frozen=True, slots=True)
class QuerySpan:
    """`num_tokens` consecutive query rows of one request; the first is its token number `start`."""

    start: int
    num_tokens: int
    blocks: np.ndarray  # int64 [num_blocks], block ids from the request's first token on

    @property
    def num_blocks(self) -> int:
        return len(self.blocks)


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
    bias: 0 or -inf, [batch, 1, num_keys] for one query token per request, else
    [num_seqs, 1, query_len, 1, num_keys].
    """

    rows: torch.Tensor
    bias: torch.Tensor
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
        self.num_attended = 0  # layers that have called `attend` in this forward
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
        self.cache.token_keys[layer_id].index_copy_(0, rows, key.reshape(-1, shape.key_dim))
        self.cache.token_values[layer_id].index_copy_(0, rows, value.reshape(-1, shape.value_dim))

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
        bias = torch.zeros(is_hidden.shape, dtype=self.cache.keys[0].dtype, device=starts.device)
        bias.masked_fill_(is_hidden, -torch.inf)  # [num_seqs, query_len, num_keys]
        bias = bias.repeat_interleave(shape.num_heads, 0) if group.query_len == 1 else bias[:, None, :, None, :]
        batch = len(group.spans) * shape.num_heads
        key_buffer = self.scratch.get("keys", rows.size, block_size * shape.key_dim, bias)
        value_buffer = self.scratch.get("values", rows.size, block_size * shape.value_dim, bias)
        return GroupTensors(
            rows=self._to_device(rows.reshape(-1)),
            bias=bias,
            key_buffer=key_buffer,
            value_buffer=value_buffer,
            keys=key_buffer.view(batch, -1, shape.key_dim).transpose(1, 2),
            values=value_buffer.view(batch, -1, shape.value_dim),
        )

    def _to_device(self, array: np.ndarray) -> torch.Tensor:
        return to_device(array, self.cache.keys[0].device)


class ShapeRecorder:
    """Replaces the context in a first forward: records what each layer would cache, and attends to nothing."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerShape] = {}
        self.specials: set[str] = set()  # what layers ask for beside plain causal attention
        self.num_attended = 0


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **kwargs: Any,  # noqa: ANN401 - other arguments of transformers
) -> tuple[torch.Tensor, None]:
    """Return the attention output of the packed new tokens; transformers calls it in every layer.

    It stores keys and values first, then attends each request's queries to its own cached tokens. query is
    [1, num_heads, T, dim], key and value are [1, num_kv_heads, T, dim], the result [1, T, num_heads, value_dim].
    """
    context = kwargs[CONTEXT_KEYWORD]
    layer_id: int = module.layer_idx  # type: ignore[assignment]
    if attention_mask is not None or s_aux is not None:
        raise NotImplementedError("attention masks and sinks")
    context.num_attended += 1
    num_tokens, num_heads = query.shape[2], query.shape[1]
    num_kv_heads, value_dim = value.shape[1], value.shape[3]
    if isinstance(context, ShapeRecorder):
        context.layers[layer_id] = LayerShape(num_kv_heads, key.shape[3], value_dim)
        if sliding_window:
            context.specials.add("a sliding window")
        if softcap is not None:
            context.specials.add("a soft cap")
        return query.new_zeros(1, num_tokens, num_heads, value_dim), None

    context.write(layer_id, key[0].transpose(0, 1), value[0].transpose(0, 1))
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    queries = query[0].transpose(0, 1)  # [T, num_heads, dim]
    out = queries.new_empty(num_tokens, num_heads, value_dim)
    cache = context.cache
    for group, tensors in context.plan(layer_id, sliding_window or 0):
        rows = slice(group.first_row, group.first_row + group.num_rows)
        tensors.gather(cache.keys[layer_id], cache.values[layer_id])
        if group.query_len == 1 and softcap is None:
            _attend_single(queries[rows], tensors, scale, out[rows])
        else:
            _attend_group(queries[rows], len(group.spans), tensors, scale, softcap, out[rows])
    return out[None], None


def _attend_single(queries: torch.Tensor, tensors: GroupTensors, scale: float, out: torch.Tensor) -> None:
    """Attend one query token per request to the gathered keys and values: `queries` [num_seqs, num_heads,
    key_dim] -> `out` [num_seqs, num_heads, value_dim]."""
    batch, key_dim, _ = tensors.keys.shape
    folded = queries.reshape(batch, -1, key_dim)
    scores = torch.baddbmm(tensors.bias, folded, tensors.keys, alpha=scale)
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
    if query_len == 1:
        scores.add_(tensors.bias)
    else:
        scores.view(num_seqs, num_kv_heads, query_len, num_shared, num_keys).add_(tensors.bias)
    mixed = torch.bmm(_softmax(scores), tensors.values)
    mixed = mixed.view(num_seqs, num_kv_heads, query_len, num_shared, -1)
    out.view(num_seqs, query_len, num_kv_heads, num_shared, -1).copy_(mixed.transpose(1, 2))


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)


def pack_order(spans: Sequence[QuerySpan]) -> list[int]:
    """Return the order in which to pack spans so that spans attended together are neighbours."""
    return sorted(range(len(spans)), key=lambda i: (spans[i].num_tokens, -spans[i].num_blocks))


def _pieces(span: QuerySpan, block_size: int) -> Iterator[QuerySpan]:
    end = span.start + span.num_tokens
    for start in range(span.start, end, MAX_QUERY_LEN):
        num_tokens = min(MAX_QUERY_LEN, end - start)
        yield QuerySpan(start, num_tokens, span.blocks[: -(-(start + num_tokens) // block_size)])


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
