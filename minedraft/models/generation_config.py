"""The generation settings of a model folder: end-of-sequence tokens, and defaults of sampling."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError
from minedraft.models.files import read_json_object
from minedraft.sampling_params import MAX_TOKEN_ID

GENERATION_CONFIG_NAME = "generation_config.json"
# Settings that change the answers of transformers' generate -> the value that changes nothing.
_ALWAYS_APPLIED: Mapping[str, object] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "min_length": 0,
    "min_new_tokens": None,
    "num_beams": 1,
    "guidance_scale": None,
    "stop_strings": None,
    "do_sample": False,
}
_APPLIED_WHEN_SAMPLING: Mapping[str, object] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


def read_eos_ids(model_dir: Path, field: str = "target") -> tuple[int, ...]:
    """Return the end-of-sequence ids that the configs of a model folder name, generation_config.json's first.

    The tokenizer may name another one (see Tokenizer.load).

    Raises:
        ModelError: naming `field`, the file and the id: the output layer has no row for the id, so the first
            request would end the service; or the file cannot be read.
    """
    model_dir = Path(model_dir)
    vocab_size = _vocab_size(read_json_object(model_dir / "config.json", field))
    ids: list[int] = []
    for name in (GENERATION_CONFIG_NAME, "config.json"):
        settings = read_json_object(model_dir / name, field)
        for source in (settings, settings.get("text_config")):
            value = source.get("eos_token_id") if isinstance(source, dict) else None
            for token_id in value if isinstance(value, list) else [] if value is None else [value]:
                if isinstance(token_id, bool) or not isinstance(token_id, int):
                    limit = f"eos_token_id {token_id!r} must be an integer, or a list of them"
                    raise ModelError(field, str(model_dir / name), limit)
                if not 0 <= token_id < vocab_size:
                    limit = f"eos_token_id {token_id} is not a token of the model; must be in [0, {vocab_size})"
                    raise ModelError(field, str(model_dir / name), limit)
                ids.append(token_id)
    return tuple(dict.fromkeys(ids))


def describe_unapplied(model_dir: Path) -> str:
    """Return a line that names the defaults of generation_config.json that are not applied here, "" for none.

    For every model, a request without sampling parameters is greedy and without penalties (see
    SamplingParams). With the named defaults, the model's own `generate` may answer differently.

    Raises:
        ModelError: the file cannot be read.
    """
    file = Path(model_dir) / GENERATION_CONFIG_NAME
    settings = read_json_object(file, "target")
    neutral = {**_ALWAYS_APPLIED, **(_APPLIED_WHEN_SAMPLING if settings.get("do_sample") else {})}
    found = [
        f"{name} {settings[name]}"
        for name, value in neutral.items()
        if name in settings and settings[name] is not None and settings[name] != value
    ]
    if not found:
        return ""
    are = "is" if len(found) == 1 else "are"
    return f"{file}: {', '.join(found)} {are} not applied; each request sets its own sampling"


def _vocab_size(config: Mapping[str, Any]) -> int:
    """Return the rows of the output layer; without a vocab_size, which check_model_folder refuses, the maximum."""
    text_config = config.get("text_config")
    value = (text_config if isinstance(text_config, dict) else config).get("vocab_size")
    return value if isinstance(value, int) else MAX_TOKEN_ID + 1
