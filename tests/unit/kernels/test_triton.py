"""The Triton kernels, in Triton's interpreter where there is no GPU, against torch's operators."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.execution.choice import foresee_kernels
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.kernels.tables import LayerShape, QuerySpan
from minedraft_workers.kernels.torch_kernels import TorchLayerKernels
from tests.support.tiny_models import add_noise, make_tiny_model

pytest.importorskip("triton")

from minedraft_workers.execution.features import AFTER_FINAL_NORM
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.kernels.triton_kernels import TritonLayerKernels
from tests.fakes.graphs import RepeatedGraph, run_by_graphs

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
# Heads, query heads of each, key and value sizes, tokens of a block.
SHAPES = {"grouped": (2, 3, 16, 24, 4), "one-head": (1, 9, 64, 64, 16), "odd-sizes": (3, 1, 24, 16, 5)}


@pytest.fixture(params=TOLERANCES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def both(dtype: torch.dtype) -> tuple[TorchLayerKernels, TritonLayerKernels]:
    return TorchLayerKernels(DEVICE, dtype), TritonLayerKernels(DEVICE, dtype)


class Random:
    """Tensors of one dtype, the same in every run."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._generator = torch.Generator().manual_seed(1)

    def __call__(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, generator=self._generator).to(DEVICE, self._dtype)


def test_norms_rotary_embedding_and_gate_are_torchs(both, dtype: torch.dtype) -> None:
    rand, tolerance = Random(dtype), TOLERANCES[dtype]
    x, weight, residual = rand(5, 48), rand(48), rand(5, 48)
    cos, sin, gate_up, rows = rand(5, 24), rand(5, 24), rand(5, 80), rand(5, 4 * 24 + 7)
    results = []
    for kernels in both:
        stream, rotated = residual.clone(), rows.clone()
        normed = kernels.rms_norm(x, weight, 1e-5)
        added = kernels.rms_norm(x, weight, 1e-5, residual=stream)
        kernels.rope_(rotated[:, :96], cos, sin)
        wide = torch.zeros(5, 100, dtype=dtype, device=DEVICE)
        kernels.rms_norm(x, weight, 1e-5, out=wide[:, 48:96])
        assert torch.equal(wide[:, 48:96], normed)
        assert not wide[:, :48].any()
        results.append((normed, added, stream, rotated, kernels.silu_mul(gate_up)))
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=tolerance, atol=tolerance)
    assert torch.equal(results[1][3][:, 96:], rows[:, 96:])


@pytest.mark.parametrize("name", SHAPES)
def test_attention_over_chunks_decodes_and_verifies_is_torchs(name: str, both, dtype: torch.dtype) -> None:
    """What a block holds before it is written never matters: the cache is full of NaN."""
    heads, group, key_dim, value_dim, block_size = SHAPES[name]
    rand, tolerance = Random(dtype), TOLERANCES[dtype]
    layers = [LayerShape(heads, key_dim, value_dim)]
    caches = [kernels.make_cache(layers, 60, block_size, dtype) for kernels in both]
    caches[1].layer_caches[0].keys.fill_(torch.nan)
    caches[1].layer_caches[0].values.fill_(torch.nan)
    cached = [0, 0, 0]
    for lengths in ((21, 3, 1), (1, 4, 2), (1, 1, 70)):
        num_rows = sum(lengths)
        key, value = rand(num_rows, heads * key_dim), rand(num_rows, heads * value_dim)
        query = rand(num_rows, heads * group * key_dim + 8)[:, 8:]
        ends = [(owner, start + length) for owner, (start, length) in enumerate(zip(cached, lengths, strict=True))]
        results = []
        for kernels, cache in zip(both, caches, strict=True):
            tables = cache.resize(ends)
            spans = [QuerySpan(*at, table) for *at, table in zip(cached, lengths, tables, strict=True)]
            plan, layer = kernels.plan(cache, spans), cache.layer_caches[0]
            kernels.store(layer, key, value, plan)
            results.append(kernels.attend(layer, query, plan, key_dim**-0.5))
        torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)
        cached = [end for _, end in ends]


@pytest.mark.parametrize("odd", [torch.nan, -torch.inf])
def test_a_value_that_is_not_finite_is_lost_to_the_rows_that_see_it(odd: float, both, dtype: torch.dtype) -> None:
    rand = Random(dtype)
    key, value, query = rand(20, 32), rand(20, 32), rand(20, 64)
    spoilt = value.clone()
    spoilt[15, 17] = odd  # of the second head
    for kernels in both:
        cache = kernels.make_cache([LayerShape(2, 16, 16)], 8, 16, dtype)
        layer, found = cache.layer_caches[0], []
        for values in (value, spoilt):
            plan = kernels.plan(cache, [QuerySpan(0, 20, *cache.resize([(1, 20)]))])
            kernels.store(layer, key, values, plan)
            found.append(kernels.attend(layer, query, plan, 0.25))
            # What follows is rejected, but lies in the same block still.
            plan = kernels.plan(cache, [QuerySpan(12, 1, *cache.resize([(1, 13)]))])
            found.append(kernels.attend(layer, query[12:13], plan, 0.25))
        clean, again, poisoned, again_poisoned = found
        assert not poisoned[15:, 32:].isfinite().any()
        assert torch.equal(poisoned[:15], clean[:15])
        assert torch.equal(poisoned[:, :32], clean[:, :32])
        assert torch.equal(again_poisoned, again)
        assert again.isfinite().all()


def test_a_piece_does_not_depend_on_its_neighbours() -> None:
    kernels, rand = TritonLayerKernels(DEVICE, torch.float32), Random(torch.float32)
    cache = kernels.make_cache([LayerShape(2, 16, 16)], 60, 4, torch.float32)
    layer = cache.layer_caches[0]
    for side in (layer.keys, layer.values):
        side.copy_(rand(*side.shape))
    tables = cache.resize([(0, 40), (1, 9), (2, 30)])
    spans = [QuerySpan(start, 3, t) for start, t in zip((37, 6, 20), tables, strict=True)]
    query = rand(9, 4 * 16)
    together = kernels.attend(layer, query, kernels.plan(cache, spans), 0.25)
    for i, span in enumerate(spans):
        rows = slice(3 * i, 3 * i + 3)
        assert torch.equal(kernels.attend(layer, query[rows], kernels.plan(cache, [span]), 0.25), together[rows])


def load(folder: Path, kernels: str) -> Executor:
    device = Device.parse("cuda:0" if DEVICE.type == "cuda" else "cpu:0").here()
    options = LoadOptions(device, dtype="float32", num_blocks=64, block_size=4, kernels=kernels)
    return Executor.load(folder, options)


@pytest.mark.slow
def test_a_forward_over_padded_buffers_gives_the_same_logits(tmp_path) -> None:
    """As under a graph: sizes repeat with other requests, fewer rows, shorter tables, freed and reused blocks."""
    folder = add_noise(make_tiny_model(tmp_path / "m"), 0.05)
    plain, padded = (load(folder, "triton") for _ in range(2))
    plain._runner = getattr(plain._runner, "_decoder", plain._runner)  # on a GPU it has graphs already
    replays: list[int] = []

    class CountedGraph(RepeatedGraph):
        def replay(self) -> None:
            super().replay()
            replays.append(len(self.output[0]))

    run_by_graphs(padded, CountedGraph)
    for executor in (plain, padded):
        executor.want_features((1, 0, AFTER_FINAL_NORM))
    padded.graphs.capture()
    rng, cached = random.Random(3), {}
    for index in range(8):
        if len(cached) == 5:
            owner = rng.choice(sorted(cached))
            del cached[owner]
            for executor in (plain, padded):
                executor.release(owner)
        wanted = rng.sample(range(9), rng.randint(1, 3))
        lengths = {owner: rng.choice([1, 1, 3, 9]) for owner in wanted}
        spans = [
            ForwardSpan(owner, cached.get(owner, 0), rng.choices(range(3, 300), k=length), rng.choice([1, length]))
            for owner, length in lengths.items()
        ]
        cached |= {span.request_id: span.prefix_len + len(span.tokens) for span in spans}
        if index % 2:
            torch.testing.assert_close(padded.forward(spans), plain.forward(spans), rtol=1e-5, atol=1e-5)
            continue
        got, want = (executor.forward_with_features(spans) for executor in (padded, plain))
        torch.testing.assert_close(got.logits, want.logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.features, want.features, rtol=1e-5, atol=1e-5)
    assert len(set(replays)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_a_model_on_triton_gives_its_own_logits(kind: str, tmp_path) -> None:
    """The load checks it against the model's own forward, layer by layer; here against torch's operators."""
    folder = add_noise(make_tiny_model(tmp_path / "m", kind), 0.05)
    logits = []
    for kernels in ("torch", "triton"):
        executor = load(folder, kernels)
        assert executor.kernels == kernels
        executor.forward([ForwardSpan(1, 0, list(range(5, 28)), 0)])
        logits.append(executor.forward([ForwardSpan(2, 0, [9, 8], 1), ForwardSpan(1, 21, [3, 4, 5], 3)]))
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


def test_triton_that_cannot_build_its_programs_leaves_the_model_to_torch(tmp_path, monkeypatch) -> None:
    """It needs a C compiler, Python's headers and a folder, which a machine with a GPU may lack."""

    class Broken:
        def __getitem__(self, grid: object) -> None:
            raise RuntimeError("Failed to find C compiler.\nPlease specify via CC environment variable")

    monkeypatch.setattr("minedraft_workers.kernels.triton_source.norm_row", Broken())
    folder = make_tiny_model(tmp_path / "m")
    told = r"Triton cannot build its programs here \(RuntimeError: Failed to find C compiler\. Please specify via CC"
    with pytest.raises(ConfigError, match=rf"kernels is 'triton': do not fit this model: {told}"):
        load(folder, "triton")
    as_on_gpu = TritonLayerKernels(DEVICE, torch.float32), TorchLayerKernels(DEVICE, torch.float32)
    monkeypatch.setattr("minedraft_workers.execution.executor.list_candidates", lambda *_: as_on_gpu)
    executor = load(folder, "auto")
    assert executor.kernels == "torch"
    assert re.match(rf"triton kernels do not fit this model: {told}", executor.kernels_reason)


def test_the_choice_for_a_gpu_is_foreseen_without_one(tmp_path) -> None:
    card = Device.parse("cuda:0")
    said = foresee_kernels(make_tiny_model(tmp_path / "m"), dtype="auto", kernels="auto", device=card)
    assert said.startswith("triton kernels, bfloat16: they fit this machine and model; ")


def test_heads_that_shared_memory_has_no_room_for_are_left_to_torch(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("minedraft_workers.kernels.triton_kernels.find_shared_bytes", lambda device: 2048)
    with pytest.raises(
        ConfigError, match=r"do not fit this model: heads of 8 and 8 in torch\.float32: attention needs"
    ):
        load(make_tiny_model(tmp_path / "m"), "triton")


@pytest.mark.parametrize("shared_bytes", [1 << 20, 7_000])
def test_query_heads_are_attended_in_parts_where_shared_memory_is_small(shared_bytes: int, monkeypatch) -> None:
    """With as many tokens at once or fewer, a row is computed alike but for the order of its sums."""
    monkeypatch.setattr("minedraft_workers.kernels.triton_kernels.find_shared_bytes", lambda device: shared_bytes)
    rand, layers = Random(torch.float32), [LayerShape(2, 16, 16)]
    key, value, query = rand(70, 32), rand(70, 32), rand(70, 6 * 32)
    results = []
    for kernels in (TorchLayerKernels(DEVICE, torch.float32), TritonLayerKernels(DEVICE, torch.float32)):
        cache = kernels.make_cache(layers, 8, 16, torch.float32)
        plan = kernels.plan(cache, [QuerySpan(0, 70, *cache.resize([(1, 70)]))])
        kernels.store(cache.layer_caches[0], key, value, plan)
        results.append(kernels.attend(cache.layer_caches[0], query, plan, 0.25))
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
