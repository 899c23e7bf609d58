"""A program makes the calls it has recorded, with the bits that they have one by one, on any rows and threads."""

from __future__ import annotations

import gc
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.errors import InternalError
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import ISAS
from minedraft_workers.native.program import Program
from minedraft_workers.native.tensors import LayerCache, PackedWeight, SpanPlan
from tests.support.native_caches import Shape, empty_cache, numbers
from tests.unit.native.conftest import open_kernels

SHAPE = Shape(heads=2, group=2, key_dim=32, value_dim=32)
WIDTH = 128
NUM_BLOCKS = 24


@dataclass
class Layers:
    """Two decoder layers with random weights, and the matrices that their calls pass on, for `max_rows` rows."""

    dtype: torch.dtype
    weights: list[list[PackedWeight]]
    caches: list[LayerCache]
    gain: torch.Tensor
    matrices: dict[str, torch.Tensor]

    @classmethod
    def make(cls, kernels: NativeKernels, dtype: torch.dtype, max_rows: int) -> Layers:
        shapes = ((256, WIDTH), (WIDTH, 128), (2 * 96, WIDTH), (WIDTH, 96))
        weights = [
            [
                kernels.pack(numbers(out, width, dtype=dtype, seed=4 * layer + i) * width**-0.5)
                for i, (out, width) in enumerate(shapes)
            ]
            for layer in range(2)
        ]
        shape = Shape(SHAPE.heads, SHAPE.group, 32, 32, dtype=dtype)
        caches = [empty_cache(shape, NUM_BLOCKS, fill=float("nan")) for _ in range(2)]
        columns = {"x": WIDTH, "qkv": 256, "mixed": 128, "y": WIDTH, "gate_up": 192, "act": 96, "normed": WIDTH}
        matrices = {name: numbers(max_rows, width, dtype=dtype) for name, width in columns.items()}
        for name in ("cos", "sin"):
            matrices[name] = numbers(max_rows, 32, dtype=dtype, seed=7)
        return cls(dtype, weights, caches, numbers(WIDTH, dtype=dtype, seed=9), matrices)

    def call(self, kernels: NativeKernels, num_rows: int, plan: SpanPlan) -> None:
        m = {name: matrix[:num_rows] for name, matrix in self.matrices.items()}
        kernels.rms_norm(m["x"], self.gain, 1e-5, out=m["normed"])
        for (qkv, output, gate_up, down), cache in zip(self.weights, self.caches, strict=True):
            kernels.linear(m["normed"], qkv, m["qkv"])
            kernels.rope_(m["qkv"][:, :192], m["cos"], m["sin"])
            kernels.store(cache, m["qkv"][:, 128:192], m["qkv"][:, 192:], plan)
            kernels.attend(cache, m["qkv"][:, :128], plan, 0.2, m["mixed"])
            kernels.linear(m["mixed"], output, m["y"])
            kernels.rms_norm(m["y"], self.gain, 1e-5, residual=m["x"], out=m["normed"])
            kernels.silu_mul(kernels.linear(m["normed"], gate_up, m["gate_up"]), m["act"])
            kernels.linear(m["act"], down, m["y"])
            kernels.rms_norm(m["y"], self.gain, 1e-5, residual=m["x"], out=m["normed"])

    def record(self, kernels: NativeKernels, max_rows: int) -> Program:
        with kernels.recording(max_rows, NUM_BLOCKS, SHAPE.block_size) as program:
            self.call(kernels, max_rows, program.plan)
        return program


def plan_of(starts: list[int], lengths: list[int]) -> SpanPlan:
    """Each request has its own eight blocks."""
    tables = [list(range(8 * i, 8 * i + 8)) for i in range(len(starts))]
    return SpanPlan.make(starts, lengths, tables, num_blocks=NUM_BLOCKS, block_size=SHAPE.block_size)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=10, deadline=None)
@given(
    forwards=st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=3), min_size=1, max_size=4),
    num_threads=st.lists(st.integers(1, 4), min_size=5, max_size=5),
)
def test_a_program_has_the_bits_of_its_calls_one_by_one_also_when_the_number_of_threads_changes(
    isa: str, dtype: torch.dtype, forwards: list[list[int]], num_threads: list[int]
):
    alone, together = open_kernels(isa), open_kernels(isa, num_threads.pop())
    wanted, found = (Layers.make(alone, dtype, 40) for _ in range(2))
    program = found.record(together, 40)
    starts = [0, 0, 0]
    for lengths in forwards:
        plan = plan_of(starts[: len(lengths)], lengths)
        for layers in (wanted, found):
            layers.matrices["x"][:] = numbers(40, WIDTH, dtype=dtype, seed=len(lengths))
        wanted.call(alone, plan.num_rows, plan)
        together.pool.resize(num_threads.pop())
        together.run(program, plan)
        for name, matrix in wanted.matrices.items():
            assert torch.equal(matrix, found.matrices[name]), name
        for i, length in enumerate(lengths):
            starts[i] += length


def test_recording_computes_nothing_and_running_only_the_rows_of_the_plan():
    kernels = open_kernels("auto", 2)
    layers = Layers.make(kernels, torch.float32, 16)
    before = {name: matrix.clone() for name, matrix in layers.matrices.items()}
    program = layers.record(kernels, 16)
    assert all(torch.equal(matrix, before[name]) for name, matrix in layers.matrices.items())
    kernels.run(program, plan_of([0], [3]))
    assert not torch.equal(layers.matrices["y"][:3], before["y"][:3])
    assert all(torch.equal(matrix[3:], before[name][3:]) for name, matrix in layers.matrices.items())
    kernels.linear(layers.matrices["x"], layers.weights[0][0], layers.matrices["qkv"])  # computed again
    assert not torch.equal(layers.matrices["qkv"][3:], before["qkv"][3:])


def test_a_program_keeps_what_its_calls_use():
    kernels = open_kernels("auto")
    x = numbers(4, WIDTH, dtype=torch.float32)
    out, wanted = torch.empty(4, WIDTH), kernels.rms_norm(x, torch.ones(WIDTH), 1e-5)
    with kernels.recording(4, NUM_BLOCKS, 16) as program:
        kernels.rms_norm(x.clone(), torch.ones(WIDTH), 1e-5, out=out)
    gc.collect()
    torch.full((64, WIDTH), 5.0)  # takes freed memory
    kernels.run(program, plan_of([0], [4]))
    assert torch.equal(out, wanted)


def test_a_program_refuses_more_rows_than_it_has_memory_for_and_plans_of_other_caches():
    kernels = open_kernels("auto")
    program = Layers.make(kernels, torch.float32, 4).record(kernels, 4)
    with pytest.raises(InternalError, match="more rows than a program was recorded with"):
        kernels.run(program, plan_of([0], [5]))
    with pytest.raises(InternalError, match="the plan is for a cache of 25 blocks"):
        kernels.run(program, SpanPlan.make([0], [1], [[0]], num_blocks=25, block_size=16))


def test_what_cannot_be_recorded_is_refused_and_recording_ends_with_its_block():
    kernels = open_kernels("auto")
    x = numbers(4, WIDTH, dtype=torch.float32)
    with kernels.recording(4, NUM_BLOCKS, 16):
        with pytest.raises(InternalError, match="this call cannot be recorded"):
            kernels.argmax(x)
        with pytest.raises(InternalError, match="calls are being recorded already"), kernels.recording(4, 1, 16):
            pass
        with pytest.raises(InternalError, match="x is "):
            kernels.rms_norm(x, torch.ones(3), 1e-5)
    assert kernels.argmax(x)[0].tolist() == x.argmax(-1).tolist()


def test_a_matrix_with_fewer_rows_limits_the_program():
    kernels = open_kernels("auto")
    with kernels.recording(8, NUM_BLOCKS, 16) as program:
        kernels.silu_mul(torch.ones(8, 6), torch.ones(8, 3))
        kernels.silu_mul(torch.ones(2, 6), torch.ones(2, 3))
    with pytest.raises(InternalError, match="more rows than a program was recorded with"):
        kernels.run(program, plan_of([0], [3]))
