"""The pairs of tiny models: the draft model is the target with noise, so drafts are accepted and rejected."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from tests.support.tiny_heads import make_tiny_head, soften_layers
from tests.support.tiny_models import add_noise, make_tiny_model, write_tiny_tokenizer

NUM_TOKENS = 320  # of the tokenizer
NUM_PADDED = 384
CONTEXT = 512
EOS_ID = 2
_SHORT_CONTEXT = 64
_NOISE = 0.05
# Heads of a size that the native kernels take; presets with kernels torch run the same models without them.
_HEADS: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class PairKind(Enum):
    """How the draft model differs from the target, besides the noise."""

    EVEN = "even"
    WIDE_DRAFTER = "wide-drafter"  # its output layer is padded further
    WIDE_TARGET = "wide-target"  # the target's output layer is padded further
    SHORT_DRAFTER = "short-drafter"  # it has a shorter context
    HEAD = "head"  # it is a head that reads the target's features


@dataclass(frozen=True, slots=True)
class Pair:
    """Two model folders with one tokenizer; `vocab_size` is the number of rows of the target's output layer."""

    target: Path
    draft: Path
    vocab_size: int


def make_pair(folder: Path, kind: PairKind) -> Pair:
    """Write the pair below `folder`, unless it is there."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    vocab_size = NUM_PADDED if kind is PairKind.WIDE_TARGET else NUM_TOKENS
    target = folder / (f"target-{vocab_size}" if kind is not PairKind.HEAD else "target-soft")
    if not target.exists():
        make_tiny_model(
            target, vocab_size=vocab_size, seed=1, max_position_embeddings=CONTEXT, tokenizer=False, **_HEADS
        )
        write_tiny_tokenizer(target, vocab_size=NUM_TOKENS)
        if kind is PairKind.HEAD:
            soften_layers(target, 0.05)
    draft = folder / f"draft-{kind.value}"
    if not draft.exists():
        if kind is PairKind.HEAD:
            make_tiny_head(draft, target, is_alike=True, max_position_embeddings=CONTEXT)
            return Pair(target, draft, vocab_size)
        num_rows = NUM_PADDED if kind is PairKind.WIDE_DRAFTER else NUM_TOKENS
        context = _SHORT_CONTEXT if kind is PairKind.SHORT_DRAFTER else CONTEXT
        _write_draft(target, draft, num_rows=num_rows, context=context)
    return Pair(target, draft, vocab_size)


def _write_draft(target: Path, draft: Path, *, num_rows: int, context: int) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(target, draft)
    model = AutoModelForCausalLM.from_pretrained(target)
    old_num_rows = model.config.vocab_size
    model.resize_token_embeddings(num_rows, mean_resizing=False)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            # New rows as likely as the old ones: a draft of one that the target lacks must be met often.
            rest = layer.weight[old_num_rows:]
            rest.copy_(torch.randn(rest.shape, generator=generator) * layer.weight[:old_num_rows].std())
    model.save_pretrained(draft)
    add_noise(draft, _NOISE)
    config = json.loads((draft / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps(config | {"max_position_embeddings": context}))
