"""Compiles every Triton program to machine code for GPUs, which needs none; a child of test_triton_compiles.

It prints of each its name, the GPU's generation, the size of its code, its shared memory, and how much of that was
reckoned with.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minedraft_workers.kernels import triton_source as programs
from minedraft_workers.kernels.tables import LayerShape
from minedraft_workers.kernels.triton_tiles import choose_tile

SHARED_BYTES = {80: 163 << 10, 89: 99 << 10, 90: 227 << 10}  # an A100's, an L40's, an H100's
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTEGERS = ("pieces", "tables", "slots")
# Key heads, query heads of each, and their size.
USUAL, LARGE = (8, 4, 128), (1, 16, 256)
ATTENTION = [(90, *USUAL, "fp32"), (90, *USUAL, "bf16"), (80, *LARGE, "fp32"), (89, *LARGE, "bf16")]


def list_attention(
    cases: list[tuple[int, int, int, int, str]],
) -> Iterator[tuple[str, int, dict[str, object], str, int]]:
    """Yield a program of attention for each generation and shape."""
    for generation, heads, group, dim, dtype in cases:
        size = DTYPES[dtype].itemsize
        tile = choose_tile(LayerShape(heads, dim, dim), group, DTYPES[dtype], SHARED_BYTES[generation])
        constants = {"HEADS": heads, "GROUP": group, "PART": tile.heads, "BLOCK_SIZE": 16, "KEY_DIM": dim,
                     "VALUE_DIM": dim, "ROWS": tile.rows, "KEYS": tile.keys, "KEY_LANES": tile.key_lanes,
                     "VALUE_LANES": tile.value_lanes, "IS_INTERPRETED": False}  # fmt: skip
        yield "attend_piece", generation, constants, dtype, tile.shared_bytes(size)


def list_others() -> Iterator[tuple[str, int, dict[str, object], str, int]]:
    """Yield the other programs for an H100."""
    stored = {"HEADS": 8, "BLOCK_SIZE": 16, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_LANES": 128, "VALUE_LANES": 128}
    for dtype in DTYPES:
        for name, constants in (
            ("store_rows", stored),
            ("norm_row", {"SIZE": 4096, "LANES": 4096, "HAS_RESIDUAL": True}),
            ("rotate_head", {"DIM": 128, "LANES": 64}),
            ("gate_row", {"SIZE": 14336, "LANES": 1024}),
        ):
            yield name, 90, dict(constants), dtype, SHARED_BYTES[89]


def type_of(argument: str, dtype: str) -> str:
    if argument in INTEGERS:
        return "*i64"
    if argument.endswith("stride"):
        return "i32"
    return "fp32" if argument in ("scale", "eps") else f"*{dtype}"


def main() -> None:
    for name, generation, constants, dtype, reckoned in (*list_attention(ATTENTION), *list_others()):
        program = getattr(programs, name)
        signature = {a: "constexpr" if a in constants else type_of(a, dtype) for a in program.arg_names}
        values = {(program.arg_names.index(a),): value for a, value in constants.items()}
        source = ASTSource(program, signature=signature, constexprs=values)
        compiled = triton.compile(source, target=GPUTarget("cuda", generation, 32))
        sys.stdout.write(f"{name} {generation} {len(compiled.asm['cubin'])} {compiled.metadata.shared} {reckoned}\n")


if __name__ == "__main__":
    main()
