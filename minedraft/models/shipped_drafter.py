"""Assembles a shipped drafter from its own trained tensors and, for all else, the target's folder.

A draft model is a pruned copy of the target. Embeddings, output rows, the tokenizer and the first layers are the
target's own, so the package ships only the trained layers, with matrices in 6 bits
(`minedraft.models.packed_weights`). The folder that transformers loads, in bfloat16, is written once per machine.
A drafting head is stored in the same way; it takes nothing from the target's folder when it is assembled, because a
worker reads the embeddings and output rows there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from minedraft.errors import ModelError
from minedraft.models.files import file_sha256, read_json_object
from minedraft.models.heads.layout import find_layout
from minedraft.models.packed_weights import unpack_matrices
from minedraft.models.vocabulary import vocab_fingerprint

if TYPE_CHECKING:
    import torch

DRAFTER_MANIFEST = "minedraft_draft.json"
FORMAT = 3  # 1 stored the trained layers in bfloat16, 2 in 8 bits
_TRAINED_NAME = "trained_layers.safetensors"
_VOCAB_NAME = "draft_vocab.safetensors"
_CONFIG_NAME = "config.json"
_CARD_NAME = "README.md"
_ASSET_NAMES = (_TRAINED_NAME, _VOCAB_NAME, _CONFIG_NAME, _CARD_NAME)
_TOKENIZER_NAMES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of a shipped drafter's `minedraft_draft.json`.

    sha256: hex, of every other file of the asset folder, by name.
    target_fingerprint: of the target's configuration, vocabulary and probe tensors (`fingerprint_target`).
    copied: name of each tensor that is not shipped -> its name in the target.
    """

    target: str
    target_fingerprint: str
    sha256: dict[str, str]
    copied: dict[str, str]


def read_manifest(asset_dir: Path) -> Manifest:
    """Return the manifest of a shipped drafter.

    Raises:
        ModelError: the manifest is missing, truncated, or of another format.
    """
    path = Path(asset_dir) / DRAFTER_MANIFEST
    values = read_json_object(path, "drafter", must_exist=True)
    try:
        if values["format"] != FORMAT:
            raise ModelError("drafter", str(path), f"format {values['format']}, this version reads format {FORMAT}")
        return Manifest(
            str(values["target"]), str(values["target_fingerprint"]), dict(values["sha256"]), dict(values["copied"])
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError("drafter", str(path), "not a drafter's manifest (truncated?)") from error


def verify_asset(asset_dir: Path) -> Manifest:
    """Return the manifest, after checking the sha256 of every shipped file against it.

    Raises:
        ModelError: a file is missing, truncated or modified.
    """
    manifest = read_manifest(asset_dir)
    for name in _ASSET_NAMES:
        path = Path(asset_dir) / name
        try:
            found = file_sha256(path)
        except OSError as error:
            raise ModelError("drafter", str(path), f"cannot be read ({error.strerror})") from error
        if found != manifest.sha256.get(name):
            limit = "its sha256 differs from the manifest: the file was modified or truncated"
            raise ModelError("drafter", str(path), limit)
    return manifest


def fingerprint_target(target_dir: Path) -> str:
    """Return a sha256, in hex, that identifies a target by sizes, vocabulary and the values of a norm.

    The weights are not hashed: a conversion on another machine may round the last bit differently, and the
    drafter would still fit.
    """
    values = read_json_object(Path(target_dir) / _CONFIG_NAME, "target", must_exist=True)
    keys = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    sizes = [values.get(key) for key in keys]
    probe = _probe(Path(target_dir))
    text = json.dumps([sizes, vocab_fingerprint(Path(target_dir)), probe])
    return hashlib.sha256(text.encode()).hexdigest()


def assemble_drafter(asset_dir: Path, target_dir: Path, out_dir: Path) -> None:
    """Write the drafter's full folder, for transformers to load.

    The folder is made beside `out_dir` and renamed, so that `out_dir` is either complete or untouched.

    Args:
        asset_dir: the shipped files.
        target_dir: the converted target.
        out_dir: must not exist, or be an earlier result (it is replaced).

    Raises:
        ModelError: a shipped file fails its checksum, the target is another model, or the disk is full.
    """
    asset_dir, target_dir, out_dir = Path(asset_dir), Path(target_dir), Path(out_dir)
    manifest = verify_asset(asset_dir)
    if fingerprint_target(target_dir) != manifest.target_fingerprint:
        raise ModelError("target", str(target_dir), f"not {manifest.target}, the model that the drafter is made for")
    if out_dir.exists() and not (out_dir / DRAFTER_MANIFEST).is_file():
        raise ModelError("drafter", str(out_dir), "exists and is not an assembled drafter; not replaced")
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out_dir.name}.", dir=out_dir.parent) as temporary:
            folder = Path(temporary) / "folder"
            folder.mkdir()
            _fill(folder, asset_dir, target_dir, manifest)
            if out_dir.exists():
                out_dir.replace(Path(temporary) / "old")
            folder.replace(out_dir)
    except OSError as error:
        raise ModelError("drafter", str(out_dir), f"cannot be written ({error.strerror or error})") from error


def _fill(folder: Path, asset_dir: Path, target_dir: Path, manifest: Manifest) -> None:
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    try:
        tensors = _read_trained(asset_dir / _TRAINED_NAME)
        is_head = find_layout(tensors) is not None
        if is_head:
            tensors |= _vocabulary_tensors(asset_dir, target_dir)
        with safe_open(target_dir / "model.safetensors", "pt") as file:
            for name, source in manifest.copied.items():
                tensors[name] = file.get_tensor(source).bfloat16()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)  # the library makes it private to this user
    except SafetensorError as error:
        raise ModelError("drafter", str(folder.parent), f"weights cannot be read or written ({error})") from error
    for name in (_CONFIG_NAME, _CARD_NAME):
        shutil.copyfile(asset_dir / name, folder / name)
    if not is_head:  # a head has no tokenizer, and its draft vocabulary is among its tensors
        _check_map(asset_dir / _VOCAB_NAME, len(tensors["model.embed_tokens.weight"]))
        shutil.copyfile(asset_dir / _VOCAB_NAME, folder / _VOCAB_NAME)
        for name in filter(lambda name: (target_dir / name).is_file(), _TOKENIZER_NAMES):
            shutil.copyfile(target_dir / name, folder / name)
    written = {path.name: file_sha256(path) for path in sorted(folder.iterdir())}
    values = {
        "format": FORMAT,
        "target": manifest.target,
        "target_fingerprint": manifest.target_fingerprint,
        "sha256": written,
    }
    path = folder / DRAFTER_MANIFEST
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read_trained(path: Path) -> dict[str, torch.Tensor]:
    """Return the trained layers in bfloat16, under transformers' names."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(path)
    norms = {name: tensor for name, tensor in stored.items() if tensor.dtype == torch.bfloat16}
    matrices = unpack_matrices({name: stored[name].numpy() for name in stored.keys() - norms.keys()}, path)
    return norms | {name: torch.from_numpy(matrix).bfloat16() for name, matrix in matrices.items()}


def _vocabulary_tensors(asset_dir: Path, target_dir: Path) -> dict[str, torch.Tensor]:
    """Return how far the token id of each column of a head's logits is from the column's number (`d2t`)."""
    import torch
    from safetensors.torch import load_file

    path = asset_dir / _VOCAB_NAME
    config = read_json_object(target_dir / _CONFIG_NAME, "target", must_exist=True)
    _check_map(path, config["vocab_size"])
    ids = load_file(path)["ids"].long()
    return {"d2t": ids - torch.arange(len(ids))}


def _check_map(path: Path, vocab_size: int) -> None:
    from safetensors.torch import load_file

    ids = load_file(path)["ids"].tolist()
    if not ids or ids[0] < 0 or ids[-1] >= vocab_size or any(a >= b for a, b in pairwise(ids)):
        raise ModelError("drafter", str(path), f"token ids must ascend without repeats, below {vocab_size}")


def _probe(target_dir: Path) -> list[str]:
    # The final norm's values, rounded to two digits: bf16 and fp32 copies of one model agree on these.
    from safetensors import SafetensorError, safe_open

    path = target_dir / "model.safetensors"
    try:
        with safe_open(path, "pt") as file:
            values = file.get_tensor("model.norm.weight").float()
    except (SafetensorError, OSError) as error:
        raise ModelError("target", str(path), f"cannot be read ({error})") from error
    return [f"{value:.1e}" for value in values.bfloat16().tolist()[:64]]


def main(arguments: list[str]) -> int:
    """Run `python -m minedraft.models.shipped_drafter ASSET_DIR TARGET_DIR OUT_DIR`; on failure, the last line of
    standard error is the cause."""
    try:
        assemble_drafter(*map(Path, arguments))
    except ModelError as error:
        print(error, file=sys.stderr)  # noqa: T201 (a program of its own, started by minedraft.models.catalogue)
        return 1
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 4:
        raise SystemExit("usage: python -m minedraft.models.shipped_drafter ASSET_DIR TARGET_DIR OUT_DIR")
    raise SystemExit(main(sys.argv[1:]))
