"""The sizes of models, from which bytes and operations of a forward follow."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from minedraft.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder of the Llama kind.

    Attributes:
        weight_bytes: of one weight of the layers: 2 in bfloat16, 1 in 8 bits, 0.5 in 4 bits.
        is_tied: embeddings and output rows are the same.
    """

    name: str
    num_layers: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab: int
    is_tied: bool = False
    weight_bytes: float = 2.0

    @property
    def layer_weights(self) -> int:
        """Weights of one layer's matrices."""
        attention = self.hidden * self.head_dim * (2 * self.num_heads + 2 * self.num_kv_heads)
        return attention + 3 * self.hidden * self.intermediate

    @property
    def num_weights(self) -> int:
        return self.num_layers * self.layer_weights + self.vocab * self.hidden * (1 if self.is_tied else 2)

    @property
    def read_bytes(self) -> float:
        """Bytes of weights that a forward reads: the layers, and the output rows in bfloat16."""
        return self.num_layers * self.layer_weights * self.weight_bytes + 2.0 * self.vocab * self.hidden

    @property
    def resident_bytes(self) -> float:
        return self.read_bytes + (0.0 if self.is_tied else 2.0 * self.vocab * self.hidden)

    @property
    def kv_bytes(self) -> float:
        """Bytes of keys and values of one token, in bfloat16."""
        return 2.0 * 2 * self.num_layers * self.num_kv_heads * self.head_dim

    @property
    def flops_per_token(self) -> float:
        """Operations of the matrix products of one token."""
        return 2.0 * (self.num_layers * self.layer_weights + self.vocab * self.hidden)

    @property
    def flops_per_kv_token(self) -> float:
        """Operations of one token's attention to one other token, in all layers."""
        return 4.0 * self.num_layers * self.num_heads * self.head_dim


_LLAMA_70B = ModelShape("llama-3.3-70b", 80, 8192, 28672, 64, 8, 128, 128256)
_VICUNA_13B = ModelShape("vicuna-13b", 40, 5120, 13824, 40, 40, 128, 32000)
_VICUNA_33B = ModelShape("vicuna-33b", 60, 6656, 17920, 52, 52, 128, 32000)
SHAPES = {
    shape.name: shape
    for shape in (
        ModelShape("qwen3-0.6b", 28, 1024, 3072, 16, 8, 128, 151936, is_tied=True),
        ModelShape("qwen3-1.7b", 28, 2048, 6144, 16, 8, 128, 151936, is_tied=True),
        ModelShape("qwen3-4b", 36, 2560, 9728, 32, 8, 128, 151936, is_tied=True),
        ModelShape("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936),
        ModelShape("qwen3-14b", 40, 5120, 17408, 40, 8, 128, 151936),
        ModelShape("qwen3-32b", 64, 5120, 25600, 64, 8, 128, 151936),
        ModelShape("llama-3.2-1b", 16, 2048, 8192, 32, 8, 64, 128256, is_tied=True),
        ModelShape("llama-3.2-3b", 28, 3072, 8192, 24, 8, 128, 128256, is_tied=True),
        ModelShape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256),
        _LLAMA_70B,
        replace(_LLAMA_70B, name="llama-3.3-70b-int4", weight_bytes=0.5),
        _VICUNA_13B,
        replace(_VICUNA_13B, name="vicuna-13b-eagle", num_layers=1),
        _VICUNA_33B,
        replace(_VICUNA_33B, name="vicuna-33b-eagle", num_layers=1),
        ModelShape("smollm2-135m", 30, 576, 1536, 9, 3, 64, 49152, is_tied=True),
        ModelShape("qwen2.5-0.5b", 24, 896, 4864, 14, 2, 64, 151936, is_tied=True),
        ModelShape("qwen2.5-1.5b", 28, 1536, 8960, 12, 2, 128, 151936, is_tied=True),
    )
}


def find_shape(field: str, name: str) -> ModelShape:
    """Return the sizes of a named model, or of the one in a folder.

    Raises:
        ConfigError: no model has this name, or the folder's config.json lacks a size.
    """
    if name in SHAPES:
        return SHAPES[name]
    path = Path(name) / "config.json"
    if not path.is_file():
        raise ConfigError(field, name, f"must be a model folder or one of {', '.join(SHAPES)}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        heads = int(config["num_attention_heads"])
        return ModelShape(
            Path(name).name,
            int(config["num_hidden_layers"]),
            int(config["hidden_size"]),
            int(config["intermediate_size"]),
            heads,
            int(config.get("num_key_value_heads") or heads),
            int(config.get("head_dim") or int(config["hidden_size"]) // heads),
            int(config["vocab_size"]),
            bool(config.get("tie_word_embeddings", False)),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(field, str(path), f"lacks a size: {type(error).__name__} {error}") from None
