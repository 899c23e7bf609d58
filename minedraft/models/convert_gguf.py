"""Converts a GGUF file to a bf16 model folder: `python -m minedraft.models.convert_gguf GGUF OUT EOS...`.

A separate program, so that its memory is freed when it ends. It prints one line per step on standard
output.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any


def convert(gguf: Path, out: Path, eos_tokens: list[str]) -> None:
    """Write config, weights, tokenizer, chat template and generation settings of `gguf` to `out`."""
    print("reading the tokenizer", flush=True)  # noqa: T201 - read by the parent process
    tokenizer = _write_tokenizer(gguf, out)
    print("reading the weights", flush=True)  # noqa: T201
    _write_weights(gguf, out, [tokenizer[token] for token in eos_tokens])


def _write_tokenizer(gguf: Path, out: Path) -> dict[str, int]:
    """Write the tokenizer's files and return its vocabulary."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    settings: dict[str, Any] = json.loads(loaded.backend_tokenizer.to_str())
    vocab: dict[str, int] = settings["model"]["vocab"]
    # GGUF names the rows that only pad the output layer; they are not tokens.
    for token in [token for token in vocab if re.fullmatch(r"\[PAD\d+\]", token)]:
        del vocab[token]
    if loaded.__class__.__name__.startswith("Qwen2") and settings["normalizer"] is None:
        # GGUF has no field for it; the original tokenizer composes characters first.
        settings["normalizer"] = {"type": "NFC"}
    (out / "tokenizer.json").write_text(json.dumps(settings, ensure_ascii=False))
    names = ("bos_token", "eos_token", "unk_token", "pad_token")
    config = {name: str(text) for name in names if (text := getattr(loaded, name, None)) is not None}
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False))
    if loaded.chat_template:
        (out / "chat_template.jinja").write_text(loaded.chat_template)
    return vocab | {token["content"]: token["id"] for token in settings["added_tokens"]}


def _write_weights(gguf: Path, out: Path, eos_ids: list[int]) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, GgufConfig

    # By default, transformers 5 keeps GGUF weights packed and refuses to save them.
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
    )
    print("writing the weights", flush=True)  # noqa: T201
    config = model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.architectures = [type(model).__name__]
    config.__dict__.pop("_model_name_or_path", None)
    config.dtype = torch.bfloat16
    config.eos_token_id = eos_ids[0]
    config.save_pretrained(out)
    weights = {name: weight.to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    if config.tie_word_embeddings:
        weights.pop("lm_head.weight", None)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # the library makes it private to this user
    generation = {"bos_token_id": config.bos_token_id, "pad_token_id": config.pad_token_id, "eos_token_id": eos_ids}
    (out / "generation_config.json").write_text(json.dumps(generation, indent=1))


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
