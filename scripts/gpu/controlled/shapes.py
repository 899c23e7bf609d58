"""The sizes of the models that are made on the spot, those of well-known models and tiny ones for a CPU."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's sizes, with the names of transformers' configurations. kind: "llama" or "qwen2"."""

    kind: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    max_position_embeddings: int = 8192


SHAPES = {
    "llama-8b": Shape("llama", 128_256, 4096, 14_336, 32, 32, 8, 128),
    "llama-1b": Shape("llama", 128_256, 2048, 8192, 16, 32, 8, 64),
    # Small enough for a few CPU cores, beside a target of the same vocabulary.
    "llama-two-layers": Shape("llama", 128_256, 512, 1536, 2, 8, 2, 64),
    "qwen-1.5b": Shape("qwen2", 151_936, 1536, 8960, 28, 12, 2, 128),
    "qwen-0.5b": Shape("qwen2", 151_936, 896, 4864, 24, 14, 2, 64),
    "smollm-135m": Shape("llama", 49_152, 576, 1536, 30, 9, 3, 64),
    # As the tests make them (`tests/support/tiny_models.py`), where every kind of kernel takes their heads.
    "test-model": Shape("llama", 320, 64, 64, 2, 4, 2, 16, 512),
    "tiny": Shape("llama", 512, 64, 128, 2, 4, 2, 16, 512),
    "tiny-qwen": Shape("qwen2", 512, 64, 128, 2, 4, 2, 16, 512),
    "tiny-draft": Shape("llama", 512, 64, 64, 1, 4, 2, 16, 512),
}
