"""Calls every kernel with arguments drawn at random, some of them broken: `fuzz.py LIBRARY ROUNDS`.

With 0 rounds it writes beyond a tensor, past all checks, to show that this is found.

Run under the sanitizers. Each tensor has just the memory it needs, from torch's allocator, so that one
number too many is found. Broken arguments must be refused by the Python side; the others must compute.
"""

from __future__ import annotations

import random
import sys
from itertools import product
from pathlib import Path
from typing import Any

import torch

from minedraft.errors import ConfigError, InternalError
from minedraft_workers.native.choosing import ChoiceRequest, ChoiceRule, ChoosingKernels, LogitRows
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import ISAS, load_library
from minedraft_workers.native.tensors import LayerCache, SpanPlan

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def matrix(rng: random.Random, rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """Of the given size or, one time in thirty, of another one; sometimes a part of a wider matrix."""
    if rng.random() < 0.033:
        rows, columns = max(0, rows + rng.randint(-1, 1)), max(0, columns + rng.randint(-1, 1))
    left, right = rng.choice([(0, 0), (3, 5)])
    whole = torch.ones(rows * (left + columns + right), dtype=dtype).view(rows, left + columns + right)
    return whole[:, left : left + columns]


def linear(kernels: NativeKernels, rng: random.Random) -> None:
    num_out, num_in, rows = (
        rng.randint(1, 100),
        rng.randint(1, 70),
        rng.choice([rng.randint(0, 30), rng.randint(0, 130)]),
    )
    bias = torch.ones(num_out) if rng.random() < 0.5 else None
    stored, computed = rng.choice([*((dtype, torch.float32) for dtype in DTYPES), (torch.bfloat16, torch.bfloat16)])
    packed = kernels.pack(torch.ones(num_out, num_in, dtype=stored), bias)
    x = matrix(rng, rows, num_in, computed)
    as_float32 = rng.random() < 0.3
    dtype = torch.float32 if as_float32 else x.dtype
    kernels.linear(x, packed, matrix(rng, rows, num_out, dtype), as_float32=as_float32)
    kernels.rows(packed, torch.tensor([rng.randint(-(rng.random() < 0.1), num_out - 1) for _ in range(3)]))


def small(kernels: NativeKernels, rng: random.Random) -> None:
    rows, size, dtype = rng.randint(0, 20), rng.randint(1, 70), rng.choice(DTYPES if rng.random() < 0.1 else DTYPES[:2])
    residual = matrix(rng, rows, size, dtype) if rng.random() < 0.5 else None
    weight = torch.ones(size + (rng.random() < 0.033), dtype=dtype)
    kernels.rms_norm(matrix(rng, rows, size, dtype), weight, 1e-5, residual, matrix(rng, rows, size, dtype))
    kernels.silu_mul(matrix(rng, rows, 2 * size, dtype), matrix(rng, rows, size, dtype))
    kernels.argmax(matrix(rng, rows, size, dtype))
    dim, heads = rng.randint(1, 40) * 2 - (rng.random() < 0.1), rng.randint(1, 3)
    angles = [matrix(rng, rows, dim, dtype) for _ in range(2)]
    kernels.rope_(matrix(rng, rows, heads * dim, dtype), *angles)


def attention(kernels: NativeKernels, rng: random.Random) -> None:
    heads, group, block_size = rng.randint(1, 3), rng.randint(1, 14), rng.choice([1, 5, 16, 20, 32])
    dims = [rng.choice([16, 32, 48, 80, 64 + (rng.random() < 0.1)]) for _ in range(2)]
    dtype, num_blocks = rng.choice(DTYPES[:2]), 400 // block_size + 4
    sides = [
        torch.zeros(LayerCache.num_elements(num_blocks, block_size, heads, dim) - (rng.random() < 0.05), dtype=dtype)
        for dim in dims
    ]
    cache = LayerCache(*sides, num_blocks, block_size, heads, *dims)
    starts = [rng.choice([0, 0, rng.randint(0, 280)]) for _ in range(rng.randint(0, 4))]
    lengths = [rng.choice([1, 4, rng.randint(1, 40), rng.randint(0, 40)]) for _ in starts]
    tables = [
        [rng.randint(0, num_blocks - (rng.random() < 0.999)) for _ in range(-(-(start + rows) // block_size))]
        for start, rows in zip(starts, lengths, strict=True)
    ]
    plan = SpanPlan.make(starts, lengths, tables, num_blocks=num_blocks, block_size=block_size)
    key, value = (matrix(rng, sum(lengths), heads * dim, dtype) for dim in dims)
    kernels.store(cache, key, value, plan)
    query = matrix(rng, sum(lengths), heads * group * dims[0], dtype)
    kernels.attend(cache, query, plan, 0.1, matrix(rng, sum(lengths), heads * group * dims[1], dtype))


def choosing(kernels: ChoosingKernels, rng: random.Random) -> None:
    columns, dtype = rng.choice([1, 5, 127, 128, 129, 400]), rng.choice(DTYPES) if rng.random() < 0.03 else DTYPES[0]
    requests = []
    for _ in range(rng.randint(0, 4)):
        num_drafts = rng.choice([0, 0, 1, 3])
        logits = matrix(rng, num_drafts + 1, columns, dtype)
        logits += rng.choice([0.0, 1.0]) * torch.linspace(0, 9, logits.shape[1])
        q_len = rng.choice([1, 5, 1024 + (rng.random() < 0.1)])
        q = [matrix(rng, num_drafts, q_len, dtype).contiguous() for dtype in (torch.int32, torch.float32)]
        request = ChoiceRequest(
            LogitRows(logits),
            -(rng.random() < 0.03),
            rng.choice([ChoiceRule.PROPOSE] if not num_drafts else list(ChoiceRule)[:3]),
            rng.randrange(2**63),
            rng.randrange(2**31),
            [rng.randint(-1, columns + 1) for _ in range(num_drafts)],
            rng.choice([1e-30, 1.0, 100.0, 0.0 if rng.random() < 0.03 else 0.5]),
            rng.choice([0, 1, 100, 2**20]),
            rng.choice([0.1, 0.999, 1.0]),
            rng.choice([0.0, 0.1, 1.0]),
        )
        if rng.random() < 0.5:
            request.q_ids, request.q_probs = q
        requests.append(request)
    hashes = torch.zeros(columns + (rng.random() < 0.03), dtype=torch.int32)
    kernels.choose(requests, hashes, rng.choice([1, 4, 129, 1025 if rng.random() < 0.03 else 32]))


def main() -> None:
    library, rounds = load_library(Path(sys.argv[1])), int(sys.argv[2])
    kinds: tuple[tuple[Any, ...], ...] = ((NativeKernels, linear, small, attention), (ChoosingKernels, choosing))
    num_done = num_refused = 0
    if not rounds:
        kernels, weight, too_short = NativeKernels("scalar", 1, library), torch.ones(40, 16), torch.zeros(40 * 16)
        library.pack(kernels.pool.handle, weight.data_ptr(), 0, 40, 16, too_short.data_ptr())
    for isa, num_threads, (kind, *kind_calls) in product(ISAS, (1, 3), kinds):
        try:
            kernels = kind(isa, num_threads, library)
        except ConfigError as error:
            sys.stdout.write(f"{isa}: {error}\n")
            continue
        for seed, call in product(range(rounds), kind_calls):
            try:
                call(kernels, random.Random(f"{isa} {num_threads} {seed}"))
                num_done += 1
            except InternalError:
                num_refused += 1
    assert num_done > num_refused > 0, (num_done, num_refused)
    sys.stdout.write(f"refused {num_refused}, computed {num_done}\n")


if __name__ == "__main__":
    main()
