"""The facts about a model in config.json, as far as they can be checked without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError

_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "seq_length", "n_ctx")
# Ropes whose frequencies change for a whole forward if one sequence in it exceeds the trained context.
_LENGTH_DEPENDENT_ROPES = frozenset({"dynamic", "longrope", "su"})
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
_CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
_ENCODER_DECODERS = frozenset(
    {
        "bart",
        "blenderbot",
        "encoder-decoder",
        "led",
        "m2m_100",
        "marian",
        "mbart",
        "mt5",
        "pegasus",
        "t5",
        "umt5",
        "whisper",
    }
)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The facts in config.json. vocab_size: rows of the output layer. max_context: in tokens, see `max_context`."""

    model_type: str
    vocab_size: int
    max_context: int


def check_config(config: Mapping[str, Any], file: Path, field: str) -> ModelConfig:
    """Return the facts in `config`, read from `file`.

    Raises:
        ModelError: naming `field`, the file or its folder, and what it must be instead.
    """
    text_config = config.get("text_config")
    if text_config is None:
        text_config = config
    elif not isinstance(text_config, dict):
        raise ModelError(field, str(file), f"text_config must be an object, not {text_config!r}")
    for each in (config, text_config):
        check_types(each, file, field)
        _refuse_code(each, file, field)
    _check_kind(config, file, field)
    vocab_size, context = _first_positive(text_config.get("vocab_size")), max_context(text_config)
    if vocab_size is None:
        raise ModelError(field, str(file), "vocab_size must be given, a positive integer")
    if context is None:
        raise ModelError(field, str(file), f"{_CONTEXT_KEYS[0]} must be given, a positive integer")
    return ModelConfig(str(config["model_type"]), vocab_size, context)


def _refuse_code(config: Mapping[str, Any], file: Path, field: str) -> None:
    """Raise ModelError if the folder brings code of its own. It would not be run, but libraries have run it before when
    they were told not to (CVE-2026-22807)."""
    if config.get("auto_map"):
        limit = "auto_map names code in the folder, which is never run; remove it if transformers has the model itself"
        raise ModelError(field, str(file), limit)


def max_context(config: Mapping[str, Any]) -> int | None:
    """Return the longest sequence, in tokens, for which the position encoding does not change; None if unknown.

    Args:
        config: the text model's, as config.json or transformers has it.
    """
    limit = _first_positive(*(config.get(key) for key in _CONTEXT_KEYS))
    if limit is None:
        return None
    ropes = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if any(isinstance(value, dict) for value in ropes.values()):  # one for each kind of layer
        each = [value for value in ropes.values() if isinstance(value, dict)]
    else:
        each = [ropes]
    trained = _first_positive(config.get("original_max_position_embeddings"))
    return min(_rope_context(rope, limit, trained) for rope in each)


def _rope_context(rope: Mapping[str, Any], limit: int, trained: int | None) -> int:
    """Return the longest sequence for one rope. trained: the context before it was extended, if config.json
    states it outside the rope."""
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    trained = trained or _first_positive(rope.get("original_max_position_embeddings")) or limit
    if kind in _LENGTH_DEPENDENT_ROPES:
        return min(trained, limit)
    # YaRN has the same frequencies at every length.
    if kind == "yarn" and isinstance(factor, (int, float)) and math.isfinite(factor):
        return max(int(trained * factor), limit)
    return limit


def _check_kind(config: Mapping[str, Any], file: Path, field: str) -> None:
    folder, model_type = file.parent, config.get("model_type")
    if not model_type:
        raise ModelError(field, str(file), "has no model_type")
    if config.get("is_encoder_decoder") or model_type in _ENCODER_DECODERS:
        limit = f"an encoder-decoder model ({model_type}); only causal language models are supported"
        raise ModelError(field, str(folder), limit)
    architectures = config.get("architectures") or []
    if architectures and not any(str(name).endswith(_CAUSAL_ENDINGS) for name in architectures):
        raise ModelError(field, str(folder), f"{architectures[0]} does not generate text; give a causal language model")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method", "?") if isinstance(quantization, dict) else "?"
        raise ModelError(field, str(folder), f"quantised weights ({method}); give the bf16, fp16 or fp32 checkpoint")


def check_types(config: Mapping[str, Any], file: Path, field: str) -> None:
    """Raise ModelError for a value of the wrong type, before transformers does it, which needs torch. null means
    "not given"."""

    def expect(key: str, is_right: bool, what: str) -> None:
        if not is_right:
            raise ModelError(field, str(file), f"{key} must be {what}, not {config[key]!r}")

    given = {key for key, value in config.items() if value is not None}
    for key in given.intersection(_SIZES):  # some models have a list, one entry per layer
        expect(key, isinstance(config[key], list) or _first_positive(config[key]) is not None, "a positive integer")
    for key in given & {"tie_word_embeddings", "is_encoder_decoder"}:
        expect(key, isinstance(config[key], bool), "true or false")
    for key in given & {"rope_parameters", "rope_scaling"}:
        expect(key, isinstance(config[key], dict), "an object")
    for rope in (config[key] for key in given & {"rope_parameters", "rope_scaling"}):
        _check_rope(rope, file, field)
    for key in given & {"model_type"}:
        expect(key, isinstance(config[key], str), "a string")
    for key in given & {"architectures", "layer_types"}:
        expect(key, isinstance(config[key], list), "a list")


def _check_rope(rope: Mapping[str, Any], file: Path, field: str) -> None:
    """Raise ModelError unless the rope's factor is a positive number: any other makes every logit NaN."""
    for each in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        factor = each.get("factor")
        is_number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
        if factor is not None and not (is_number and math.isfinite(factor) and factor > 0):
            raise ModelError(field, str(file), f"the rope's factor must be a positive number, not {factor!r}")


def _first_positive(*values: object) -> int | None:
    return next((v for v in values if isinstance(v, int) and not isinstance(v, bool) and v > 0), None)
