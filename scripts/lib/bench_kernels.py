"""Microseconds a native kernel takes, against what memory and arithmetic of this core allow, and against torch."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Column, Table

from minedraft.bench.report import machine_facts

if TYPE_CHECKING:
    import torch

    from minedraft_workers.native.kernels import NativeKernels
    from minedraft_workers.native.tensors import LayerCache, SpanPlan

# out x in: SmolLM2-135M (output, q/k/v, gate and up, down, logits), then Qwen2.5-1.5B (gate, down, q/k/v).
SHAPES = ((576, 576), (960, 576), (3072, 576), (576, 1536), (49152, 576), (8960, 1536), (1536, 8960), (2048, 1536))
ROWS = (1, 2, 4, 5, 8, 16, 32, 256)
CONTEXTS = (128, 1024, 2048)
# (name, key heads, query heads of each, dimensions) of the two models.
HEADS = (("SmolLM2", 3, 3, 64), ("Qwen", 2, 6, 128))
NUM_SEQUENCES = 8
# Copies of a weight, or of a layer's cache, that a measurement goes through: more than the caches hold.
TOUCHED_BYTES = 96 << 20
MIN_SECONDS = 0.01


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--core", default=0, show_default=True, help="The core to run on.")
@click.option("--isa", default="auto", show_default=True, help="auto, amx_bf16, avx512_bf16, avx512, avx2 or scalar.")
@click.option("--against", default=None, help="Another instruction set, measured in turns with the first.")
@click.option("--dtype", default="bfloat16", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--repeat", default=5, show_default=True, help="Measurements of each; the median counts.")
@click.option("--only", default="all", show_default=True, type=click.Choice(["all", "linear", "attention", "rows"]))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output, for machines.")
def main(core: int, isa: str, against: str | None, dtype: str, repeat: int, only: str, as_json: bool) -> None:
    """Measure the native kernels one by one, on one core.

    \b
    floor   the longer of reading the weights (or keys and values) once, at the speed of a plain read of
            huge pages, and the multiplications, at the speed of a large matmul; both measured here
    ratio   measured / floor; 1 is perfect
    against the same with the instruction set of --against (not for the small kernels)
    torch   the same by torch: oneDNN's packed linear; for attention, gather and two batched matmuls
    \b
    Times are of the thread, so another process on the core does not count; what it takes of the memory's
    speed does. Every measurement goes through enough copies that nothing is left in the caches from the call before.
    float32 keeps its weights in bfloat16, which its floor counts.

    \b
    Examples:
      scripts/bench/kernels
      scripts/bench/kernels --core 0 --dtype float32 --only linear
      scripts/bench/kernels --isa avx512_bf16 --against amx_bf16
    """
    os.sched_setaffinity(0, {core})
    import torch

    from minedraft_workers.native.kernels import NativeKernels

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(0)
    kernels = [NativeKernels(name) for name in (isa, against) if name is not None]
    console = Console(stderr=as_json)
    result: dict[str, Any] = {
        "isa": kernels[0].isa,
        "dtype": dtype,
        "load": os.getloadavg()[0],
        "cpu": machine_facts()["cpu"],
    }
    torch_dtype = getattr(torch, dtype)
    with console.status("measuring the floor"):
        limits = measure_limits(torch_dtype)
    result.update(limits)
    if against is not None:
        result["against"] = against
    names = " against ".join(each.isa for each in kernels)
    title = f"{names}, {dtype}: {limits['read_gb_per_s']:.1f} GB/s, {limits['gflop_per_s']:.0f} GFLOP/s"
    for name, measure in (("linear", bench_linear), ("attention", bench_attention), ("rows", bench_rows)):
        if only in ("all", name):
            with console.status(name):
                result[name] = list(measure(kernels, torch_dtype, limits, repeat))
            console.print(as_table(f"{name}, {title}", result[name]))
    if as_json:
        click.echo(json.dumps(result))


def bench_linear(
    contestants: Sequence[NativeKernels], dtype: torch.dtype, limits: dict[str, float], repeat: int
) -> Iterable[dict[str, Any]]:
    import torch

    for num_out, num_in in SHAPES:
        weight = (torch.randn(num_out, num_in) * num_in**-0.5).bfloat16()
        num_bytes = weight.nbytes
        copies = max(1, TOUCHED_BYTES // num_bytes)
        packed = [[kernels.pack(weight) for _ in range(copies)] for kernels in contestants]
        theirs = [pack_for_torch(weight.to(dtype)) for _ in range(max(1, copies * 2 // dtype.itemsize))]
        for num_rows in ROWS:
            x = torch.randn(num_rows, num_in).to(dtype)
            out = torch.empty(num_rows, num_out, dtype=dtype)
            flop = 2 * num_rows * num_out * num_in
            floor = max(num_bytes / limits["read_gb_per_s"], flop / limits["gflop_per_s"]) / 1e3
            calls = [
                [partial(kernels.linear, x, weight, out) for weight in weights]
                for kernels, weights in zip(contestants, packed, strict=True)
            ]
            torch_calls = [partial(linear, x) for linear in theirs]
            ours_us, *against_us, theirs_us = interleaved([*calls, torch_calls], repeat)
            yield {
                "what": f"{num_out} x {num_in}",
                "rows": num_rows,
                "us": ours_us,
                "gb_per_s": num_bytes / ours_us / 1e3,
                "gflop_per_s": flop / ours_us / 1e3,
                "floor_us": floor,
                "ratio": ours_us / floor,
                "torch_us": theirs_us,
                **as_column(against_us),
            }


def bench_attention(
    contestants: Sequence[NativeKernels], dtype: torch.dtype, limits: dict[str, float], repeat: int
) -> Iterable[dict[str, Any]]:
    """One layer's attention, of 8 sequences with 1 and 4 new rows each, and of one chunk of 256 rows."""
    import torch

    for name, heads, group, dim in HEADS:
        for context in CONTEXTS:
            for num_sequences, rows in ((NUM_SEQUENCES, 1), (NUM_SEQUENCES, 4), (1, 256)):
                tokens = num_sequences * (context + rows)
                num_bytes = tokens * heads * dim * 2 * dtype.itemsize
                flop = 4 * dim * heads * group * rows * num_sequences * (context + rows / 2)
                floor = max(num_bytes / limits["read_gb_per_s"], flop / limits["gflop_per_s"]) / 1e3
                layers = max(1, TOUCHED_BYTES // num_bytes)
                plan, caches = make_caches(num_sequences, context, rows, heads, dim, dtype, layers)
                query = torch.randn(num_sequences * rows, heads * group * dim).to(dtype)
                out = torch.empty_like(query)
                calls = [
                    [partial(kernels.attend, cache, query, plan, dim**-0.5, out) for cache in caches]
                    for kernels in contestants
                ]
                torch_calls = torch_attention(query, plan, caches, context, rows, group)
                ours_us, *against_us, theirs_us = interleaved([*calls, torch_calls], repeat)
                yield {
                    "what": f"{name}: {num_sequences} x {context} tokens",
                    "rows": rows,
                    "us": ours_us,
                    "gb_per_s": num_bytes / ours_us / 1e3,
                    "gflop_per_s": flop / ours_us / 1e3,
                    "floor_us": floor,
                    "ratio": ours_us / floor,
                    "torch_us": theirs_us,
                    **as_column(against_us),
                }


def bench_rows(
    contestants: Sequence[NativeKernels], dtype: torch.dtype, limits: dict[str, float], repeat: int
) -> Iterable[dict[str, Any]]:
    """The small kernels of a SmolLM2 layer; their data stays in the caches, as it does in a forward."""
    import torch

    kernels = contestants[0]

    gain = torch.randn(576).to(dtype)
    for num_rows in (1, 8, 32, 256):
        x, residual = torch.randn(2, num_rows, 576).to(dtype)
        qkv, gate_up = torch.randn(num_rows, 960).to(dtype), torch.randn(num_rows, 3072).to(dtype)
        # They are turned again and again: numbers that shrink by it would become subnormal, which are slow.
        angles = (6 * torch.rand(num_rows, 32)).repeat(1, 2)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        logits = torch.randn(num_rows, 49152).to(dtype)
        plan, (cache, *_) = make_caches(num_rows, 15, 1, 3, 64, dtype, 1)
        out, act = torch.empty_like(x), torch.empty(num_rows, 1536, dtype=dtype)
        key, value = qkv[:, 576:768], qkv[:, 768:]
        cases: list[tuple[str, Callable[[], object], Callable[[], object]]] = [
            (
                "residual and norm",
                partial(kernels.rms_norm, x, gain, 1e-5, residual, out),
                partial(torch_norm, x, gain, residual),
            ),
            ("rotary, 12 heads", partial(kernels.rope_, qkv[:, :768], cos, sin), partial(torch_rope, qkv, cos, sin)),
            ("silu x up", partial(kernels.silu_mul, gate_up, act), partial(torch_silu_mul, gate_up)),
            (
                "store keys, values",
                partial(kernels.store, cache, key, value, plan),
                partial(torch_store, cache, key, value, torch.from_numpy(plan.slots)),
            ),
            ("argmax of 49152", partial(kernels.argmax, logits), partial(logits.argmax, -1)),
        ]
        for name, ours, theirs in cases:
            ours_us, theirs_us = interleaved([[ours] * 20, [theirs] * 20], repeat)
            yield {"what": name, "rows": num_rows, "us": ours_us, "torch_us": theirs_us}


def make_caches(
    num_sequences: int, context: int, rows: int, heads: int, dim: int, dtype: torch.dtype, num_layers: int
) -> tuple[SpanPlan, list[LayerCache]]:
    """Caches of random numbers whose blocks, of 16 tokens, lie in random order, and the plan of the last rows."""
    import torch

    from minedraft_workers.native.tensors import LayerCache, SpanPlan, huge_zeros

    per_sequence = -(-(context + rows) // 16)
    num_blocks = num_sequences * per_sequence
    tables: list[list[int]] = torch.randperm(num_blocks).view(num_sequences, per_sequence).tolist()
    counts = [context] * num_sequences, [rows] * num_sequences
    plan = SpanPlan.make(*counts, tables, num_blocks=num_blocks, block_size=16)
    count = LayerCache.num_elements(num_blocks, 16, heads, dim)

    pool = huge_zeros(2 * num_layers * count * dtype.itemsize).view(dtype)
    pool.copy_(torch.randn(1 << 16).to(dtype).repeat(-(-len(pool) >> 16))[: len(pool)])
    parts = pool.view(num_layers, 2, count)
    caches = [LayerCache(keys, values, num_blocks, 16, heads, dim, dim) for keys, values in parts]
    return plan, caches


def torch_attention(
    query: torch.Tensor, plan: SpanPlan, caches: list[LayerCache], context: int, rows: int, group: int
) -> list[Callable[[], object]]:
    """Gathered blocks and two batched matmuls, without a mask: the time counts here, not the numbers."""
    import torch

    heads, dim, num_sequences = caches[0].num_heads, caches[0].key_dim, len(plan.spans)
    ids = torch.from_numpy(plan.blocks).long().view(num_sequences, 1, -1) * heads + torch.arange(heads).view(1, -1, 1)
    ids = ids.reshape(-1)
    shape = num_sequences, rows, heads, group, dim

    def attend(cache: LayerCache) -> torch.Tensor:
        folded = query.view(shape).transpose(1, 2).reshape(num_sequences * heads, rows * group, dim)
        keys = cache.keys.view(-1, 16 * dim).index_select(0, ids).view(num_sequences * heads, -1, dim)
        values = cache.values.view(-1, 16 * dim).index_select(0, ids).view(num_sequences * heads, -1, dim)
        scores = torch.bmm(folded, keys.transpose(1, 2)).mul_(dim**-0.5)
        return torch.bmm(scores.softmax(-1, dtype=torch.float32).to(query.dtype), values)

    return [partial(attend, cache) for cache in caches]


def torch_norm(x: torch.Tensor, gain: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.rms_norm(residual.add_(x), x.shape[1:], gain, 1e-5)


def torch_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    import torch

    gate, up = gate_up.chunk(2, -1)
    return torch.nn.functional.silu(gate) * up


def torch_store(cache: LayerCache, key: torch.Tensor, value: torch.Tensor, slots: torch.Tensor) -> None:
    """Rows of one head and one token each, as many as there are, in any order: the time counts here."""
    for side, new in ((cache.keys, key), (cache.values, value)):
        side.view(-1, key.shape[1]).index_copy_(0, slots, new)


def torch_rope(qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    import torch

    heads = qkv[:, :768].view(len(qkv), -1, 64)
    turned = torch.cat((-heads[..., 32:], heads[..., :32]), -1)
    return heads * cos[:, None] + turned * sin[:, None]


def pack_for_torch(weight: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    from minedraft_workers.kernels.linear import PackedLinear, can_pack

    linear = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return PackedLinear(linear) if can_pack(weight.dtype) else linear


def measure_limits(dtype: torch.dtype) -> dict[str, float]:
    """The best of several plain reads of 256 MB in huge pages and of several 1024 x 2048 x 2048 matmuls."""
    import torch

    from minedraft_workers.native.tensors import huge_zeros

    array = huge_zeros(1 << 28).view(torch.float32).fill_(1)
    x, w = (torch.ones(n, 2048, dtype=dtype) for n in (1024, 2048))
    read_s = min(timed([array.sum]) for _ in range(15))
    matmul_s = min(timed([partial(torch.matmul, x, w.T)]) for _ in range(10))
    return {"read_gb_per_s": array.nbytes / read_s / 1e9, "gflop_per_s": 2 * 1024 * 2048 * 2048 / matmul_s / 1e9}


def interleaved(contestants: Sequence[Sequence[Callable[[], object]]], repeat: int) -> list[float]:
    """Median microseconds a call of each; they take turns, so that other work on the machine meets both."""
    passes = [max(1, round(MIN_SECONDS / max(timed(calls, 1), 1e-6))) for calls in contestants]
    times: list[list[float]] = [[] for _ in contestants]
    for _ in range(repeat):
        for seconds, calls, count in zip(times, contestants, passes, strict=True):
            seconds.append(timed(calls, count) / count / len(calls))
    return [statistics.median(seconds) * 1e6 for seconds in times]


def timed(calls: Sequence[Callable[[], object]], count: int = 1) -> float:
    """Seconds of this thread's own time: another process on the core does not count, though it slows memory."""
    start = time.thread_time()
    for _ in range(count):
        for call in calls:
            call()
    return time.thread_time() - start


def as_column(against_us: Sequence[float]) -> dict[str, float]:
    """The figure of the instruction set that the first one is held against, where there is one."""
    return {"against_us": against_us[0]} if against_us else {}


def as_table(title: str, rows: list[dict[str, Any]]) -> Table:
    names = list(rows[0])
    columns = [Column(name.replace("_per_s", "/s").replace("_", " "), no_wrap=True) for name in names]
    table = Table(*columns, title=title)
    for row in rows:
        cells = (f"{row[name]:.2f}" if name == "ratio" else f"{row[name]:.1f}" for name in names[2:])
        table.add_row(row["what"], str(row["rows"]), *cells)
    return table


if __name__ == "__main__":
    main(prog_name="scripts/bench/kernels")
