"""Decoders run by the layers' kernels: the model's own numbers; by the native ones the same bits in every batch."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.execution.choice import foresee_kernels
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.fused import FusedDecoder
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.execution.programs import MAX_ROWS
from minedraft_workers.kernels.base import NotFused
from minedraft_workers.kernels.native_kernels import NativeCache, NativeLayerKernels
from minedraft_workers.kernels.tables import LayerShape
from tests.support.native import needs_native
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = needs_native

HEADS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
NEUTRAL = {
    "residual_multiplier": 1.0, "embedding_multiplier": 1.0, "logits_scaling": 1.0, "attention_multiplier": 0.25,
}  # fmt: skip
FUSED = {
    "llama": ("llama", HEADS),
    "tied": ("llama", HEADS | {"tie_word_embeddings": True}),
    "wide-heads": ("llama", {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}),
    "biases": ("qwen2", HEADS),
    "llama3-rope": ("llama", HEADS | {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", HEADS | {"sliding_window": None}),
}
# Their angles depend on the length of the text, so a forward's are not those of a table, nor of a captured graph.
BY_LENGTH = {
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    "longrope": {
        "rope_type": "longrope", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 256,
        "short_factor": [1.0] * 8, "long_factor": [2.0] * 8,
    },
}  # fmt: skip
NOT_FUSED = {
    "window": ("mistral", HEADS | {"sliding_window": 24}, "a sliding window"),
    "norms-of-heads": ("qwen3", HEADS, "k_norm, q_norm"),
    "gelu": ("gemma", HEADS, "activation"),
    "layer-norms": ("gpt_neox", {}, "the decoder with"),
    **{name: ("llama", HEADS | {"rope_parameters": rope}, f"of type {name}") for name, rope in BY_LENGTH.items()},
}


def load(path: Path, **options: object) -> Executor:
    settings: dict[str, object] = {"device": Device.parse("cpu").here(), "dtype": "float32", "num_blocks": 256}
    settings |= {"block_size": 4, "kernels": "native"} | options
    return Executor.load(path, LoadOptions(**settings))  # type: ignore[arg-type]


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 320), k=length)


@pytest.fixture(params=FUSED)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    kind, fields = FUSED[request.param]
    return add_noise(make_tiny_model(tmp_path / "m", kind, layers=2, **fields), 0.05)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_its_logits_are_the_models_own(folder: Path, kernels: str) -> None:
    executor = load(folder, kernels=kernels)
    assert executor.kernels.startswith(kernels)
    own = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    ids = text(90)
    with torch.inference_mode():
        want = own(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    executor.forward([ForwardSpan(1, 0, ids[:37], 0)])
    got = executor.forward([ForwardSpan(2, 0, text(11, 5), 1), ForwardSpan(1, 37, ids[37:], 53)])
    torch.testing.assert_close(got[1:], want[37:], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_rows_bits_depend_on_its_own_request_alone(folder: Path, dtype: str) -> None:
    """Whole or in chunks, alone or in a crowd, drafted and verified or token by token, with rolled back tokens."""
    executor = load(folder, dtype=dtype)
    assert executor.is_batch_invariant
    rng = random.Random(7)
    texts = {request_id: text(60, request_id) for request_id in range(6)}
    alone = {}
    for request_id, ids in texts.items():
        alone[request_id] = executor.forward([ForwardSpan(request_id, 0, ids, len(ids))])
        executor.release(request_id)
    cached = dict.fromkeys(texts, 0)
    while any(cached[request_id] < 60 for request_id in texts):
        spans = []
        for request_id in rng.sample(sorted(texts), rng.randint(1, 6)):
            start = max(cached[request_id] - rng.choice([0, 0, 0, 2]), 0)
            length = min(rng.choice([1, 1, 4, 4, 17]), 60 - start)
            if length:
                spans.append(ForwardSpan(request_id, start, texts[request_id][start : start + length], length))
        if not spans:
            continue
        rows = torch.split(executor.forward(spans), [len(span.tokens) for span in spans])
        for span, got in zip(spans, rows, strict=True):
            end = span.prefix_len + len(span.tokens)
            assert torch.equal(got, alone[span.request_id][span.prefix_len : end])
            cached[span.request_id] = end


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_by_a_program_and_call_by_call_have_the_same_bits(folder: Path, dtype: str) -> None:
    """A prompt of more rows than the program has memory for runs call by call, its pieces by the program."""
    executor = load(folder, dtype=dtype)
    ids = text(MAX_ROWS + 30)
    whole = executor.forward([ForwardSpan(1, 0, ids, len(ids))])
    by_pieces = [
        executor.forward([ForwardSpan(2, start, ids[start : start + 31], len(ids[start : start + 31]))])
        for start in range(0, len(ids), 31)
    ]
    assert torch.equal(torch.cat(by_pieces), whole)
    mixed = executor.forward([ForwardSpan(3, 0, ids[:MAX_ROWS], 2), ForwardSpan(2, len(ids) - 1, ids[-1:], 1)])
    assert torch.equal(mixed, torch.cat([whole[MAX_ROWS - 2 : MAX_ROWS], whole[-1:]]))


def test_two_threads_give_the_same_bits_as_one(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", **HEADS)
    spans = [ForwardSpan(1, 0, text(40), 40), ForwardSpan(2, 0, text(3, 2), 3)]
    one = load(folder, dtype="bfloat16", device=Device("cpu", (0,))).forward(spans)
    two = load(folder, dtype="bfloat16", device=Device("cpu", (0, 1))).forward(spans)
    assert torch.equal(one, two)


def test_torch_leaves_the_cores_to_the_kernels_own_threads(tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", **HEADS)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        load(folder)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", NOT_FUSED)
def test_a_model_with_other_parts_runs_in_its_own_code_and_the_reason_is_told(name: str, tmp_path: Path) -> None:
    kind, fields, reason = NOT_FUSED[name]
    folder = make_tiny_model(tmp_path / "m", kind, **fields)
    executor = load(folder, kernels="auto")
    assert executor.kernels == "transformers"
    assert reason in executor.kernels_reason
    with pytest.raises(ConfigError, match="kernels is 'native': do not fit this model") as caught:
        load(folder)
    assert reason in str(caught.value)


def test_heads_that_the_native_kernels_do_not_take_run_on_torchs_operators(tmp_path: Path) -> None:
    executor = load(make_tiny_model(tmp_path / "m", "llama"), kernels="auto")
    assert (executor.kernels, executor.is_batch_invariant) == ("torch", False)
    assert executor.kernels_reason.endswith(" kernels do not fit this model: heads of 8, no multiple of 16")
    assert executor.described_kernels == f"torch ({executor.kernels_reason})"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("factor", "where"),
    [
        ({"residual_multiplier": 0.9}, "layer 0"),
        ({"embedding_multiplier": 1.1}, "the embedding"),
        ({"logits_scaling": 1.1}, "the output layer"),
        ({"attention_multiplier": 0.1}, None),
    ],
)
def test_a_factor_that_others_do_not_have_is_found_by_its_numbers(
    factor: dict[str, float], where: str | None, dtype: str, tmp_path: Path
) -> None:
    """Granite has Llama's parts under the same names, and multiplies between them; the scale of scores is known."""
    folder = add_noise(make_tiny_model(tmp_path / "m", "granite", **HEADS, **NEUTRAL | factor), 0.05)
    executor = load(folder, kernels="auto", dtype=dtype)
    if where is None:
        assert executor.kernels.startswith("native ")
    else:
        assert executor.kernels == "transformers"
        assert f"{where} differs from the model's own by" in executor.kernels_reason


def with_large_keys(folder: Path, seed: int) -> Path:
    """Give queries and keys large and like biases, as in Qwen2.5 1.5B: large scores, whose differences count."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name, weight in weights.items():
        if name.endswith(("k_proj.bias", "q_proj.bias")):
            weights[name] = 64 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
    save_file(weights, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("seed", [36, 37, 38, 39])
def test_scores_that_the_models_plain_attention_rounds_keep_no_model_from_its_kernels(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = with_large_keys(add_noise(make_tiny_model(tmp_path / "m", "qwen2", **HEADS), 0.05), seed)
    assert load(folder, kernels="auto", dtype="bfloat16").kernels.startswith("native ")
    monkeypatch.setattr("minedraft_workers.execution.selfcheck._own_attentions", lambda model: ("eager",))
    alone = load(folder, kernels="auto", dtype="bfloat16").kernels
    assert not alone.startswith("native "), "the plain one alone will not do"


def test_a_factor_is_found_beside_large_keys_too(tmp_path: Path) -> None:
    factors = NEUTRAL | {"residual_multiplier": 0.9, "attention_bias": True}
    folder = add_noise(make_tiny_model(tmp_path / "m", "granite", **HEADS, **factors), 0.05)
    assert load(with_large_keys(folder, 36), kernels="auto", dtype="bfloat16").kernels == "transformers"


def test_a_rotary_embedding_of_a_part_of_the_head_is_not_fused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In bfloat16 the numbers of a few first positions would hardly show it."""

    def rotate_half_of_it(self: LlamaRotaryEmbedding, x: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cos, sin = whole(self, x, ids)
        return cos[..., ::2], sin[..., ::2]

    folder = make_tiny_model(tmp_path / "m", **HEADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)

    def make_cache() -> NativeCache:
        return NativeCache([LayerShape(2, 16, 16)] * 2, 4, 16, torch.bfloat16)

    FusedDecoder(model, NativeLayerKernels(), make_cache)
    whole = LlamaRotaryEmbedding.forward
    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", rotate_half_of_it)
    with pytest.raises(NotFused, match="8 of a head's 16 dimensions"):
        FusedDecoder(model, NativeLayerKernels(), make_cache)


@pytest.mark.parametrize("kernels", ["native", "torch"])
def test_a_nan_stays_with_its_request_and_does_not_reach_the_next_owner_of_its_blocks(
    kernels: str, tmp_path: Path
) -> None:
    executor = load(make_tiny_model(tmp_path / "m", **HEADS), kernels=kernels)
    alone = executor.forward([ForwardSpan(1, 0, text(20), 1)])
    executor.release(1)
    decoder = getattr(executor._runner, "_decoder", executor._runner)
    decoder._weights.embedding[299] = torch.nan
    poisoned = executor.forward([ForwardSpan(2, 0, [299] * 20, 1), ForwardSpan(1, 0, text(20), 1)])
    assert poisoned[0].isnan().all()
    torch.testing.assert_close(poisoned[1:], alone)
    executor.release(2)
    executor.release(1)
    for request_id in range(4):
        again = executor.forward([ForwardSpan(request_id, 0, text(20), 1)])
        assert torch.equal(again, alone) if kernels == "native" else torch.allclose(again, alone, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_the_choice_is_foreseen_without_weights(name: str, tmp_path: Path) -> None:
    folder = make_tiny_model(tmp_path / "m", name, **HEADS)
    said = foresee_kernels(folder, dtype="float32", kernels="auto", device=Device("cpu", (0,)))
    executor = load(folder, kernels="auto")
    assert said.startswith(f"{executor.kernels} kernels, float32: {executor.kernels_reason}; ")
    assert executor.is_batch_invariant == said.endswith("do not depend on the batch it is in")


def test_the_gpu_s_kernels_for_a_cpu_are_refused_before_the_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    folder = make_tiny_model(tmp_path / "m", **HEADS)
    with pytest.raises(ConfigError, match="run on a GPU, not on cpu:0"):
        foresee_kernels(folder, dtype="auto", kernels="triton", device=Device("cpu", (0,)))


@pytest.mark.parametrize("kernels", ["torch", "transformers"])
def test_what_is_asked_for_is_used(kernels: str, tmp_path: Path) -> None:
    executor = load(make_tiny_model(tmp_path / "m", **HEADS), kernels=kernels)
    assert (executor.kernels, executor.kernels_reason) == (kernels, "asked for")
    assert executor.described_kernels == kernels
    assert not executor.is_batch_invariant
    with pytest.raises(ConfigError, match="must be auto, native, triton, torch or transformers"):
        load(tmp_path / "m", kernels="fast")
