"""The Triton programs of the layer kernels, for CUDA. Not yet run on a GPU: tested in Triton's interpreter.

The cache of a layer holds keys [num_blocks + 1, heads, block_size, key_dim], values likewise; the block after
the last is where rows of padding are stored. Offsets into it are 64-bit: a layer's cache passes 2^31 bytes soon.

A program is compiled again for arguments that are multiples of 16 and for those that are not, which takes a second in
the middle of serving. What differs from forward to forward is therefore exempted: where the parts of a plan lie, and
how wide its tables are.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize_on_alignment=["slots"])
def store_rows(
    key, value, keys, values, slots, key_stride, value_stride,
    HEADS: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEY_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    KEY_LANES: tl.constexpr, VALUE_LANES: tl.constexpr,
):  # fmt: skip
    """Program (row, head): copy one head's key and value, read at row * stride, to the row's slot.

    In attention a hidden token has probability 0, and 0 * NaN is NaN. So a value that is not finite is stored as
    zeros, and its key as NaN: every row that sees the token is lost, and no other.
    """
    row, head = tl.program_id(0), tl.program_id(1)
    slot = tl.load(slots + row)
    place = (slot // BLOCK_SIZE * HEADS + head) * BLOCK_SIZE + slot % BLOCK_SIZE
    d = tl.arange(0, VALUE_LANES)
    v = tl.load(value + row * value_stride + head * VALUE_DIM + d, mask=d < VALUE_DIM, other=0.0)
    wide = v.to(tl.float32)
    is_finite = tl.min((tl.abs(wide) < float("inf")).to(tl.int32), 0) > 0
    tl.store(values + place * VALUE_DIM + d, tl.where(is_finite, wide, 0.0).to(v.dtype), mask=d < VALUE_DIM)
    d = tl.arange(0, KEY_LANES)
    k = tl.load(key + row * key_stride + head * KEY_DIM + d, mask=d < KEY_DIM)
    k = tl.where(is_finite, k.to(tl.float32), float("nan")).to(k.dtype)
    tl.store(keys + place * KEY_DIM + d, k, mask=d < KEY_DIM)


@triton.jit(do_not_specialize=["table_stride"], do_not_specialize_on_alignment=["pieces", "tables"])
def attend_piece(
    query, keys, values, out, pieces, tables, query_stride, table_stride, scale,
    HEADS: tl.constexpr, GROUP: tl.constexpr, PART: tl.constexpr, BLOCK_SIZE: tl.constexpr, KEY_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, KEY_LANES: tl.constexpr,
    VALUE_LANES: tl.constexpr, IS_INTERPRETED: tl.constexpr,
):  # fmt: skip
    """Program (piece, key head and part): attend a piece's tokens, with PART of the GROUP query heads of the key head,
    to their request.

    A piece is (first row, tokens, its first token's number in the request); its blocks are in its row of
    `tables`. The matmul's rows are tokens x query heads, its columns KEYS cached tokens at a time, softmax is
    online in float32. What a row computes does not depend on other pieces.
    """
    piece, part = tl.program_id(0), tl.program_id(1)
    head = part // (GROUP // PART)
    first_row = tl.load(pieces + piece * 3)
    count = tl.load(pieces + piece * 3 + 1)
    start = tl.load(pieces + piece * 3 + 2)
    m = tl.arange(0, ROWS)
    token = m // PART
    is_query = token < count
    row = first_row + token
    query_head = part * PART + m % PART
    q = _load_vectors(query, row * query_stride + query_head * KEY_DIM, is_query, KEY_DIM, KEY_LANES, IS_INTERPRETED)
    largest = tl.full([ROWS], float("-inf"), tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    mixed = tl.zeros([ROWS, VALUE_LANES], tl.float32)
    # A piece of padding is all zeros, and the loop has no turn for it.
    for first in range(0, start + count, KEYS):
        token_id = first + tl.arange(0, KEYS)
        is_cached = token_id < start + count
        block = tl.load(tables + piece * table_stride + token_id // BLOCK_SIZE, mask=is_cached, other=0)
        place = (block * HEADS + head) * BLOCK_SIZE + token_id % BLOCK_SIZE
        k = _load_vectors(keys, place * KEY_DIM, is_cached, KEY_DIM, KEY_LANES, IS_INTERPRETED)
        v = _load_vectors(values, place * VALUE_DIM, is_cached, VALUE_DIM, VALUE_LANES, IS_INTERPRETED)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
        scores = tl.where(token_id[None, :] <= (start + token)[:, None], scores, float("-inf"))
        found = tl.maximum(largest, tl.max(scores, 1))
        shares = tl.exp(scores - found[:, None])
        factor = tl.exp(largest - found)
        total = total * factor + tl.sum(shares, 1)
        mixed = mixed * factor[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
        largest = found
    e = tl.arange(0, VALUE_LANES)
    total = tl.where(total == 0, 1.0, total)  # of a piece of padding
    tl.store(
        out + ((row * HEADS * GROUP + query_head) * VALUE_DIM)[:, None] + e[None, :],
        (mixed / total[:, None]).to(out.dtype.element_ty),
        mask=is_query[:, None] & (e < VALUE_DIM)[None, :],
    )


@triton.jit
def _load_vectors(
    base, places, is_there, SIZE: tl.constexpr, LANES: tl.constexpr, IS_INTERPRETED: tl.constexpr
):  # fmt: skip
    """Return [places, LANES]: SIZE numbers from each place on, zeros where there is none."""
    i = tl.arange(0, LANES)
    loaded = tl.load(base + places[:, None] + i[None, :], mask=is_there[:, None] & (i < SIZE)[None, :], other=0.0)
    if IS_INTERPRETED:  # the interpreter's dot takes no bfloat16
        loaded = loaded.to(tl.float32)
    return loaded


@triton.jit
def norm_row(
    x, residual, weight, out, x_stride, residual_stride, out_stride, eps, SIZE: tl.constexpr, LANES: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
):  # fmt: skip
    """Program (row): out = weight * rounded(h / sqrt(mean(h^2) + eps)), h = x, or residual + x, which is kept."""
    row = tl.program_id(0)
    i = tl.arange(0, LANES)
    inside = i < SIZE
    h = tl.load(x + row * x_stride + i, mask=inside, other=0.0)
    if HAS_RESIDUAL:
        at = residual + row * residual_stride + i
        h = (h.to(tl.float32) + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(h.dtype)
        tl.store(at, h, mask=inside)
    wide = h.to(tl.float32)
    normed = wide * (1 / tl.sqrt(tl.sum(wide * wide, 0) / SIZE + eps))
    gain = tl.load(weight + i, mask=inside, other=0.0)
    scaled = gain.to(tl.float32) * normed.to(h.dtype).to(tl.float32)
    tl.store(out + row * out_stride + i, scaled.to(h.dtype), mask=inside)


@triton.jit
def rotate_head(x, cos, sin, x_stride, DIM: tl.constexpr, LANES: tl.constexpr):
    """Program (row, head): rotate the two halves of a head in place; every product is rounded as in the model."""
    row, head = tl.program_id(0), tl.program_id(1)
    HALF: tl.constexpr = DIM // 2
    i = tl.arange(0, LANES)
    inside = i < HALF
    at = x + row * x_stride + head * DIM + i
    angles = row * DIM + i
    left, right = tl.load(at, mask=inside), tl.load(at + HALF, mask=inside)
    new_left = _times(left, tl.load(cos + angles, mask=inside)) - _times(right, tl.load(sin + angles, mask=inside))
    new_right = _times(right, tl.load(cos + angles + HALF, mask=inside)) + _times(
        left, tl.load(sin + angles + HALF, mask=inside)
    )
    tl.store(at, new_left.to(left.dtype), mask=inside)
    tl.store(at + HALF, new_right.to(left.dtype), mask=inside)


@triton.jit
def _times(a, b):
    """Return a * b, rounded to their dtype, as float32."""
    return (a.to(tl.float32) * b.to(tl.float32)).to(a.dtype).to(tl.float32)


@triton.jit
def gate_row(gate_up, out, stride, SIZE: tl.constexpr, LANES: tl.constexpr):
    """Program (row, part): silu(gate) * up for LANES columns."""
    row = tl.program_id(0)
    i = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = i < SIZE
    gate = tl.load(gate_up + row * stride + i, mask=inside, other=0.0)
    up = tl.load(gate_up + row * stride + SIZE + i, mask=inside, other=0.0)
    wide = gate.to(tl.float32)
    silu = (wide / (1 + tl.exp(-wide))).to(gate.dtype)
    tl.store(out + row * SIZE + i, (silu.to(tl.float32) * up.to(tl.float32)).to(gate.dtype), mask=inside)
