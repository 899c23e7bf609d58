"""Stage `export`: the shipped folder, with only the tensors that the target lacks."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

from minedraft.models.row_scales import pack_matrices
from minedraft.models.shipped_drafter import DRAFTER_MANIFEST, FORMAT, fingerprint_target
from scripts.drafter.config import Config
from scripts.drafter.store import save_json, save_tensors, sha256_of, write_atomically
from scripts.drafter.student import Student

TRAINED_NAME = "trained_layers.safetensors"


def layer_names(index: int) -> dict[str, str]:
    """transformers' names of a layer's unfused tensors, by short name."""
    base = f"model.layers.{index}"
    return {
        "q": f"{base}.self_attn.q_proj.weight",
        "k": f"{base}.self_attn.k_proj.weight",
        "v": f"{base}.self_attn.v_proj.weight",
        "out": f"{base}.self_attn.o_proj.weight",
        "gate": f"{base}.mlp.gate_proj.weight",
        "up": f"{base}.mlp.up_proj.weight",
        "down": f"{base}.mlp.down_proj.weight",
        "input_norm": f"{base}.input_layernorm.weight",
        "post_norm": f"{base}.post_attention_layernorm.weight",
    }


def trained_tensors(student: Student, prefix: int) -> dict[str, torch.Tensor]:
    """The student's own tensors under transformers' names."""
    tensors: dict[str, torch.Tensor] = {"model.norm.weight": student.norm.detach()}
    sizes = [student.num_heads * student.head_dim] + [student.num_kv_heads * student.head_dim] * 2
    for number, layer in enumerate(student.blocks):
        names = layer_names(prefix + number)
        for key, part in zip(("q", "k", "v"), layer["qkv"].detach().split(sizes), strict=True):
            tensors[names[key]] = part
        for key, part in zip(("gate", "up"), layer["gate_up"].detach().chunk(2), strict=True):
            tensors[names[key]] = part
        for key in ("out", "down", "input_norm", "post_norm"):
            tensors[names[key]] = layer[key].detach()
    return tensors


def shipped_tensors(student: Student, prefix: int) -> dict[str, torch.Tensor]:
    """The same as they are stored: matrices in 8 bits with their scales, norms in bf16."""
    trained = trained_tensors(student, prefix)
    matrices = pack_matrices({name: tensor.numpy() for name, tensor in trained.items() if tensor.ndim == 2})
    norms = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items() if tensor.ndim == 1}
    return norms | {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}


def export_asset(
    config: Config, student: Student, ids: torch.Tensor, target: Path, card: str, output: Path
) -> dict[str, int]:
    """Writes the shipped folder; the manifest goes last, so a folder without it was not finished.

    Returns:
        The size in bytes of each file.
    """
    prefix = config.student.prefix
    save_tensors(output / TRAINED_NAME, shipped_tensors(student, prefix), {"format": "pt"})
    save_tensors(output / "draft_vocab.safetensors", {"ids": ids.to(torch.int32)})
    save_json(output / "config.json", student_config(target, config.student.num_layers))
    write_atomically(output / "README.md", lambda path: _write(path, card))
    copied = {"model.embed_tokens.weight": "model.embed_tokens.weight"}
    for index in range(prefix):
        copied |= {name: name for name in layer_names(index).values()}
    names = (TRAINED_NAME, "draft_vocab.safetensors", "config.json", "README.md")
    manifest = {
        "format": FORMAT,
        "target": config.target.name,
        "target_fingerprint": fingerprint_target(target),
        "sha256": {name: sha256_of(output / name) for name in names},
        "copied": copied,
    }
    save_json(output / DRAFTER_MANIFEST, manifest)
    return {path.name: path.stat().st_size for path in sorted(output.iterdir())}


def student_config(target: Path, num_layers: int) -> dict[str, Any]:
    """The target's configuration with fewer layers, without what only names its origin."""
    values: dict[str, Any] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    values.pop("_model_name_or_path", None)
    return values | {"num_hidden_layers": num_layers, "dtype": "bfloat16"}


def untrained_cut(model: LlamaForCausalLM, layers: list[int]) -> LlamaForCausalLM:
    """The target with only some of its layers, weights shared with it: the start of the student."""
    config = type(model.config)(**(model.config.to_dict() | {"num_hidden_layers": len(layers)}))
    with torch.device("meta"):
        cut = LlamaForCausalLM(config)
    cut.model.embed_tokens, cut.model.norm, cut.lm_head = model.model.embed_tokens, model.model.norm, model.lm_head
    cut.model.rotary_emb = model.model.rotary_emb
    # The layers' index into the key-value cache must be their place in the cut, so they are shallow copies.
    for place, index in enumerate(layers):
        cut.model.layers[place].load_state_dict(model.model.layers[index].state_dict(), assign=True)
    cut.eval()
    return cut


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
