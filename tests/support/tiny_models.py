"""Tiny random model folders for tests: real transformers architectures, safetensors, a real tokenizer.

The weights are random, but wide enough that greedy decoding visits many tokens instead of repeating one. The
same arguments always give the same folder.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

EOS = "<|im_end|>"
_SPECIALS = ("<|endoftext|>", "<|im_start|>", EOS)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KINDS = ("llama", "qwen2", "qwen3", "mistral", "gemma", "gpt_neox")


def make_tiny_model(
    path: Path,
    kind: str = "llama",
    *,
    vocab_size: int = 320,
    layers: int = 2,
    seed: int = 0,
    tokenizer: bool = True,
    max_position_embeddings: int = 512,
    **overrides: Any,
) -> Path:
    """Write a model folder to `path` and return it.

    Args:
        kind: one of KINDS.
        vocab_size: rows of the embedding; the tokenizer has as many tokens if its small corpus yields
            them, else fewer (the rest is padding, as in real checkpoints).
        seed: of the weights.
        tokenizer: also write tokenizer.json, tokenizer_config.json and chat_template.jinja.
        overrides: further fields of the architecture's config.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    fields: dict[str, Any] = {
        "vocab_size": vocab_size,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": max_position_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "tie_word_embeddings": kind == "gemma",
    }
    if kind != "gpt_neox":
        fields |= {"num_key_value_heads": 2, "head_dim": 8}
    if kind == "mistral":
        fields |= {"sliding_window": None}
    config = CONFIG_MAPPING[kind](**(fields | overrides))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    # Tied and scaled-up embeddings would make every token predict itself.
    embedding_std = 0.2 if config.tie_word_embeddings else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                std = embedding_std if "embed" in name else 2.0 / weight.shape[1] ** 0.5
                weight.normal_(0.0, std, generator=generator)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1, generator=generator)
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path)
    if tokenizer:
        write_tiny_tokenizer(path, vocab_size=vocab_size)
    return path


def add_noise(path: Path, share: float, seed: int = 0) -> Path:
    """Add noise to a model folder's weights, `share` of their spread: as a draft model it then agrees with the
    original often, but not always."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * weight.std() * share)
    model.save_pretrained(path)
    return path


def resize_rows(path: Path, num_rows: int, seed: int = 0) -> Path:
    """Resize a model folder's embedding and output layer to `num_rows`, as checkpoints pad them. Added rows are
    likelier than the others, so that a padding id shows if it is ever chosen."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path)
    num_old = model.get_output_embeddings().weight.shape[0]
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        new = model.get_output_embeddings().weight[num_old:]
        new.normal_(0.0, 2 * model.get_output_embeddings().weight[:num_old].std().item(), generator=generator)
    model.save_pretrained(path)
    return path


def write_tiny_tokenizer(path: Path, *, vocab_size: int = 320, eos: str | None = EOS) -> None:
    """Write a tokenizer with `vocab_size` tokens, or fewer (see make_tiny_model): byte-level BPE if 256 bytes fit,
    else characters of a small alphabet.

    Args:
        eos: its end-of-sequence token; None for answers that always reach max_new_tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    path.mkdir(parents=True, exist_ok=True)
    specials = [AddedToken(text, special=True) for text in _SPECIALS]
    if vocab_size >= 256 + len(_SPECIALS):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.train_from_iterator(
            _CORPUS,
            trainers.BpeTrainer(
                vocab_size=vocab_size,
                special_tokens=specials,
                initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
                show_progress=False,
            ),
        )
    else:
        letters = " etaoinshrdlucmfwypvbgkjqxz.,!?0123456789-'\nABCDEFGHIJKLMNOPQRSTUVWXYZ:;()"
        tokens = [*_SPECIALS, *letters][:vocab_size]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token=_SPECIALS[0]))
        tokenizer.decoder = decoders.Fuse()
        tokenizer.add_special_tokens(specials)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": eos, "bos_token": _SPECIALS[1], "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)


_CORPUS = (
    "The small model drafts and the large model checks what was drafted.",
    "While one batch is verified, the other batch is drafted, and then they swap.",
    "A token that is accepted is committed; the others are thrown away with their cache.",
    "What is the capital of France? Write a function that adds two numbers and returns the sum.",
    "def add(first, second):\n    return first + second\n",
)
