"""The format of a drafter's shipped weights: matrices in 6 bits a weight, with a scale per 128 weights of a row.

A matrix NAME [rows, columns] is two tensors of the safetensors file; columns is a multiple of 4:

    NAME           uint8 [rows, columns * 6 / 8], the codes of a row one after the other, lowest bit first:

                       byte 0            byte 1            byte 2
                       0 0 0 0 0 0 1 1   1 1 1 1 2 2 2 2   2 2 3 3 3 3 3 3     (the number of the column)

                   a code is from 0 to 62 and stands for -31 to 31
    NAME.scales    float16 [rows, columns / 128, rounded up], positive; scale i of a row is for its columns
                   128 i to 128 i + 127

A weight is what its code stands for times its scale, which is exact in float32. Its error is at most half a scale,
and a scale is a 31st of the largest of its 128 weights, rounded up. That is 6.1 bits a weight in all. Vectors (the
norms) are not in this format: they are stored in bfloat16, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minedraft.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

COLUMNS_PER_SCALE = 128
_CODE_BITS = 6
_MAX_CODE = 31  # codes are stored with this added
_CODES, _BYTES = 4, 3  # so many codes fill so many bytes
_SUFFIX = ".scales"


def pack_matrices(matrices: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Return the tensors that store `matrices` [rows, columns], by name.

    Raises:
        ModelError: the columns are no multiple of 4, or a weight is not finite or too large for a float16 scale.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name, matrix in matrices.items():
        if matrix.shape[1] % _CODES:
            raise ModelError("drafter", name, f"{matrix.shape[1]} columns, must be a multiple of {_CODES}")
        scales = _scales_of(name, matrix)
        tensors[name] = _pack_codes(matrix / _by_column(scales, matrix.shape[1]))
        tensors[name + _SUFFIX] = scales
    return tensors


def unpack_matrices(tensors: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the matrices that `tensors`, read from `path`, store.

    Raises:
        ModelError: a tensor's type, shape or values are not the format's, its scales are missing, or scales belong
            to no matrix.
    """
    names = [name for name in tensors if not name.endswith(_SUFFIX)]
    if lost := tensors.keys() - {*names, *(name + _SUFFIX for name in names)}:
        raise ModelError("drafter", str(path), f"tensor {min(lost)!r} belongs to no matrix")
    return {name: _unpack(name, tensors, path) for name in names}


def _unpack(name: str, tensors: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.float32]:
    import numpy as np

    packed, scales = tensors[name], tensors.get(name + _SUFFIX)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] % _BYTES:
        limit = f"must be a matrix of uint8 whose columns are a multiple of {_BYTES}"
        raise ModelError("drafter", str(path), f"tensor {name!r} is {_kind(packed)}, {limit}")
    if scales is None:
        raise ModelError("drafter", str(path), f"tensor {name!r} has no scales ({name + _SUFFIX!r} is missing)")
    rows, columns = len(packed), packed.shape[1] // _BYTES * _CODES
    shape = (rows, _num_scales(columns))
    if scales.dtype != np.float16 or scales.shape != shape:
        limit = f"must be float16 {list(shape)} for {columns} columns"
        raise ModelError("drafter", str(path), f"tensor {name + _SUFFIX!r} is {_kind(scales)}, {limit}")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ModelError("drafter", str(path), f"tensor {name + _SUFFIX!r} has a scale that is not positive and finite")
    codes = _unpack_codes(packed)
    if (codes > _MAX_CODE).any():
        raise ModelError("drafter", str(path), f"tensor {name!r} has a code above {2 * _MAX_CODE}")
    return codes * _by_column(scales, columns)


def _scales_of(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float16]:
    import numpy as np

    starts = np.arange(0, matrix.shape[1], COLUMNS_PER_SCALE)
    exact = np.maximum.reduceat(np.abs(matrix), starts, axis=1) / np.float32(_MAX_CODE)
    if not (exact <= np.finfo(np.float16).max).all():
        raise ModelError("drafter", name, f"weights must be finite and at most {_MAX_CODE} times float16's largest")
    scales = exact.astype(np.float16)
    # A scale rounded down would need codes above the largest one.
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    return np.maximum(scales, np.finfo(np.float16).smallest_subnormal)  # zeros alone need a scale, too


def _pack_codes(codes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return whole numbers from -31 to 31 [rows, columns], after rounding, as bytes [rows, columns * 6 / 8]."""
    import numpy as np

    stored = (np.rint(codes) + _MAX_CODE).astype(np.uint8)
    bits = stored[:, :, None] >> np.arange(_CODE_BITS, dtype=np.uint8) & 1
    return np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little")


def _unpack_codes(packed: NDArray[np.uint8]) -> NDArray[np.float32]:
    import numpy as np

    bits = np.unpackbits(packed, axis=1, bitorder="little").reshape(len(packed), -1, _CODE_BITS)
    stored = (bits << np.arange(_CODE_BITS, dtype=np.uint8)).sum(axis=2, dtype=np.uint8)
    codes: NDArray[np.float32] = stored.astype(np.float32) - np.float32(_MAX_CODE)
    return codes


def _by_column(scales: NDArray[np.float16], num_columns: int) -> NDArray[np.float32]:
    import numpy as np

    return np.repeat(scales.astype(np.float32), COLUMNS_PER_SCALE, axis=1)[:, :num_columns]


def _num_scales(num_columns: int) -> int:
    return -(-num_columns // COLUMNS_PER_SCALE)


def _kind(tensor: NDArray[Any]) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
