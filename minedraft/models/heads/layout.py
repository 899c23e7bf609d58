"""The layouts of drafting heads: how they are told apart, their sizes, and the tensors that each must hold.

A head drafts from the target's own features (Li et al. 2024, EAGLE; 2025, EAGLE-3). Its input at a position is a
token and the feature of the token before it. Two layouts are read, told apart by their tensors:

* EAGLE, of EAGLE-1 and EAGLE-2: one layer without a norm before its attention, on `fc` of embedding and feature;
  the feature is the target's output after its final norm, the output rows are the target's.
* EAGLE-3: a first layer, `midlayer`, whose attention reads the norms of embedding and feature side by side; `fc`
  makes the feature of the outputs of several layers of the target. It has a final norm, output rows for a part of
  the vocabulary, and here, beyond the published heads, any number of further ordinary layers and of feature layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError
from minedraft.models.model_config import check_types, max_context

FEATURE_LAYERS_KEY = "eagle_aux_hidden_state_layer_ids"
AFTER_NORM = -1  # the feature layer of EAGLE: the output of the target's final norm
_FIRST_LAYERS = {"layers.0": "layers.0.self_attn.q_proj.weight", "midlayer": "midlayer.self_attn.q_proj.weight"}
_STATIC_ROPES = frozenset({"default", "linear", "llama3", "yarn"})  # angles that depend on the position alone
_FLOATS = frozenset({"F32", "BF16", "F16"})
_IDS = frozenset({"I64"})
_MARKS = frozenset({"BOOL"})


class HeadLayout(str, Enum):
    """Which tensors a head has; the value is what people call it."""

    EAGLE = "EAGLE"
    EAGLE_3 = "EAGLE-3"

    @property
    def first_layer(self) -> str:
        """The name that the keys of the first layer begin with."""
        return "layers.0" if self is HeadLayout.EAGLE else "midlayer"


def find_layout(names: Iterable[str]) -> HeadLayout | None:
    """Return the layout of the head that has tensors of these names; None if they are no head's."""
    found = set(names)
    if "fc.weight" not in found:
        return None
    return next((layout for layout in HeadLayout if _FIRST_LAYERS[layout.first_layer] in found), None)


@dataclass(frozen=True, slots=True)
class HeadConfig:
    """The sizes in a head's config.json, with the defaults of Llama's configuration.

    Attributes:
        feature_layers, target_size: as given; None if they are not.
        max_context: in tokens; None if it is not given.
        rope: what transformers calls rope_theta, rope_scaling and rope_parameters, where they are given.
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    eps: float
    max_context: int | None
    rope: dict[str, Any]
    feature_layers: tuple[int, ...] | None
    target_size: int | None


def read_head_config(config: Mapping[str, Any], layout: HeadLayout, file: Path, field: str) -> HeadConfig:
    """Return the sizes in `config`, read from `file`.

    Raises:
        ModelError: one of them is missing, of a wrong type, or of a kind that is not run here.
    """
    check_types(config, file, field)

    def number(key: str, default: int | None = None) -> int:
        value = default if config.get(key) is None else config[key]
        if not isinstance(value, int):  # a list is a model's with sizes for each layer
            raise ModelError(field, str(file), f"{key} must be given, a positive integer")
        return value

    if (act := config.get("hidden_act") or "silu") != "silu":
        raise ModelError(field, str(file), f"hidden_act is {act!r}: only silu is supported")
    hidden_size, num_heads = number("hidden_size"), number("num_attention_heads")
    num_layers = number("num_hidden_layers", 1)
    if layout is HeadLayout.EAGLE and num_layers != 1:
        raise ModelError(field, str(file), f"num_hidden_layers is {num_layers}: a head of this layout has 1")
    eps = config.get("rms_norm_eps", 1e-6)
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise ModelError(field, str(file), f"rms_norm_eps must be a small positive number, not {eps!r}")
    return HeadConfig(
        hidden_size,
        number("intermediate_size"),
        num_layers,
        num_heads,
        number("num_key_value_heads", num_heads),
        number("head_dim", max(hidden_size // num_heads, 1)),
        eps,
        max_context(config),
        _read_rope(config, file, field),
        _read_feature_layers(config, file, field),
        None if config.get("target_hidden_size") is None else number("target_hidden_size"),
    )


@dataclass(frozen=True, slots=True)
class TensorRule:
    """What a tensor of a head must be. shape: -1 for any size."""

    shape: tuple[int, ...]
    dtypes: frozenset[str] = _FLOATS
    is_required: bool = True


def tensor_rules(
    config: HeadConfig, layout: HeadLayout, *, target_size: int, num_features: int, vocab_size: int, draft_size: int
) -> dict[str, TensorRule]:
    """Return the rule of each tensor that a head may have, by name.

    Args:
        target_size: the target's hidden size. num_features: feature layers. vocab_size: the target's ids.
        draft_size: ids that the head can propose.
    """
    size, first = config.hidden_size, layout.first_layer
    is_eagle = layout is HeadLayout.EAGLE
    # The rows of an output layer or embedding of its own that pad the vocabulary are not used.
    rules = {
        "fc.weight": TensorRule((size, size + target_size if is_eagle else num_features * target_size)),
        "fc.bias": TensorRule((size,), is_required=False),
        "embed_tokens.weight": TensorRule((vocab_size, size), is_required=size != target_size),
        "lm_head.weight": TensorRule((draft_size, size), is_required=size != target_size),
        **_layer_rules(config, first, size if is_eagle else 2 * size),
    }
    if is_eagle:
        return rules
    norms = ["norm", f"{first}.input_layernorm", f"{first}.hidden_norm"]
    for index in range(1, config.num_layers):
        rules |= _layer_rules(config, f"layers.{index}", size)
        norms.append(f"layers.{index}.input_layernorm")
    rules |= {f"{name}.weight": TensorRule((size,)) for name in norms}
    return rules | {
        "d2t": TensorRule((draft_size,), _IDS),
        "t2d": TensorRule((-1,), _MARKS, is_required=False),
    }


def _layer_rules(config: HeadConfig, name: str, width: int) -> dict[str, TensorRule]:
    """Return the rules of a layer whose attention reads `width` columns, but for the norm before that."""
    size, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    projections = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (size, queries)}
    rules = {f"{name}.post_attention_layernorm.weight": TensorRule((size,))}
    for part, shape in projections.items():
        rules[f"{name}.self_attn.{part}_proj.weight"] = TensorRule(shape)
        rules[f"{name}.self_attn.{part}_proj.bias"] = TensorRule(shape[:1], is_required=False)
    for part, shape in {"gate": (inner, size), "up": (inner, size), "down": (size, inner)}.items():
        rules[f"{name}.mlp.{part}_proj.weight"] = TensorRule(shape)
    return rules


def _read_feature_layers(config: Mapping[str, Any], file: Path, field: str) -> tuple[int, ...] | None:
    inner = config.get("eagle_config")
    value = config.get(FEATURE_LAYERS_KEY)
    if value is None and isinstance(inner, dict):
        value = inner.get(FEATURE_LAYERS_KEY)
    if value is None:
        return None
    if not isinstance(value, list) or not value or any(type(layer) is not int for layer in value):
        raise ModelError(field, str(file), f"{FEATURE_LAYERS_KEY} must be a list of integers, not {value!r}")
    return tuple(value)


def _read_rope(config: Mapping[str, Any], file: Path, field: str) -> dict[str, Any]:
    keys = ("rope_theta", "rope_scaling", "rope_parameters")
    rope = {key: config[key] for key in keys if config.get(key) is not None}
    for name in ("rope_scaling", "rope_parameters"):
        inner = rope.get(name, {})
        kind = inner.get("rope_type", inner.get("type", "default"))
        if kind not in _STATIC_ROPES:
            raise ModelError(field, str(file), f"a rotary embedding of type {kind!r} is not supported in a head")
    theta = rope.get("rope_theta", 1.0)
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not theta > 0:
        raise ModelError(field, str(file), f"rope_theta must be a positive number, not {theta!r}")
    return rope
