"""Checks whether a folder holds a drafting head that fits its target: fast, and without importing torch."""

from __future__ import annotations

import math
import os
from array import array
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minedraft.errors import ModelError
from minedraft.models.files import read_json_object
from minedraft.models.folder import FolderInfo, check_links
from minedraft.models.heads.layout import (
    AFTER_NORM,
    FEATURE_LAYERS_KEY,
    HeadConfig,
    HeadLayout,
    TensorRule,
    find_layout,
    read_head_config,
    tensor_rules,
)
from minedraft.models.weight_files import BadWeights, PlacedTensor, find_tensors, read_int64

_CONFIG = "config.json"
# Written by some trainers beside the weights: angles that follow from the configuration.
_IGNORED_ENDING = "rotary_emb.inv_freq"
_EMBEDDING_ENDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight")
_OUTPUT_ENDINGS = ("lm_head.weight", "embed_out.weight")
_OWN_ROWS = ("embed_tokens.weight", "lm_head.weight")
_ITEM_BYTES = {"F32": 4, "BF16": 2, "F16": 2, "I64": 8, "BOOL": 1}


@dataclass(frozen=True, slots=True)
class TokenRows:
    """A matrix with a row for each token, in one of a folder's safetensors files."""

    file: Path
    tensor: str


@dataclass(frozen=True, slots=True)
class HeadInfo:
    """A head, and what it needs of its target.

    Attributes:
        files: the safetensors files of its weights.
        feature_layers: the target's layers that it drafts from, as in `minedraft_workers.execution.features`.
        target_size: the target's hidden size. vocab_size: the target's token ids are below it.
        draft_ids: the ids that the columns of its logits stand for, ascending; None: column j is token j.
        max_context: tokens of the longest sequence that it drafts for.
        embedding: of the tokens, its own or the target's.
        output: output rows, its own for `draft_ids`, or the target's for all ids (`has_own_output` is False).
        num_bytes: of its own weights, as stored.
    """

    path: Path
    layout: HeadLayout
    config: HeadConfig
    files: tuple[Path, ...]
    feature_layers: tuple[int, ...]
    target_size: int
    vocab_size: int
    draft_ids: array[int] | None
    max_context: int
    embedding: TokenRows
    output: TokenRows
    has_own_output: bool
    num_bytes: int

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def feature_size(self) -> int:
        """Numbers in a row of features."""
        return len(self.feature_layers) * self.target_size

    def __str__(self) -> str:
        """For people: kind, layers, draft vocabulary, bytes."""
        layers = "1 layer" if self.config.num_layers == 1 else f"{self.config.num_layers} layers"
        ids = "all" if self.draft_ids is None else len(self.draft_ids)
        taken = ", ".join("the final norm" if layer == AFTER_NORM else str(layer) for layer in self.feature_layers)
        return (
            f"{self.layout.value} head, {layers}, features of {taken}, drafts from {ids} of {self.vocab_size} tokens, "
            f"{self.num_bytes / 1e6:.0f} MB"
        )


def is_head_folder(path: Path) -> bool:
    """Whether the folder holds a drafting head, by its tensors; False for what cannot be read."""
    try:
        return find_layout(find_tensors(Path(os.path.expanduser(path)))) is not None
    except (BadWeights, OSError):
        return False


def check_head_folder(path: Path, target: FolderInfo, field: str) -> HeadInfo:
    """Return the facts about the head in `path`, with `~` expanded, for this target.

    Raises:
        ModelError: naming `field`, the path or file, and what it must be instead.
    """
    path = Path(os.path.expanduser(path))
    try:
        if not path.is_dir():
            raise ModelError(field, str(path), "no such folder")
        check_links(path, field)
        return _check_head(path, target, field)
    except OSError as error:
        raise ModelError(field, str(error.filename or path), f"cannot be read ({error.strerror})") from error
    except BadWeights as error:
        raise ModelError(field, str(path), str(error)) from error


def _check_head(path: Path, target: FolderInfo, field: str) -> HeadInfo:
    tensors = _find_own(path)
    layout = find_layout(tensors)
    if layout is None:
        limit = "holds no drafting head (fc.weight and a first layer); draft_method eagle needs one, model a model"
        raise ModelError(field, str(path), limit)
    file = path / _CONFIG
    config = read_head_config(read_json_object(file, field, must_exist=True), layout, file, field)
    size, num_layers = _read_target_sizes(target)
    _check_sizes(config, size, tensors, target, path, field)
    layers = _choose_feature_layers(config, layout, num_layers, file, field)
    draft_ids = None if layout is HeadLayout.EAGLE else _read_draft_ids(tensors, target, path, field)
    rules = tensor_rules(
        config,
        layout,
        target_size=size,
        num_features=len(layers),
        vocab_size=target.vocab_size,
        draft_size=target.vocab_size if draft_ids is None else len(draft_ids),
    )
    _check_tensors(tensors, rules, target, path, field)
    embedding, output = (TokenRows(tensors[name].file, name) if name in tensors else None for name in _OWN_ROWS)
    if embedding is None or output is None:
        targets = _find_token_rows(target)
    return HeadInfo(
        path,
        layout,
        config,
        tuple(sorted({tensor.file for tensor in tensors.values()})),
        layers,
        size,
        target.vocab_size,
        draft_ids,
        min(config.max_context or target.max_context, target.max_context),
        embedding or targets[0],
        output or targets[1],
        output is not None,
        sum(math.prod(tensor.info.shape) * _ITEM_BYTES[tensor.info.dtype] for tensor in tensors.values()),
    )


def _find_own(path: Path) -> dict[str, PlacedTensor]:
    return {name: tensor for name, tensor in find_tensors(path).items() if not name.endswith(_IGNORED_ENDING)}


def _check_tensors(
    tensors: Mapping[str, PlacedTensor], rules: Mapping[str, TensorRule], target: FolderInfo, path: Path, field: str
) -> None:
    """Raise ModelError unless each tensor has a rule and keeps it, and none that is required is missing."""
    if missing := sorted(name for name, rule in rules.items() if rule.is_required and name not in tensors):
        raise ModelError(field, str(path), f"has no tensor {missing[0]}, which this layout needs")
    for name, tensor in tensors.items():
        rule, info = rules.get(name), tensor.info
        if rule is None:
            raise ModelError(field, str(tensor.file), f"has a tensor {name}, which is not computed in this layout")
        if info.dtype not in rule.dtypes:
            wanted = " or ".join(sorted(rule.dtypes))
            raise ModelError(field, str(tensor.file), f"tensor {name} is {info.dtype}, must be {wanted}")
        is_right = len(info.shape) == len(rule.shape) and all(
            wanted in (-1, found) for found, wanted in zip(info.shape, rule.shape, strict=True)
        )
        if not is_right:
            limit = f"tensor {name} is {list(info.shape)}, must be {list(rule.shape)} for the target {target.path}"
            raise ModelError(field, str(tensor.file), limit)


def _read_target_sizes(target: FolderInfo) -> tuple[int, int]:
    """Return the target's hidden size and number of layers."""
    config = read_json_object(target.path / _CONFIG, "target", must_exist=True)
    text = config.get("text_config") or config
    size, num_layers = text.get("hidden_size"), text.get("num_hidden_layers")
    if not isinstance(size, int) or not isinstance(num_layers, int):
        limit = "hidden_size and num_hidden_layers must be given for draft_method eagle"
        raise ModelError("target", str(target.path / _CONFIG), limit)
    return size, num_layers


def _check_sizes(
    config: HeadConfig, size: int, tensors: Mapping[str, PlacedTensor], target: FolderInfo, path: Path, field: str
) -> None:
    """Raise ModelError for a head that is made for targets of another hidden size."""
    made_for = config.target_size or size
    if config.hidden_size != size and not all(name in tensors for name in _OWN_ROWS):
        made_for = config.hidden_size
    if made_for != size:
        limit = f"made for a target of hidden size {made_for}; that of {target.path} is {size}"
        raise ModelError(field, str(path), limit)


def _choose_feature_layers(
    config: HeadConfig, layout: HeadLayout, num_layers: int, file: Path, field: str
) -> tuple[int, ...]:
    """Return the layers of a target of `num_layers` that the head drafts from."""
    if layout is HeadLayout.EAGLE:
        return (AFTER_NORM,)
    layers = config.feature_layers or (2, num_layers // 2, num_layers - 3)
    for layer in layers:
        lowest = AFTER_NORM if config.feature_layers else 0
        if not lowest <= layer <= num_layers:
            limit = f"{FEATURE_LAYERS_KEY} has {layer}: the target has layers 0 to {num_layers}"
            raise ModelError(field, str(file), limit)
    return layers


def _read_draft_ids(tensors: Mapping[str, PlacedTensor], target: FolderInfo, path: Path, field: str) -> array[int]:
    """Return the target's ids of the columns of the head's logits."""
    tensor = tensors.get("d2t")
    if tensor is None:
        raise ModelError(field, str(path), "has no tensor d2t, which this layout needs")
    if tensor.info.dtype != "I64" or len(tensor.info.shape) != 1 or not tensor.info.shape[0]:
        limit = f"tensor d2t is {tensor.info.dtype} {list(tensor.info.shape)}, must be I64 [ids that are drafted]"
        raise ModelError(field, str(tensor.file), limit)
    ids = array("q", (column + offset for column, offset in enumerate(read_int64(tensor.file, "d2t"))))
    last = -1
    for column, token_id in enumerate(ids):
        if not last < token_id < target.vocab_size:
            limit = f"d2t makes column {column} token {token_id}: must ascend within 0 to {target.vocab_size - 1}"
            raise ModelError(field, str(tensor.file), limit)
        last = token_id
    return ids


def _find_token_rows(target: FolderInfo) -> tuple[TokenRows, TokenRows]:
    """Return the target's embedding and output rows; they are the same where it has only one of them."""
    tensors = find_tensors(target.path)

    def find(endings: tuple[str, ...]) -> TokenRows | None:
        names = [name for name in tensors if name.endswith(endings)]
        return TokenRows(tensors[names[0]].file, names[0]) if len(names) == 1 else None

    embedding = find(_EMBEDDING_ENDINGS)
    if embedding is None:
        raise ModelError("target", str(target.path), f"its embedding is not found: no {_EMBEDDING_ENDINGS[0]}")
    return embedding, find(_OUTPUT_ENDINGS) or embedding
