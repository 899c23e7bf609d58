"""Checks safetensors files by their headers, without a tensor library and without reading weights."""

from __future__ import annotations

import json
import math
import os
import sys
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
_MAX_HEADER_BYTES = 100_000_000  # the limit of the format's reference implementation
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64,
    "C64": 64,
}  # fmt: skip


class BadWeights(Exception):
    """A weight file cannot be loaded; the message says why."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One entry of a safetensors header; `dtype` is the format's name (BF16, F32, ...)."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlacedTensor:
    """A tensor and the file that has it."""

    file: Path
    info: TensorInfo


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a safetensors file after checking its size against its header.

    Raises:
        BadWeights: the file is truncated, longer than its header says, or not a safetensors file.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        file_bytes = os.fstat(file.fileno()).st_size
        header_bytes = int.from_bytes(file.read(8), "little")
        if file_bytes < 10 or header_bytes > _MAX_HEADER_BYTES:
            raise BadWeights(f"not a safetensors file ({file_bytes} bytes)")
        if 8 + header_bytes > file_bytes:
            raise BadWeights(f"truncated: {file_bytes} bytes, the header alone has {8 + header_bytes}")
        raw = file.read(header_bytes)
    try:
        entries = json.loads(raw)
        entries.pop("__metadata__", None)
        tensors = {name: (str(e["dtype"]), tuple(e["shape"]), *e["data_offsets"]) for name, e in entries.items()}
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise BadWeights("not a safetensors file (its header is not the JSON table of the format)") from error
    end = 0
    for name, (dtype, shape, start, stop) in sorted(tensors.items(), key=lambda item: item[1][2:]):
        if dtype not in _BITS or not all(isinstance(n, int) and n >= 0 for n in (*shape, start, stop)):
            raise BadWeights(f"tensor {name!r} has an unknown type or shape ({dtype} {list(shape)})")
        if start != end or (stop - start) * 8 != math.prod(shape) * _BITS[dtype]:
            raise BadWeights(f"the offsets of tensor {name!r} do not match its type and shape")
        end = stop
    expected = 8 + header_bytes + end
    if file_bytes != expected:
        kind = "truncated" if file_bytes < expected else "too long"
        raise BadWeights(f"{kind}: {file_bytes} bytes, expected {expected} from its header")
    return {name: TensorInfo(dtype, shape) for name, (dtype, shape, _, _) in tensors.items()}


def read_int64(path: Path, name: str) -> array[int]:
    """Return the numbers of a tensor of dtype I64 in a file that `read_header` has checked.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        start, stop = json.loads(file.read(header_bytes))[name]["data_offsets"]
        file.seek(8 + header_bytes + start)
        numbers = array("q", file.read(stop - start))
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def read_shard_names(index_path: Path) -> Mapping[str, frozenset[str]]:
    """Return shard file name -> names of the tensors it must hold.

    Raises:
        BadWeights: the index is malformed, or names a file outside its folder.
    """
    try:
        weight_map = json.loads(index_path.read_bytes())["weight_map"]
        pairs = [(str(tensor), str(shard)) for tensor, shard in weight_map.items()]
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise BadWeights("has no weight_map") from error
    shards: dict[str, set[str]] = {}
    for tensor, shard in pairs:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise BadWeights(f"names the shard {shard!r}; shards must be .safetensors files beside the index")
        shards.setdefault(shard, set()).add(tensor)
    if not shards:
        raise BadWeights("its weight_map is empty")
    return {shard: frozenset(names) for shard, names in sorted(shards.items())}


def read_all_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return every tensor of the model in `folder`, from one file or from shards.

    Raises:
        BadWeights: a file cannot be loaded; the message starts with the file's name.
        FileNotFoundError: there is neither model.safetensors nor its index.
    """
    if (folder / WEIGHTS_NAME).exists():
        return _named(WEIGHTS_NAME, read_header, folder)
    shards = _named(INDEX_NAME, read_shard_names, folder)
    tensors: dict[str, TensorInfo] = {}
    for shard, names in shards.items():
        if not (folder / shard).exists():
            raise BadWeights(f"{shard}: missing, although {INDEX_NAME} lists it")
        found = _named(shard, read_header, folder)
        if missing := sorted(names - found.keys()):
            raise BadWeights(f"{shard}: has no tensor {missing[0]!r}, although {INDEX_NAME} lists it")
        tensors |= found
    return tensors


def find_tensors(folder: Path) -> dict[str, PlacedTensor]:
    """Return every tensor in `folder` with its file: of the model's files or, without these, of all that are there.

    Raises:
        BadWeights: a file cannot be read, or two have a tensor of one name; the message starts with the file's name.
    """
    if (folder / WEIGHTS_NAME).exists():
        names = [WEIGHTS_NAME]
    elif (folder / INDEX_NAME).exists():
        names = list(_named(INDEX_NAME, read_shard_names, folder))
    else:
        names = sorted(file.name for file in folder.glob("*.safetensors"))
    tensors: dict[str, PlacedTensor] = {}
    for file in names:
        for name, info in _named(file, read_header, folder).items():
            if name in tensors:
                raise BadWeights(f"{file}: has the tensor {name!r}, which {tensors[name].file.name} has too")
            tensors[name] = PlacedTensor(folder / file, info)
    return tensors


def _named(name: str, read: Callable[[Path], T], folder: Path) -> T:
    try:
        return read(folder / name)
    except BadWeights as error:
        raise BadWeights(f"{name}: {error}") from error
