"""Compiles every Triton program to machine code for an H100, which needs no GPU; a child of test_triton_compiles."""

from __future__ import annotations

import sys

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minedraft_workers.kernels import triton_source as programs
from minedraft_workers.kernels.tables import LayerShape
from minedraft_workers.kernels.triton_kernels import keys_at_once

TARGET = GPUTarget("cuda", 90, 32)
ATTENTION = {"HEADS": 8, "GROUP": 4, "BLOCK_SIZE": 16, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_LANES": 128,
             "VALUE_LANES": 128, "ROWS": 32, "IS_INTERPRETED": False}  # fmt: skip
CONSTANTS = {
    "attend_piece": ATTENTION,
    "store_rows": {
        name: ATTENTION[name] for name in ATTENTION if name.split("_")[0] in ("HEADS", "BLOCK", "KEY", "VALUE")
    },
    "norm_row": {"SIZE": 4096, "LANES": 4096, "HAS_RESIDUAL": True},
    "rotate_head": {"DIM": 128, "LANES": 64},
    "gate_row": {"SIZE": 14336, "LANES": 1024},
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
INTEGERS = ("pieces", "tables", "slots")


def type_of(argument: str, dtype: str) -> str:
    if argument in INTEGERS:
        return "*i64"
    if argument.endswith("stride"):
        return "i32"
    return "fp32" if argument in ("scale", "eps") else f"*{dtype}"


def main() -> None:
    for dtype in DTYPES:
        for name, constants in CONSTANTS.items():
            program = getattr(programs, name)
            if name == "attend_piece":
                constants = {**constants, "KEYS": keys_at_once(LayerShape(8, 128, 128), DTYPES[dtype])}
            signature = {a: "constexpr" if a in constants else type_of(a, dtype) for a in program.arg_names}
            values = {(program.arg_names.index(a),): value for a, value in constants.items()}
            compiled = triton.compile(ASTSource(program, signature=signature, constexprs=values), target=TARGET)
            sys.stdout.write(f"{name} {dtype} {len(compiled.asm['cubin'])} {compiled.metadata.shared}\n")


if __name__ == "__main__":
    main()
