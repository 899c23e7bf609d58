"""Prints of how many variants of each Triton program forwards of all shapes would have the compiler make for an H100,
which needs no GPU: nothing is launched. A child of test_triton_compiles."""

from __future__ import annotations

import random
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from minedraft_workers.execution.features import FeatureLayers
from minedraft_workers.execution.fused import FusedDecoder
from minedraft_workers.execution.graphs.buffers import PaddedInputs
from minedraft_workers.execution.graphs.sizes import SIZES
from minedraft_workers.execution.loading import load_model, read_config
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.execution.selfcheck import record_layers
from minedraft_workers.kernels import triton_source as programs
from minedraft_workers.kernels.tables import QuerySpan
from minedraft_workers.kernels.triton_kernels import TritonLayerKernels
from tests.support.tiny_models import make_tiny_model

NUM_BLOCKS = 64
BACKEND: Any = make_backend(GPUTarget("cuda", 90, 32))


class Recorder:
    """Stands for a program, and records for what it would be compiled."""

    def __init__(self, program: JITFunction) -> None:
        self._bind = create_function_from_signature(program.signature, program.params, BACKEND)
        self.variants: set[str] = set()

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self._launch

    def _launch(self, *args: object, **constants: object) -> None:
        self.variants.add(str(self._bind(*args, **constants)[1]))


def main() -> None:
    found: dict[str, Recorder] = defaultdict()
    for name, program in vars(programs).copy().items():
        if isinstance(program, JITFunction) and not name.startswith("_"):
            found[name] = Recorder(program)
            setattr(programs, name, found[name])
    with tempfile.TemporaryDirectory() as folder:
        run_all_shapes(make_tiny_model(Path(folder), hidden_size=64, head_dim=16))
    for name, recorder in found.items():
        sys.stdout.write(f"{name} {len(recorder.variants)}\n")


@torch.inference_mode()
def run_all_shapes(folder: Path) -> None:
    cpu = torch.device("cpu")
    model = load_model(folder, read_config(folder), torch.float32, cpu).model
    layers, _ = record_layers(model, folder)
    kernels = TritonLayerKernels(cpu, torch.float32)
    decoder = FusedDecoder(model, kernels, lambda: kernels.make_cache(layers, NUM_BLOCKS, 16, torch.float32), 512)
    rng = random.Random(0)
    for _ in range(60):
        lengths = [rng.choice([1, 1, 2, 5, 9, 40]) for _ in range(rng.randint(1, 6))]
        starts = [rng.choice([0, 1, 15, 16, 100, 300]) for _ in lengths]
        ends = [start + length for start, length in zip(starts, lengths, strict=True)]
        spans = [
            QuerySpan(start, length, list(range(-(-end // 16))))
            for start, length, end in zip(starts, lengths, ends, strict=True)
        ]
        decoder.run(PackedRows.make([[3] * length for length in lengths], spans, [1] * len(lengths)))
    for size in SIZES:
        for width in (1, 16, 33):
            inputs = PaddedInputs(decoder.tables.pool, size, width, 0, torch.empty(0))
            decoder.compute_hidden(inputs.forward, FeatureLayers())


if __name__ == "__main__":
    main()
