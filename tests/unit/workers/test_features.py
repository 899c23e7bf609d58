"""Features of a target: transformers' own hidden states, by every runner, and never at the cost of the logits."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from minedraft.device import Device
from minedraft.errors import ConfigError
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.features import AFTER_FINAL_NORM
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.execution.programs import MAX_ROWS
from tests.support.native import needs_native
from tests.support.tiny_models import make_tiny_model

LAYERS = 5
WIDE = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}
# Every place, two of them twice and out of order.
WANTED = (3, 0, LAYERS, 1, AFTER_FINAL_NORM, 3)
MODELS = {
    "llama": ("llama", WIDE),
    "tied": ("llama", WIDE | {"tie_word_embeddings": True}),
    "biases": ("qwen2", WIDE),
    "gemma": ("gemma", {}),
    "gpt_neox": ("gpt_neox", {}),
}
RUNS = [
    *((name, kernels) for name in ("llama", "tied", "biases") for kernels in ("native", "torch", "transformers")),
    ("gemma", "transformers"),
    ("gpt_neox", "transformers"),
]


def load(path: Path, **options: object) -> Executor:
    settings: dict[str, object] = {"device": Device.parse("cpu").here(), "dtype": "float32", "num_blocks": 384}
    settings |= {"block_size": 4, "kernels": "native"} | options
    return Executor.load(path, LoadOptions(**settings))  # type: ignore[arg-type]


def text(length: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 320), k=length)


def own_features(path: Path, ids: list[int], layers: tuple[int, ...]) -> torch.Tensor:
    """Return the model's own hidden states. transformers gives the last layer's output only after the final norm;
    before it, it is what the norm is given."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    last: list[torch.Tensor] = []
    decoder = model.get_decoder()
    norm = getattr(decoder, "norm", None) or decoder.final_layer_norm
    norm.register_forward_pre_hook(lambda module, args: last.append(args[0]))
    with torch.inference_mode():
        states = model(input_ids=torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    places = {**dict(enumerate(states)), LAYERS: last[0], AFTER_FINAL_NORM: states[-1]}
    return torch.cat([places[layer][0] for layer in layers], dim=1)


@needs_native
@pytest.mark.parametrize(("name", "kernels"), RUNS)
def test_they_are_the_models_own_hidden_states_and_the_logits_keep_their_bits(
    name: str, kernels: str, tmp_path: Path
) -> None:
    kind, fields = MODELS[name]
    folder = make_tiny_model(tmp_path, kind, layers=LAYERS, **fields)
    executor = load(folder, kernels=kernels)
    texts = {1: text(MAX_ROWS + 20), 2: text(9, 1), 3: text(12, 2)}
    # A long chunk, then spans that are packed in another order than they are given in.
    forwards = [
        [ForwardSpan(1, 0, texts[1][:-3], 1)],
        [
            ForwardSpan(3, 0, texts[3][:-1], 2),
            ForwardSpan(1, len(texts[1]) - 3, texts[1][-3:], 3),
            ForwardSpan(2, 0, texts[2], 0),
        ],
        [ForwardSpan(3, 11, texts[3][-1:], 1)],
    ]
    plain = [executor.forward(spans) for spans in forwards]
    executor.release_all()
    executor.want_features(WANTED)
    outputs = [executor.forward_with_features(spans) for spans in forwards]
    found: dict[int, list[torch.Tensor]] = {1: [], 2: [], 3: []}
    for spans, output, logits in zip(forwards, outputs, plain, strict=True):
        assert torch.equal(output.logits, logits)
        assert output.features.dtype == torch.float32
        rows = output.features.split([len(span.tokens) for span in spans])
        for span, features in zip(spans, rows, strict=True):
            found[span.request_id].append(features)
    for request_id, ids in texts.items():
        want = own_features(folder, ids, WANTED)
        torch.testing.assert_close(torch.cat(found[request_id]), want, rtol=1e-3, atol=1e-3)
    executor.release_all()
    assert all(torch.equal(executor.forward(spans), logits) for spans, logits in zip(forwards, plain, strict=True))


@needs_native
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_natively_their_bits_depend_on_their_own_request_alone(dtype: str, tmp_path: Path) -> None:
    executor = load(make_tiny_model(tmp_path, layers=LAYERS, **WIDE), dtype=dtype)
    executor.want_features(WANTED)
    whole = {
        i: executor.forward_with_features([ForwardSpan(i, 0, text(MAX_ROWS + 9, i), 0)]).features for i in range(4)
    }
    executor.release_all()
    assert whole[0].dtype == getattr(torch, dtype)
    ends = dict.fromkeys(whole, 0)
    rng = random.Random(3)
    while any(end < MAX_ROWS + 9 for end in ends.values()):
        chosen = [i for i in rng.sample(sorted(ends), 3) if ends[i] < MAX_ROWS + 9]
        lengths = {i: min(rng.choice([1, 5, 33]), MAX_ROWS + 9 - ends[i]) for i in chosen}
        spans = [ForwardSpan(i, ends[i], text(MAX_ROWS + 9, i)[ends[i] : ends[i] + n], 0) for i, n in lengths.items()]
        rows = executor.forward_with_features(spans).features.split(list(lengths.values()))
        for (i, n), features in zip(lengths.items(), rows, strict=True):
            assert torch.equal(features, whole[i][ends[i] : ends[i] + n])
            ends[i] += n


@needs_native
@pytest.mark.parametrize("kernels", ["native", "torch", "transformers"])
def test_wanted_layers_change_and_nothing_wanted_gives_no_columns(kernels: str, tmp_path: Path) -> None:
    executor = load(make_tiny_model(tmp_path, layers=LAYERS, **WIDE), kernels=kernels)
    span = [ForwardSpan(1, 0, text(6), 1)]
    assert executor.forward_with_features(span).features.shape == (6, 0)
    executor.want_features((2, AFTER_FINAL_NORM))
    assert executor.forward_with_features([]).features.shape == (0, 128)
    both = executor.forward_with_features(span).features
    executor.want_features((2,))
    assert torch.equal(executor.forward_with_features(span).features, both[:, :64])
    executor.want_features((AFTER_FINAL_NORM,))
    assert torch.equal(executor.forward_with_features(span).features, both[:, 64:])
    executor.want_features(())
    assert executor.forward_with_features(span).features.shape == (6, 0)


@pytest.mark.parametrize("layer", [-2, LAYERS + 1])
def test_a_layer_that_the_model_does_not_have_is_refused_with_its_limits(layer: int, tmp_path: Path) -> None:
    executor = load(make_tiny_model(tmp_path, layers=LAYERS), kernels="transformers")
    with pytest.raises(ConfigError, match=rf"feature_layers is {layer}: .* has layers -1 to {LAYERS}"):
        executor.want_features((0, layer))
