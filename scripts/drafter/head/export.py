"""A head's folder: EAGLE-3's layout, with further layers, the target's output rows left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scripts.drafter.head.objective import HeadDrafter
from scripts.drafter.model.export import TRAINED_NAME, pack, save_manifest
from scripts.drafter.store import save_json, save_tensors, write_atomically


def head_tensors(drafter: HeadDrafter) -> dict[str, torch.Tensor]:
    """The trained tensors by their names in the layout."""
    return {name: parameter.detach() for name, parameter in drafter.parameters().items()}


def vocabulary_tensors(drafter: HeadDrafter) -> dict[str, torch.Tensor]:
    """`d2t`: how far a draft vocabulary's index is from its target id; `t2d`: which ids are in it."""
    ids = drafter.target.draft_ids
    chosen = torch.zeros(len(drafter.target.output_rows), dtype=torch.bool)
    chosen[ids] = True
    return {"d2t": ids - torch.arange(len(ids)), "t2d": chosen}


def head_config(drafter: HeadDrafter) -> dict[str, Any]:
    """The configuration of a head's folder."""
    shape, target = drafter.head.shape, drafter.target
    return {
        "architectures": ["LlamaForCausalLMEagle3"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "target_hidden_size": shape.target_hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.eps,
        "rope_theta": shape.rope_theta,
        "max_position_embeddings": target.config.max_position_embeddings,
        "vocab_size": len(target.output_rows),
        "draft_vocab_size": len(target.draft_ids),
        "eagle_aux_hidden_state_layer_ids": list(shape.features),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }


def export_head(drafter: HeadDrafter, _target: Path, card: str, output: Path) -> None:
    """Writes a folder that can be served as it is; the configuration goes last, so an unfinished folder has none."""
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in head_tensors(drafter).items()}
    save_tensors(output / "model.safetensors", weights | vocabulary_tensors(drafter), {"format": "pt"})
    write_atomically(output / "README.md", lambda path: _write(path, card))
    save_json(output / "config.json", head_config(drafter))


def ship_head(drafter: HeadDrafter, target: Path, card: str, output: Path) -> None:
    """Writes the shipped folder; the manifest goes last, so a folder without it was not finished."""
    save_tensors(output / TRAINED_NAME, pack(head_tensors(drafter)), {"format": "pt"})
    save_tensors(output / "draft_vocab.safetensors", {"ids": drafter.target.draft_ids.to(torch.int32)})
    save_json(output / "config.json", head_config(drafter))
    write_atomically(output / "README.md", lambda path: _write(path, card))
    save_manifest(target, output, {})


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
