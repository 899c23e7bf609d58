"""Checks whether a model folder can be served: fast, and without importing torch.

Only folders that are safe to load pass: safetensors, a tokenizer.json, a causal language model, no link
that leaves the folder, no code of the folder's own (auto_map).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from minedraft.errors import ModelError
from minedraft.models.files import read_json_object
from minedraft.models.generation_config import read_eos_ids
from minedraft.models.heads.layout import find_layout
from minedraft.models.model_config import ModelConfig, check_config
from minedraft.models.vocabulary import check_vocabulary_fits, read_vocabulary, vocab_fingerprint
from minedraft.models.weight_files import (
    INDEX_NAME,
    WEIGHTS_NAME,
    BadWeights,
    find_tensors,
    read_all_tensors,
    read_header,
)

DRAFT_VOCAB_NAME = "draft_vocab.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_LOADED_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")


@dataclass(frozen=True, slots=True)
class FolderInfo:
    """The facts about a model that its folder's files state.

    Attributes:
        vocab_size: rows of the output layer; may exceed the tokenizer's size (padding).
        max_context: the longest sequence, in tokens (see `model_config.max_context`).
    """

    path: Path
    name: str
    model_type: str
    vocab_size: int
    max_context: int


def check_model_folder(path: Path, field: str) -> FolderInfo:
    """Return the facts about the model in `path`, with `~` expanded.

    Raises:
        ModelError: naming `field` (the flag or setting of the path), the path or file, and what it
            must be instead.
    """
    path = Path(path)
    try:
        return _check(Path(os.path.expanduser(path)), field)
    except OSError as error:
        raise ModelError(field, str(error.filename or path), f"cannot be read ({error.strerror})") from error


def check_pair(target: FolderInfo, draft: FolderInfo, field: str = "draft") -> None:
    """Raise ModelError unless both folders have the same tokens under the same ids.

    The output layers may differ in size (checkpoints pad them).
    """
    if vocab_fingerprint(draft.path) != vocab_fingerprint(target.path):
        raise ModelError(
            field,
            str(draft.path),
            f"must have the tokenizer of the target {target.path}, but "
            + _first_difference(read_vocabulary(target.path), read_vocabulary(draft.path)),
        )


def _check(path: Path, field: str) -> FolderInfo:
    if not path.exists():
        raise ModelError(field, str(path), "no such folder")
    if not path.is_dir():
        what = "a GGUF file" if path.suffix == ".gguf" else "a file"
        raise ModelError(field, str(path), f"{what}; give the folder that holds config.json and {WEIGHTS_NAME}")
    check_links(path, field)
    _refuse_head(path, field)
    config = _read_config(path, field)
    _check_weights(path, field)
    _check_tokenizer_file(path, field)
    check_vocabulary_fits(path, config.vocab_size, field)
    _check_draft_vocab(path, config.vocab_size, field)
    read_eos_ids(path, field)  # each must be a token of the model
    return FolderInfo(
        path=path,
        name=path.resolve().name,
        model_type=config.model_type,
        vocab_size=config.vocab_size,
        max_context=config.max_context,
    )


def check_links(path: Path, field: str) -> None:
    """Raise ModelError for a link that leaves the folder, or is broken. Links from snapshots/REV/FILE to
    blobs/HASH, as in a hub cache, are allowed."""
    root = path.resolve()
    allowed = [root]
    if root.parent.name == "snapshots":
        allowed.append(root.parent.parent / "blobs")
    for entry in path.iterdir():
        if entry.is_symlink() and entry.name.endswith(_LOADED_SUFFIXES):
            real = entry.resolve()
            if not any(real.is_relative_to(place) for place in allowed):
                raise ModelError(
                    field, str(entry), "a link to a file outside the model folder; replace it with the file itself"
                )
            if not real.exists():
                raise ModelError(field, str(entry), "a link to a missing file; fetch the model again")


def _read_config(path: Path, field: str) -> ModelConfig:
    if not (path / "config.json").exists():
        ggufs = sorted(path.glob("*.gguf"))
        if ggufs:
            raise ModelError(field, str(path), _gguf_hint(ggufs[0]))
        raise ModelError(field, str(path), "no config.json in it; not a Hugging Face model folder")
    return check_config(read_json_object(path / "config.json", field), path / "config.json", field)


def _refuse_head(path: Path, field: str) -> None:
    """Raise ModelError if the folder holds a drafting head. What cannot be read is told elsewhere."""
    try:
        layout = find_layout(find_tensors(path))
    except (BadWeights, FileNotFoundError):
        return
    if layout is not None:
        limit = f"holds no model, but an {layout.value} head: draft_method eagle takes it as draft, model needs a model"
        raise ModelError(field, str(path), limit)


def _check_weights(path: Path, field: str) -> None:
    if not (path / WEIGHTS_NAME).exists() and not (path / INDEX_NAME).exists():
        raise ModelError(field, str(path), _missing_weights(path))
    try:
        tensors = read_all_tensors(path)
    except BadWeights as error:
        raise ModelError(field, str(path), str(error)) from error
    if not tensors:
        raise ModelError(field, str(path / WEIGHTS_NAME), "holds no tensors")


def _missing_weights(path: Path) -> str:
    if (path / "adapter_model.safetensors").exists():
        return f"a LoRA adapter without its base model; merge the two and save {WEIGHTS_NAME}"
    pickles = [p for p in _files(path) if p.suffix in _PICKLES]
    if pickles:
        return (
            f"only {pickles[0].name}: pickled weights are refused because loading them can run code; "
            "save the model as safetensors (save_pretrained does)"
        )
    if ggufs := [p for p in _files(path) if p.suffix == ".gguf"]:
        return _gguf_hint(ggufs[0])
    return f"no weights in it; {WEIGHTS_NAME} or {INDEX_NAME} is needed"


def _gguf_hint(gguf: Path) -> str:
    return (
        f"only GGUF weights ({gguf.name}); safetensors are needed "
        "(`minedraft models` lists the models that it can fetch and convert)"
    )


def _check_tokenizer_file(path: Path, field: str) -> None:
    file = path / "tokenizer.json"
    if not file.exists():
        raise ModelError(field, str(path), "no tokenizer.json in it; save the fast tokenizer beside the weights")
    with file.open("rb") as stream:
        head = stream.read(64).lstrip()
        stream.seek(max(0, file.stat().st_size - 64))
        tail = stream.read().rstrip()
    if not head.startswith(b"{") or not tail.endswith(b"}"):
        raise ModelError(field, str(file), "not a JSON object (truncated or overwritten?)")


def _check_draft_vocab(path: Path, vocab_size: int, field: str) -> None:
    file = path / DRAFT_VOCAB_NAME
    if not file.exists():
        return
    try:
        ids = read_header(file).get("ids")
    except BadWeights as error:
        raise ModelError(field, str(file), str(error)) from error
    if ids is None or ids.dtype != "I32" or len(ids.shape) != 1 or not 1 <= ids.shape[0] <= vocab_size:
        raise ModelError(field, str(file), f"must hold a tensor 'ids', int32 [1 to {vocab_size}]")


def _first_difference(target: Mapping[int, str], draft: Mapping[int, str]) -> str:
    for token_id in sorted(target.keys() | draft.keys()):
        if target.get(token_id) != draft.get(token_id):
            break
    ours, theirs = (repr(v[token_id]) if token_id in v else "nothing" for v in (draft, target))
    return f"id {token_id} is {ours} in the draft and {theirs} in the target ({len(draft)} and {len(target)} tokens)"


def _files(path: Path) -> Iterator[Path]:
    return (entry for entry in sorted(path.iterdir()) if entry.is_file())
