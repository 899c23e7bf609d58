"""The format of a drafter's shipped weights: matrices as 8-bit integers with a scale per four rows.

A matrix NAME [rows, columns] is two tensors of the safetensors file:

    NAME           int8 [rows, columns], codes from -127 to 127
    NAME.scales    float16 [rows / 4, rounded up], positive; scale i is for the rows 4i to 4i + 3

A weight is its code times its row's scale, which is exact in float32. Its error is at most half a scale, and a
scale is a 127th of the largest weight of its rows, rounded up. Vectors (the norms) are not in this format: they
are stored in bfloat16, unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minedraft.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROWS_PER_SCALE = 4  # with a scale per row the shipped drafter would exceed 32 MB
_SUFFIX = ".scales"
_MAX_CODE = 127


def pack_matrices(matrices: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[Any]]:
    """Return the tensors that store `matrices` [rows, columns], by name.

    Raises:
        ModelError: a weight is not finite, or too large for a float16 scale.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for name, matrix in matrices.items():
        scales = _scales_of(name, matrix)
        tensors[name] = _codes_of(matrix, scales)
        tensors[name + _SUFFIX] = scales
    return tensors


def unpack_matrices(tensors: Mapping[str, NDArray[Any]], path: Path) -> dict[str, NDArray[np.float32]]:
    """Return the matrices that `tensors`, read from `path`, store.

    Raises:
        ModelError: a tensor's type or shape is not the format's, its scales are missing, or scales belong to no
            matrix.
    """
    names = [name for name in tensors if not name.endswith(_SUFFIX)]
    if lost := tensors.keys() - {*names, *(name + _SUFFIX for name in names)}:
        raise ModelError("drafter", str(path), f"tensor {min(lost)!r} belongs to no matrix")
    return {name: _unpack(name, tensors, path) for name in names}


def _unpack(name: str, tensors: Mapping[str, NDArray[Any]], path: Path) -> NDArray[np.float32]:
    import numpy as np

    codes, scales = tensors[name], tensors.get(name + _SUFFIX)
    if codes.dtype != np.int8 or codes.ndim != 2:
        raise ModelError("drafter", str(path), f"tensor {name!r} is {_kind(codes)}, must be a matrix of int8")
    if scales is None:
        raise ModelError("drafter", str(path), f"tensor {name!r} has no scales ({name + _SUFFIX!r} is missing)")
    num_scales = _num_scales(len(codes))
    if scales.dtype != np.float16 or scales.shape != (num_scales,):
        limit = f"must be float16 [{num_scales}] for {len(codes)} rows"
        raise ModelError("drafter", str(path), f"tensor {name + _SUFFIX!r} is {_kind(scales)}, {limit}")
    if not (np.isfinite(scales) & (scales > 0)).all():
        raise ModelError("drafter", str(path), f"tensor {name + _SUFFIX!r} has a scale that is not positive and finite")
    return codes.astype(np.float32) * _by_row(scales, len(codes))


def _scales_of(name: str, matrix: NDArray[np.float32]) -> NDArray[np.float16]:
    import numpy as np

    starts = np.arange(0, len(matrix), ROWS_PER_SCALE)
    exact = np.maximum.reduceat(np.abs(matrix).max(axis=1), starts) / np.float32(_MAX_CODE)
    if not (exact <= np.finfo(np.float16).max).all():
        raise ModelError("drafter", name, f"weights must be finite and at most {_MAX_CODE} times float16's largest")
    scales = exact.astype(np.float16)
    # A scale rounded down would need codes above the largest one.
    scales = np.where(scales < exact, np.nextafter(scales, np.float16(np.inf)), scales)
    return np.maximum(scales, np.finfo(np.float16).smallest_subnormal)  # rows of zeros need a scale, too


def _codes_of(matrix: NDArray[np.float32], scales: NDArray[np.float16]) -> NDArray[np.int8]:
    import numpy as np

    codes: NDArray[np.int8] = np.rint(matrix / _by_row(scales, len(matrix))).astype(np.int8)
    return codes


def _by_row(scales: NDArray[np.float16], num_rows: int) -> NDArray[np.float32]:
    import numpy as np

    return np.repeat(scales.astype(np.float32), ROWS_PER_SCALE)[:num_rows, None]


def _num_scales(num_rows: int) -> int:
    return -(-num_rows // ROWS_PER_SCALE)


def _kind(tensor: NDArray[Any]) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
