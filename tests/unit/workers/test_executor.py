"""The executor against the model's own full-sequence forward, float32."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from minedraft.core.blocks import BlocksExhausted
from minedraft.device import Device
from minedraft.errors import ConfigError, ProtocolError
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.options import LoadOptions
from tests.support.tiny_models import make_tiny_model

# Kind and what makes it worth a row of its own.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama_mqa_tied": ("llama", {"num_key_value_heads": 1, "tie_word_embeddings": True, "attention_bias": True}),
    "qwen2": ("qwen2", {}),
    "qwen2_window": (
        "qwen2",
        {
            "use_sliding_window": True,
            "sliding_window": 11,
            "max_window_layers": 1,
            "layer_types": ["full_attention", "sliding_attention"],
        },
    ),
    "qwen3": ("qwen3", {}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "gemma": ("gemma", {}),
    "gemma2": ("gemma2", {"sliding_window": 20, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 20, "layers": 6}),
    "gpt_neox": ("gpt_neox", {}),
}

FUSED = [("llama", "torch"), ("llama_mqa_tied", "torch"), ("qwen2", "torch")]


def load(path: Path, **options: object) -> Executor:
    settings = {"device": Device.parse("cpu").here(), "dtype": "float32", "num_blocks": 64, "kernels": "transformers"}
    return Executor.load(path, LoadOptions(**(settings | options)))


class Reference:
    """transformers' own model, whole sequences, its own attention."""

    def __init__(self, path: Path) -> None:
        self.model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        ).eval()

    @torch.inference_mode()
    def logits(self, tokens: list[int], num_logits: int) -> torch.Tensor:
        return self.model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, len(tokens) - num_logits :]


class Checked:
    """An executor whose every row of logits is compared with the reference's."""

    def __init__(self, executor: Executor, reference: Reference) -> None:
        self.executor = executor
        self.reference = reference
        self.cached: dict[int, list[int]] = {}

    def forward(self, *spans: ForwardSpan) -> torch.Tensor:
        logits = self.executor.forward(spans)
        rows = logits.split([span.num_logits for span in spans])
        for span, got in zip(spans, rows, strict=True):
            text = self.cached.get(span.request_id, [])[: span.prefix_len] + list(span.tokens)
            self.cached[span.request_id] = text
            if span.num_logits:
                want = self.reference.logits(text, span.num_logits)
                torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
                assert torch.equal(got.argmax(-1), want.argmax(-1))
        return logits

    def release(self, request_id: int) -> None:
        self.executor.release(request_id)
        self.cached.pop(request_id, None)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("llama"))


@pytest.fixture
def llama(llama_dir: Path) -> Iterator[Checked]:
    checked = Checked(load(llama_dir), Reference(llama_dir))
    yield checked
    for request_id in list(checked.cached):
        checked.release(request_id)
    assert checked.executor.num_free_blocks == checked.executor.num_blocks


def tokens(count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 300), k=count)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kernels"), [*((name, "transformers") for name in ARCHITECTURES), *FUSED])
def test_a_random_schedule_gives_the_models_own_logits(name: str, kernels: str, tmp_path: Path) -> None:
    kind, overrides = ARCHITECTURES[name]
    path = make_tiny_model(tmp_path, kind, **overrides)
    checked = Checked(load(path, num_blocks=40, kernels=kernels), Reference(path))
    assert checked.executor.kernels == kernels
    rng = random.Random(name)
    committed: dict[int, list[int]] = {}  # cached and accepted, by request
    for step in range(25):
        if len(committed) < 5 and step % 2 == 0:
            committed[step] = []
        spans, kept = [], {}
        for request_id, text in committed.items():
            count = rng.choice((5, 16, 33, 70)) if not text else rng.choice((1, 1, 4, 6))
            new = tokens(count, rng.randrange(1 << 30))
            spans.append(ForwardSpan(request_id, len(text), new, rng.choice((count, 1, 0)) if not text else count))
            # A prompt chunk stays whole; of a verified span at least its first token does.
            kept[request_id] = text + (new if not text else new[: rng.randint(1, count)])
        rng.shuffle(spans)
        checked.forward(*spans)
        committed = kept
        for request_id in [i for i, text in committed.items() if len(text) > 80]:
            checked.release(request_id)
            del committed[request_id]
    for request_id in committed:
        checked.release(request_id)
    assert checked.executor.num_free_blocks == 40


def test_prompt_chunk_decode_and_verify_spans_share_one_forward(llama: Checked) -> None:
    llama.forward(ForwardSpan(1, 0, tokens(20), 1), ForwardSpan(2, 0, tokens(7, 1), 1))
    llama.forward(
        ForwardSpan(1, 20, tokens(5, 2), 5), ForwardSpan(3, 0, tokens(40, 3), 0), ForwardSpan(2, 7, tokens(1, 4), 1)
    )
    llama.forward(
        ForwardSpan(3, 40, tokens(9, 5), 1), ForwardSpan(2, 8, tokens(1, 6), 1), ForwardSpan(1, 23, tokens(5, 7), 5)
    )


@pytest.mark.parametrize("length", [1, 15, 16, 17, 32])
def test_block_boundaries_hold_no_surprise(llama: Checked, length: int) -> None:
    llama.forward(ForwardSpan(1, 0, tokens(length), length))
    for i in range(3):
        llama.forward(ForwardSpan(1, length + i, tokens(1, i), 1))


def test_a_rolled_back_prefix_is_rewritten(llama: Checked) -> None:
    llama.forward(ForwardSpan(1, 0, tokens(30), 1))
    llama.forward(ForwardSpan(1, 30, tokens(6, 1), 6))
    llama.forward(ForwardSpan(1, 31, tokens(6, 2), 6))
    llama.forward(ForwardSpan(1, 3, tokens(2, 3), 2))
    assert llama.executor.cached_len(1) == 5
    assert llama.executor.num_free_blocks == llama.executor.num_blocks - 1
    llama.forward(ForwardSpan(1, 0, tokens(50, 4), 50))


def test_a_sequence_may_fill_the_whole_pool(llama_dir: Path) -> None:
    checked = Checked(load(llama_dir, num_blocks=3), Reference(llama_dir))
    assert checked.executor.max_model_len == 48
    checked.forward(ForwardSpan(1, 0, tokens(47), 1))
    checked.forward(ForwardSpan(1, 47, tokens(1), 1))
    assert checked.executor.num_free_blocks == 0
    checked.release(1)
    checked.forward(ForwardSpan(2, 0, tokens(16, 1), 1), ForwardSpan(3, 0, tokens(16, 2), 1), ForwardSpan(4, 0, [5], 1))


def test_many_sequences_of_different_lengths_decode_together(llama: Checked) -> None:
    lengths = [1 + 5 * i % 37 for i in range(24)]
    llama.forward(*(ForwardSpan(i, 0, tokens(n, i), 1) for i, n in enumerate(lengths)))
    llama.forward(*(ForwardSpan(i, n, tokens(1, i), 1) for i, n in enumerate(lengths)))


def test_what_does_not_fit_changes_nothing(llama_dir: Path) -> None:
    checked = Checked(load(llama_dir, num_blocks=4), Reference(llama_dir))
    checked.forward(ForwardSpan(1, 0, tokens(20), 1))
    with pytest.raises(BlocksExhausted, match="2 are free"):
        checked.executor.forward([ForwardSpan(1, 20, tokens(1), 1), ForwardSpan(2, 0, tokens(33), 1)])
    assert (checked.executor.num_free_blocks, checked.executor.cached_len(1)) == (2, 20)
    # What one request gives up in a forward another may take in it.
    checked.forward(ForwardSpan(2, 0, tokens(48), 1), ForwardSpan(1, 3, tokens(1), 1))


def test_a_forward_without_wanted_rows_only_caches(llama: Checked) -> None:
    assert llama.forward(ForwardSpan(1, 0, tokens(18), 0)).shape == (0, 320)
    llama.forward(ForwardSpan(1, 18, tokens(2), 2))
    assert llama.executor.forward([]).shape == (0, 320)


@pytest.mark.parametrize(
    ("span", "message"),
    [
        (ForwardSpan(1, 0, [], 0), "has 0 tokens"),
        (ForwardSpan(1, 0, [320], 1), "token id outside 0..319"),
        (ForwardSpan(1, 0, [-1], 1), "token id outside"),
        (ForwardSpan(1, 0, [5], 2), "wants 2 rows"),
        (ForwardSpan(1, 1, [5], 1), "keeps 1 tokens, 0 are cached"),
        (ForwardSpan(1, -1, [5], 1), "keeps -1 tokens"),
        (ForwardSpan(1, 0, [5] * 513, 1), "limit 512"),
    ],
)
def test_a_broken_span_is_refused_by_name(llama: Checked, span: ForwardSpan, message: str) -> None:
    with pytest.raises(ProtocolError, match=message):
        llama.executor.forward([span])
    assert llama.executor.num_free_blocks == llama.executor.num_blocks


def test_a_request_comes_once_in_a_forward(llama: Checked) -> None:
    with pytest.raises(ProtocolError, match="request 1 comes twice"):
        llama.executor.forward([ForwardSpan(1, 0, [5], 1), ForwardSpan(1, 0, [6], 1)])


def test_logits_do_not_depend_on_neighbours_or_their_nan(llama_dir: Path, tmp_path: Path) -> None:
    executor = load(llama_dir)
    alone = executor.forward([ForwardSpan(1, 0, tokens(20), 1)])
    executor.release(1)
    embedding = executor._runner._model.get_input_embeddings().weight
    embedding[299] = torch.nan
    poisoned = executor.forward([ForwardSpan(2, 0, [299] * 20, 1), ForwardSpan(1, 0, tokens(20), 1)])
    assert poisoned[0].isnan().all()
    torch.testing.assert_close(poisoned[1:], alone)
    # Nor does it reach the next owner of the block.
    executor.release(2)
    executor.release(1)
    for request_id in range(4):
        again = executor.forward([ForwardSpan(request_id, 0, tokens(20), 1)])
        torch.testing.assert_close(again, alone)


def test_two_executors_in_one_process_do_not_meet(llama_dir: Path, tmp_path: Path) -> None:
    other_dir = make_tiny_model(tmp_path, "qwen2", seed=3)
    first, second = Checked(load(llama_dir), Reference(llama_dir)), Checked(load(other_dir), Reference(other_dir))
    for checked in (first, second, first):
        start = len(checked.cached.get(1, []))
        checked.forward(ForwardSpan(1, start, tokens(20, start), 20))


def test_a_new_epoch_starts_empty(llama: Checked) -> None:
    llama.forward(ForwardSpan(1, 0, tokens(20), 1), ForwardSpan(2, 0, tokens(3), 1))
    llama.executor.release_all()
    assert llama.executor.num_free_blocks == llama.executor.num_blocks
    assert llama.executor.cached_len(1) == 0


def test_a_context_stretched_by_yarn_is_computed_as_the_model_does(tmp_path: Path) -> None:
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
    path = make_tiny_model(tmp_path, "qwen2", max_position_embeddings=64, rope_parameters=yarn)
    checked = Checked(load(path), Reference(path))
    assert checked.executor.max_model_len == 256
    checked.forward(ForwardSpan(1, 0, tokens(200), 200), ForwardSpan(2, 0, tokens(30, 1), 30))
    checked.forward(ForwardSpan(2, 30, tokens(3, 2), 3), ForwardSpan(1, 200, tokens(56, 3), 56))


def test_capacity_follows_memory_and_context_follows_the_model(
    llama_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 2 layers x 2 heads x (8 + 8) float32 a token, 16 tokens a block.
    free_bytes = 8 * (20 * 4096 + 5)
    monkeypatch.setattr("minedraft_workers.execution.memory.available_memory", lambda: free_bytes)
    assert load(llama_dir, num_blocks=None).num_blocks == 20
    assert load(llama_dir, max_model_len=100).max_model_len == 100
    with pytest.raises(ConfigError, match="max_model_len is 513: the model's context is 512 tokens"):
        load(llama_dir, max_model_len=513)
    with pytest.raises(ConfigError, match=r"num_blocks is \d+: needs 1125900 GB of KV cache, more than this device"):
        load(llama_dir, num_blocks=1 << 38)
    free_bytes = 8 * 4095
    with pytest.raises(ConfigError, match="one block of 16 tokens needs 4096 bytes, the memory has room for 4095"):
        load(llama_dir, num_blocks=None)


def test_it_says_what_it_is(llama_dir: Path) -> None:
    executor = load(llama_dir)
    assert executor.model_name == llama_dir.name
    assert executor.dtype_name == "float32"
    assert executor.device_name.startswith("cpu:")
    assert executor.weights_bytes == sum(p.nbytes for p in Reference(llama_dir).model.parameters())
