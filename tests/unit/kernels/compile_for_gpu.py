"""Compiles every Triton program to machine code for an H100, which needs no GPU; a child of test_triton_compiles."""

from __future__ import annotations

import sys

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minedraft_workers.kernels import triton_source as programs

TARGET = GPUTarget("cuda", 90, 32)
ATTENTION = {"HEADS": 8, "GROUP": 4, "BLOCK_SIZE": 16, "KEY_DIM": 128, "VALUE_DIM": 128, "KEY_LANES": 128,
             "VALUE_LANES": 128, "ROWS": 32, "KEYS": 64, "IS_INTERPRETED": False}  # fmt: skip
NOT_STORED = ("GROUP", "ROWS", "KEYS", "IS_INTERPRETED")
CONSTANTS = {
    "attend_piece": ATTENTION,
    "store_rows": {
        name: ATTENTION[name] for name in ATTENTION if name.split("_")[0] in ("HEADS", "BLOCK", "KEY", "VALUE")
    },
    "norm_row": {"SIZE": 4096, "LANES": 4096, "HAS_RESIDUAL": True},
    "rotate_head": {"DIM": 128, "LANES": 64},
    "gate_row": {"SIZE": 14336, "LANES": 1024},
}
INTEGERS = ("pieces", "tables", "slots")


def type_of(argument: str, dtype: str) -> str:
    if argument in INTEGERS:
        return "*i64"
    if argument.endswith("stride"):
        return "i32"
    return "fp32" if argument in ("scale", "eps") else f"*{dtype}"


def main() -> None:
    for dtype in ("fp32", "bf16"):
        for name, constants in CONSTANTS.items():
            program = getattr(programs, name)
            signature = {a: "constexpr" if a in constants else type_of(a, dtype) for a in program.arg_names}
            values = {(program.arg_names.index(a),): value for a, value in constants.items()}
            compiled = triton.compile(ASTSource(program, signature=signature, constexprs=values), target=TARGET)
            sys.stdout.write(f"{name} {dtype} {len(compiled.asm['cubin'])} {compiled.metadata.shared}\n")


if __name__ == "__main__":
    main()
