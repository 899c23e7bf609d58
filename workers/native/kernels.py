"""The native kernels with torch tensors as arguments; every size is checked before a pointer is passed.

Of every kernel a row's result depends on that row alone, bit for bit: not on the other rows, their number,
the number of threads, or how a prompt was cut into spans. Two numerics: bfloat16 (bfloat16 x, weights and
cache, float32 sums) and float32 (weights in the shortest dtype that loses nothing).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from minedraft.errors import InternalError
from minedraft_workers.native.library import Library
from minedraft_workers.native.pooled import PooledKernels
from minedraft_workers.native.program import Program, check_status
from minedraft_workers.native.tensors import DTYPE_CODES, MAX_COLUMNS, Arena, LayerCache, PackedWeight, SpanPlan


class NativeKernels(PooledKernels):
    """One device thread's kernels that compute.

    Matrices are [rows, columns] tensors on the CPU, columns contiguous, rows at any distance. `out` is
    written and returned where it is given, and may be x itself only where that is said.

    Raises (every method):
        InternalError: an argument does not fit; nothing was computed.
    """

    def __init__(self, isa: str = "auto", num_threads: int = 1, library: Library | None = None) -> None:
        super().__init__(isa, num_threads, library)
        self._recorded: Program | None = None
        self._arena = Arena()

    @contextmanager
    def recording(self, max_rows: int, num_blocks: int, block_size: int) -> Iterator[Program]:
        """Inside the block, calls are checked and recorded in the program, not made; `run` makes them all.

        Recorded are `linear`, `rms_norm`, `rope_`, `silu_mul`, `store` and `attend`; the others are refused or,
        without a pool (`pack`, `rows`), made at once. Every matrix has at least `max_rows` rows, `program.plan`
        stands for the plan, and the caches have `num_blocks` blocks. Matrices may be the same; where they are
        not, they must not overlap.
        """
        if self._recorded is not None:
            raise InternalError("calls are being recorded already")
        program = Program.make(self._library, max_rows, num_blocks, block_size)
        self._recorded = program
        self._library.record(self._handle, program.pointer)
        try:
            yield program
        finally:
            self._recorded = None
            self._library.record(self._handle, None)

    def run(self, program: Program, plan: SpanPlan) -> None:
        """Make all calls of the program, on the first `plan.num_rows` rows of each of its matrices.

        The bits are those of the calls made one by one on so many rows.
        """
        _fits(plan, program.plan)
        pointers = plan.pointers
        check_status(
            self._library.run(
                self._handle, program.pointer, plan.num_rows, pointers[0], len(plan.spans), pointers[1], pointers[2]
            )
        )

    def pack(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> PackedWeight:
        """Lay out a weight, [out_features, in_features] float32, bfloat16 or float16, as `linear` reads it."""
        code = DTYPE_CODES.get(weight.dtype)
        if code is None or weight.dim() != 2 or not weight.numel() or not weight.is_cpu:
            raise _refusal("weight", weight, "must be 2-dimensional, of float32, bfloat16 or float16, on the CPU")
        num_out, num_in = weight.shape
        if bias is not None:
            if bias.shape != (num_out,) or not bias.is_cpu:
                raise _refusal("bias", bias, f"must be [{num_out}] on the CPU")
            bias = bias.detach().to(torch.float32).contiguous()
        weight = weight.detach().contiguous()
        data = self._arena.take(self._library.packed_bytes(self._handle, num_out, num_in, code))
        self._library.pack(self._handle, weight.data_ptr(), code, num_out, num_in, data.data_ptr())
        pointer = None if bias is None else bias.data_ptr()
        return PackedWeight(data, weight.dtype, num_out, num_in, bias, data.data_ptr(), pointer)

    def rows(self, weight: PackedWeight, ids: torch.Tensor) -> torch.Tensor:
        """Rows `ids`, int64 [n], of a packed weight, in its dtype: a token embedding that is tied to it."""
        if ids.dtype != torch.int64 or ids.dim() != 1 or not ids.is_contiguous() or not ids.is_cpu:
            raise _refusal("ids", ids, "must be int64 [n] on the CPU, contiguous")
        known = ids.tolist()  # a list of few is searched faster than a tensor
        if known and not 0 <= min(known) <= max(known) < weight.out_features:
            raise InternalError(f"ids are {min(known)}..{max(known)}: must be 0..{weight.out_features - 1}")
        y = torch.empty(len(ids), weight.in_features, dtype=weight.dtype)
        code = DTYPE_CODES[weight.dtype]
        self._library.rows(
            self._handle, weight.pointer, code, weight.in_features, ids.data_ptr(), len(ids), y.data_ptr()
        )
        return y

    def linear(
        self, x: torch.Tensor, weight: PackedWeight, out: torch.Tensor | None = None, *, as_float32: bool = False
    ) -> torch.Tensor:
        """x W^T + bias: [rows, in_features] -> [rows, out_features].

        A bfloat16 x takes a bfloat16 weight; the result is bfloat16, or float32 on demand. A float32 x takes
        any weight; the result is float32.
        """
        num_rows, x_stride = _matrix("x", x, weight.in_features)
        dtype = x.dtype
        if dtype is not torch.float32 and (dtype is not torch.bfloat16 or weight.dtype is not torch.bfloat16):
            raise _refusal("x", x, f"must be float32, or bfloat16 with a bfloat16 weight; the weight is {weight.dtype}")
        out_dtype = torch.float32 if as_float32 else dtype
        if out is None:
            out = self._new("linear", num_rows, weight.out_features, out_dtype)
            y_stride = weight.out_features
        else:
            y_stride = _output(out, num_rows, weight.out_features, out_dtype)
        if num_rows:
            self._done(
                (x, weight, out),
                self._library.linear(
                    self._handle,
                    x.data_ptr(),
                    x_stride,
                    weight.pointer,
                    weight.bias_pointer,
                    out.data_ptr(),
                    y_stride,
                    num_rows,
                    weight.in_features,
                    weight.out_features,
                    DTYPE_CODES[dtype],
                    DTYPE_CODES[weight.dtype],
                    DTYPE_CODES[out_dtype],
                ),
            )
        return out

    def rms_norm(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        eps: float,
        residual: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Llama's RMS norm of x, or of residual + x; the sum is then also written to `residual`.

        `out` may be x.
        """
        size = weight.shape[0]
        num_rows, x_stride = _matrix("x", x, size)
        code = _code("x", x)
        if weight.dim() != 1 or weight.dtype != x.dtype or not weight.is_contiguous() or not weight.is_cpu:
            raise _refusal("weight", weight, f"must be one-dimensional {x.dtype} on the CPU, contiguous")
        residual_pointer, residual_stride = None, 0
        if residual is not None:
            residual_pointer, residual_stride = residual.data_ptr(), _output(residual, num_rows, size, x.dtype)
        if out is None:
            out = self._new("rms_norm", num_rows, size, x.dtype)
        y_stride = _output(out, num_rows, size, x.dtype)
        self._done(
            (x, residual, weight, out),
            self._library.norm(
                self._handle,
                x.data_ptr(),
                x_stride,
                residual_pointer,
                residual_stride,
                weight.data_ptr(),
                out.data_ptr(),
                y_stride,
                num_rows,
                size,
                eps,
                code,
            ),
        )
        return out

    def rope_(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """Rotate, in place, every head of x, [rows, heads * dim], by cos and sin, [rows, dim]: halves of a head."""
        dim = cos.shape[-1]
        num_rows, stride = _matrix("x", x, x.shape[-1])
        code = _code("x", x)
        angle_stride = _output(cos, num_rows, dim, x.dtype)
        if _output(sin, num_rows, dim, x.dtype) != angle_stride:
            raise _refusal("sin", sin, "must lie in memory as cos does")
        if dim < 2 or dim % 2 or x.shape[1] % dim:
            raise _refusal("x", x, f"must have whole heads of {dim} numbers, an even number")
        heads = x.shape[1] // dim
        self._done(
            (x, cos, sin),
            self._library.rope(
                self._handle,
                x.data_ptr(),
                stride,
                cos.data_ptr(),
                sin.data_ptr(),
                angle_stride,
                num_rows,
                heads,
                dim,
                code,
            ),
        )
        return x

    def silu_mul(self, gate_up: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        """silu(gate) * up: [rows, 2 * size], the gate's columns first -> [rows, size]."""
        num_rows, stride = _matrix("gate_up", gate_up, gate_up.shape[-1])
        code = _code("gate_up", gate_up)
        size = gate_up.shape[1] // 2
        if gate_up.shape[1] % 2:
            raise _refusal("gate_up", gate_up, "must have an even number of columns")
        if out is None:
            out = self._new("silu_mul", num_rows, size, gate_up.dtype)
        y_stride = _output(out, num_rows, size, gate_up.dtype)
        gate = gate_up.data_ptr()
        up = gate + size * gate_up.element_size()
        self._done(
            (gate_up, out),
            self._library.silu_mul(self._handle, gate, up, stride, out.data_ptr(), y_stride, num_rows, size, code),
        )
        return out

    def store(self, cache: LayerCache, key: torch.Tensor, value: torch.Tensor, plan: SpanPlan) -> None:
        """Write the keys and values, [rows, heads * dim], of the plan's rows into the cache."""
        key_rows, key_stride = _matrix("key", key, cache.num_heads * cache.key_dim)
        value_rows, value_stride = _matrix("value", value, cache.num_heads * cache.value_dim)
        if not key_rows == value_rows == plan.num_rows or not key.dtype == value.dtype == cache.keys.dtype:
            raise _refusal("key", key, f"must be like value, with {plan.num_rows} rows of {cache.keys.dtype}")
        _fits(plan, cache)
        self._done(
            (cache, key, value),
            self._library.store(
                self._handle,
                *cache.arguments,
                key.data_ptr(),
                value.data_ptr(),
                key_stride,
                value_stride,
                plan.pointers[2],
                plan.num_rows,
            ),
        )

    def attend(
        self, cache: LayerCache, query: torch.Tensor, plan: SpanPlan, scale: float, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Causal attention of every row, [rows, heads * key_dim], to its request's tokens up to its own.

        The row's own key and value are read from the cache: `store` comes first. Returns
        [rows, heads * value_dim]. Consecutive query heads share a key head.
        """
        if query.dim() != 2 or query.shape[1] % (cache.num_heads * cache.key_dim):
            raise _refusal("query", query, f"must have a multiple of {cache.num_heads} heads of {cache.key_dim}")
        num_rows, stride = _matrix("query", query, query.shape[1])
        group = query.shape[1] // (cache.num_heads * cache.key_dim)
        if num_rows != plan.num_rows or query.dtype != cache.keys.dtype or group < 1 or not 0 < scale < float("inf"):
            limit = f"must be {plan.num_rows} rows of {cache.keys.dtype} with a positive scale, which is {scale}"
            raise _refusal("query", query, limit)
        _fits(plan, cache)
        width = group * cache.num_heads * cache.value_dim
        if out is None:
            out = self._new("attend", num_rows, width, query.dtype)
        y_stride = _output(out, num_rows, width, query.dtype)
        self._done(
            (cache, query, out),
            self._library.attention(
                self._handle,
                *cache.arguments,
                query.data_ptr(),
                stride,
                out.data_ptr(),
                y_stride,
                num_rows,
                group,
                plan.pointers[0],
                len(plan.spans),
                plan.pointers[1],
                scale,
            ),
        )
        return out

    def argmax(self, x: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Of every row the column of the first of its largest numbers, and whether all are finite.

        A NaN counts as the largest, as in torch. Returns int64 [rows] and bool [rows].
        """
        num_columns = x.shape[-1]
        num_rows, stride = _matrix("x", x, num_columns)
        code = _code("x", x)
        if not 1 <= num_columns <= MAX_COLUMNS:
            raise _refusal("x", x, f"must have 1 to {MAX_COLUMNS} columns")
        index, is_finite = np.empty(num_rows, np.int64), np.empty(num_rows, np.bool_)
        self._done(
            (),
            self._library.argmax(
                self._handle,
                x.data_ptr(),
                stride,
                num_rows,
                num_columns,
                code,
                index.ctypes.data,
                is_finite.ctypes.data,
            ),
        )
        return index, is_finite

    def _new(self, kernel: str, num_rows: int, num_columns: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a matrix for a kernel's result where the caller has given none."""
        return torch.empty(num_rows, num_columns, dtype=dtype)

    def _done(self, used: tuple[object, ...], status: int) -> None:
        """used: what a recorded call reads and writes."""
        if status:
            check_status(status)
        if self._recorded is not None:
            self._recorded.kept += used


def _matrix(name: str, x: torch.Tensor, num_columns: int) -> tuple[int, int]:
    """(rows, distance between them) of a matrix on the CPU with contiguous columns."""
    if x.dim() != 2 or not x.is_cpu:
        raise _refusal(name, x, "must be a matrix on the CPU")
    stride, step = x.stride()
    num_rows, width = x.shape
    if width != num_columns or (step != 1 and width > 1):
        raise _refusal(name, x, f"must have {num_columns} contiguous columns")
    return num_rows, stride


def _output(out: torch.Tensor, num_rows: int, num_columns: int, dtype: torch.dtype) -> int:
    """The distance between the rows of a matrix of just this shape and dtype."""
    found, stride = _matrix("a matrix", out, num_columns)
    if found != num_rows or out.dtype is not dtype or (num_rows > 1 and stride < num_columns):
        raise _refusal("a matrix", out, f"must be [{num_rows}, {num_columns}] of {dtype}, each row in its own place")
    return stride


def _code(name: str, x: torch.Tensor) -> int:
    if x.dtype is torch.float32:
        return 0
    if x.dtype is torch.bfloat16:
        return 1
    raise _refusal(name, x, "must be float32 or bfloat16")


def _fits(plan: SpanPlan, cache: LayerCache | SpanPlan) -> None:
    if plan.num_blocks != cache.num_blocks or plan.block_size != cache.block_size:
        found, wanted = (f"{a.num_blocks} blocks of {a.block_size}" for a in (plan, cache))
        raise InternalError(f"the plan is for a cache of {found}, this one has {wanted}")


def _refusal(name: str, x: torch.Tensor, limit: str) -> InternalError:
    return InternalError(f"{name} is {list(x.shape)} of {x.dtype}, strides {list(x.stride())}: {limit}")
