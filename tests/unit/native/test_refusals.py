"""Every size, dtype and bound is checked before a pointer is passed."""

from __future__ import annotations

import threading

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import ConfigError, InternalError
from minedraft_workers.execution.choice import choose_native
from minedraft_workers.native.build import REFERENCES
from minedraft_workers.native.kernels import NativeKernels
from minedraft_workers.native.library import ISA_VARIABLE, ISAS, Library, choose_isa
from minedraft_workers.native.tensors import LayerCache, SpanPlan
from tests.support.native_caches import Shape, empty_cache
from tests.unit.native.conftest import open_kernels


@pytest.fixture(scope="module")
def fast() -> NativeKernels:
    return open_kernels("auto")


def test_a_linear_layer_refuses_what_does_not_fit(fast: NativeKernels):
    packed = fast.pack(torch.ones(32, 16))
    for x in (
        torch.ones(2, 17),
        torch.ones(16),
        torch.ones(16, 2).T,
        torch.ones(2, 16).double(),
        torch.ones(2, 16).bfloat16(),  # its weight is float32
        torch.ones(2, 16, device="meta"),
    ):
        with pytest.raises(InternalError, match=r"^x is "):
            fast.linear(x, packed)
    for out in (torch.ones(2, 31), torch.ones(3, 32), torch.ones(2, 32).bfloat16(), torch.ones(1, 32).expand(2, 32)):
        with pytest.raises(InternalError, match="a matrix is "):
            fast.linear(torch.ones(2, 16), packed, out)


def test_packing_refuses_what_is_no_weight(fast: NativeKernels):
    for weight in (torch.ones(4), torch.ones(4, 0), torch.ones(4, 4).double(), torch.ones(4, 4, device="meta")):
        with pytest.raises(InternalError, match="weight is "):
            fast.pack(weight)
    with pytest.raises(InternalError, match="bias is "):
        fast.pack(torch.ones(4, 4), torch.ones(3))


def test_packed_rows_refuse_ids_of_no_row(fast: NativeKernels):
    packed = fast.pack(torch.ones(4, 4))
    for ids in (torch.tensor([4]), torch.tensor([-1])):
        with pytest.raises(InternalError, match=r"must be 0\.\.3"):
            fast.rows(packed, ids)
    with pytest.raises(InternalError, match="ids is "):
        fast.rows(packed, torch.tensor([1], dtype=torch.int32))


def test_the_small_kernels_refuse_what_does_not_fit(fast: NativeKernels):
    x = torch.ones(3, 8)
    with pytest.raises(InternalError, match="x is "):
        fast.rms_norm(x, torch.ones(9), 1e-5)
    with pytest.raises(InternalError, match="weight is "):
        fast.rms_norm(x, torch.ones(8).bfloat16(), 1e-5)
    with pytest.raises(InternalError, match="a matrix is "):
        fast.rms_norm(x, torch.ones(8), 1e-5, torch.ones(2, 8))
    with pytest.raises(InternalError, match="x is "):
        fast.rope_(x, torch.ones(3, 6), torch.ones(3, 6))
    with pytest.raises(InternalError, match="a matrix is "):
        fast.rope_(x, torch.ones(2, 8), torch.ones(2, 8))
    with pytest.raises(InternalError, match="sin is "):
        fast.rope_(x, torch.ones(3, 8), torch.ones(3, 9)[:, :8])
    with pytest.raises(InternalError, match="gate_up is "):
        fast.silu_mul(torch.ones(2, 3))
    for odd in (torch.ones(2, 4).half(), torch.ones(2, 0)):
        with pytest.raises(InternalError, match="x is "):
            fast.argmax(odd)


@pytest.mark.parametrize(
    ("starts", "lengths", "tables"),
    [
        ([0], [17], [[1]]),  # two blocks of 16 are needed
        ([16], [1], [[1]]),
        ([0], [0], [[1]]),
        ([-1], [1], [[1]]),
        ([0], [1], [[4]]),  # the cache has blocks 0 to 3
        ([0], [1], [[-1]]),
        ([0, 0], [1], [[1]]),
        ([0], [1], [[1], [2]]),
    ],
)
def test_a_plan_refuses_spans_that_the_cache_does_not_hold(
    starts: list[int], lengths: list[int], tables: list[list[int]]
):
    with pytest.raises(InternalError):
        SpanPlan.make(starts, lengths, tables, num_blocks=4, block_size=16)


def test_an_empty_plan_computes_nothing(fast: NativeKernels):
    plan = SpanPlan.make([], [], [], num_blocks=4, block_size=16)
    cache = empty_cache(Shape(dtype=torch.float32), 4)
    fast.store(cache, torch.ones(0, 128), torch.ones(0, 128), plan)
    assert fast.attend(cache, torch.ones(0, 384), plan, 1.0).shape == (0, 384)


def test_a_cache_refuses_tensors_that_are_not_its_own_size():
    shape = Shape(dtype=torch.float32)
    good = empty_cache(shape, 4)
    for keys in (good.keys[:-1], good.keys.half(), good.keys.bfloat16(), good.keys.to("meta")):
        with pytest.raises(InternalError):
            LayerCache(keys, good.values, 4, 16, 2, 64, 64)
    for sizes in ((0, 16, 2, 64, 64), (4, 16, 2, 60, 64), (4, 16, 2, 64, 8), (4, 17, 2, 64, 64)):
        with pytest.raises(InternalError):
            LayerCache(good.keys, good.values, *sizes)


def test_attention_refuses_rows_that_are_not_the_plans(fast: NativeKernels):
    cache = empty_cache(Shape(dtype=torch.float32), 4)
    plan = SpanPlan.make([0], [2], [[0]], num_blocks=4, block_size=16)
    other = SpanPlan.make([0], [2], [[0]], num_blocks=5, block_size=16)
    query, side = torch.ones(2, 384), torch.ones(2, 128)
    for wrong in (torch.ones(3, 384), torch.ones(2, 100), torch.ones(2, 0), query.bfloat16()):
        with pytest.raises(InternalError, match="query is "):
            fast.attend(cache, wrong, plan, 1.0)
    for scale in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InternalError, match="scale"):
            fast.attend(cache, query, plan, scale)
    with pytest.raises(InternalError, match="the plan is for a cache of 5 blocks"):
        fast.attend(cache, query, other, 1.0)
    with pytest.raises(InternalError, match="the plan is for a cache of 5 blocks"):
        fast.store(cache, side, side, other)
    for key, value in ((torch.ones(3, 128), side), (side, torch.ones(1, 128)), (side.bfloat16(), side)):
        with pytest.raises(InternalError):
            fast.store(cache, key, value, plan)


@pytest.mark.parametrize("num_threads", [0, -1, 257])
def test_a_number_of_threads_out_of_range_is_named(num_threads: int):
    with pytest.raises(ConfigError, match="num_threads is "):
        NativeKernels("auto", num_threads)


def test_an_unknown_instruction_set_is_named(library: Library):
    names = "scalar, scalar_tiles, avx2, avx512, avx512_bf16, amx_bf16"
    with pytest.raises(ConfigError, match=f"isa is 'sse9': must be auto or one of {names}"):
        NativeKernels("sse9", 1, library)


def test_the_environment_chooses_the_instruction_set_that_is_not_asked_for(
    library: Library, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(ISA_VARIABLE, "scalar")
    assert NativeKernels(library=library).isa == "scalar"
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    with pytest.raises(ConfigError, match="isa is 'sse9': must be auto or one of scalar, "):
        NativeKernels(library=library)


def test_native_kernels_that_cannot_be_had_are_an_error_only_where_they_were_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(ISA_VARIABLE, "sse9")
    native, reason = choose_native("auto", Device("cpu", (0,)))
    assert native is None
    assert reason.startswith("no native kernels here: must be auto or one of scalar, ")
    with pytest.raises(ConfigError, match="isa is 'sse9'") as caught:
        choose_native("native", Device("cpu", (0,)))
    assert caught.value.exit_code == 78


def test_an_instruction_set_that_the_cpu_lacks_is_named(library: Library):
    class Older:
        """A library that finds itself on a CPU with AVX2 only."""

        def has(self, number: int) -> int:
            return 2 if number <= ISAS.index("avx2") else 0

    class Oldest(Older):
        def has(self, number: int) -> int:
            return 2 if ISAS[number] in REFERENCES else 0

    class Refused(Older):
        def has(self, number: int) -> int:
            return 3 if ISAS[number] == "amx_bf16" else 2

    class Unbuilt(Older):
        def has(self, number: int) -> int:
            return 1

    assert choose_isa(Older(), "auto") == "avx2"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="isa is 'avx512_bf16': this CPU lacks it"):
        choose_isa(Older(), "avx512_bf16")  # type: ignore[arg-type]
    assert choose_isa(Refused(), "auto") == "avx512_bf16"  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="isa is 'amx_bf16': the operating system does not let this process use it"):
        choose_isa(Refused(), "amx_bf16")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="this CPU has none of avx2, avx512, avx512_bf16, amx_bf16"):
        choose_isa(Oldest(), "auto")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the compiler that built the kernels does not know it"):
        choose_isa(Unbuilt(), "avx2")  # type: ignore[arg-type]


def test_two_calls_at_once_never_share_their_scratch(fast: NativeKernels):
    packed, x = fast.pack(torch.ones(512, 512)), torch.ones(64, 512)
    wanted, wrong = fast.linear(x, packed), []

    def work() -> None:
        for _ in range(100):
            try:
                if not torch.equal(fast.linear(x, packed), wanted):
                    wrong.append("another result")
            except InternalError as error:
                if "another thread is in a call" not in str(error):
                    wrong.append(str(error))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
