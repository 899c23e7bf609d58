"""Draft models as folders: one that can be served as it is, and the parts of it that a package ships."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from minedraft.models.packed_weights import pack_matrices
from minedraft.models.shipped_drafter import DRAFTER_MANIFEST, FORMAT, fingerprint_target
from scripts.drafter.model.network import cut_config
from scripts.drafter.model.objective import ModelDrafter
from scripts.drafter.store import save_json, save_tensors, sha256_of, write_atomically

TRAINED_NAME = "trained_layers.safetensors"
TOKENIZER_FILES = ("*token*.json", "*.jinja", "vocab.json", "merges.txt", "*.model", "generation_config.json")


def trained_tensors(drafter: ModelDrafter) -> dict[str, torch.Tensor]:
    """The trained layers and the final norm under the names that they have in the draft model's folder."""
    base = decoder_name(drafter)
    tensors = {}
    for name, parameter in drafter.parameters().items():
        if name.startswith("layers."):
            _, number, rest = name.split(".", 2)
            name = f"layers.{int(number) + drafter.prefix}.{rest}"
        tensors[f"{base}{name}"] = parameter.detach()
    return tensors


def decoder_name(drafter: ModelDrafter) -> str:
    """The prefix of the decoder's tensors in the target's files, such as `model.`."""
    decoder = drafter.target.model.get_decoder()
    return next(
        f"{name}." if name else "" for name, module in drafter.target.model.named_modules() if module is decoder
    )


def copied_names(drafter: ModelDrafter) -> list[str]:
    """The tensors that a draft model shares with its target: all but the layers after the prefix and the norm."""
    base = decoder_name(drafter)
    kept = []
    for name in drafter.target.model.state_dict():
        is_layer = name.startswith(f"{base}layers.")
        if is_layer and int(name.removeprefix(f"{base}layers.").split(".")[0]) >= drafter.prefix:
            continue
        if name.startswith(f"{base}norm."):
            continue
        if name == "lm_head.weight" and drafter.target.config.tie_word_embeddings:
            continue
        kept.append(name)
    return kept


def model_config(drafter: ModelDrafter, target: Path) -> dict[str, Any]:
    """The target's configuration with fewer layers, without what only names its origin."""
    values: dict[str, Any] = json.loads((target / "config.json").read_text(encoding="utf-8"))
    values.pop("_name_or_path", None)
    values.pop("_model_name_or_path", None)
    layers = [*range(drafter.prefix), *drafter.trained]
    text = cut_config(drafter.target.model.config, layers).get_text_config()
    values |= {"num_hidden_layers": len(layers), "dtype": "bfloat16"}
    if "layer_types" in values:
        values["layer_types"] = text.layer_types
    return values


def export_model(drafter: ModelDrafter, target: Path, card: str, output: Path) -> None:
    """Writes a folder that can be served as it is; the configuration goes last, so an unfinished folder has none."""
    source = drafter.target.model.state_dict()
    tensors = {name: source[name] for name in copied_names(drafter)} | trained_tensors(drafter)
    save_tensors(
        output / "model.safetensors",
        {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()},
        {"format": "pt"},
    )
    save_tensors(output / "draft_vocab.safetensors", {"ids": drafter.target.draft_ids.to(torch.int32)})
    for pattern in TOKENIZER_FILES:
        for path in target.glob(pattern):
            shutil.copyfile(path, output / path.name)
    write_atomically(output / "README.md", lambda path: _write(path, card))
    save_json(output / "config.json", model_config(drafter, target))


def pack(trained: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Trained tensors as they are shipped: matrices in 6 bits with their scales, vectors in bf16."""
    matrices = pack_matrices({name: tensor.float().numpy() for name, tensor in trained.items() if tensor.ndim == 2})
    vectors = {name: tensor.to(torch.bfloat16) for name, tensor in trained.items() if tensor.ndim == 1}
    return vectors | {name: torch.from_numpy(matrix) for name, matrix in matrices.items()}


def ship_model(drafter: ModelDrafter, target: Path, card: str, output: Path) -> None:
    """Writes the shipped folder; the manifest goes last, so a folder without it was not finished."""
    save_tensors(output / TRAINED_NAME, pack(trained_tensors(drafter)), {"format": "pt"})
    save_tensors(output / "draft_vocab.safetensors", {"ids": drafter.target.draft_ids.to(torch.int32)})
    save_json(output / "config.json", model_config(drafter, target))
    write_atomically(output / "README.md", lambda path: _write(path, card))
    save_manifest(target, output, {name: name for name in copied_names(drafter)})


def save_manifest(target: Path, output: Path, copied: dict[str, str]) -> None:
    """Writes what a shipped folder holds and what its drafter takes from the target."""
    names = (TRAINED_NAME, "draft_vocab.safetensors", "config.json", "README.md")
    manifest = {
        "format": FORMAT,
        "target": target.name,
        "target_fingerprint": fingerprint_target(target),
        "sha256": {name: sha256_of(output / name) for name in names},
        "copied": copied,
    }
    save_json(output / DRAFTER_MANIFEST, manifest)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
