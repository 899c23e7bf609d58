"""The native kernels that choose tokens: all rows of a call at once, each request by itself.

A request's result depends on its own rows alone, bit for bit. What is chosen, and by which random numbers,
is what `minedraft_workers.sampling` chooses with torch; see src/choice/choose.h for the passes that it takes.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt
import torch

from minedraft.errors import InternalError
from minedraft_workers.native.pooled import PooledKernels
from minedraft_workers.native.program import check_status
from minedraft_workers.native.tensors import MAX_COLUMNS

# As in src/choice/request.h.
MAX_ENTRIES = 1024
_REQUEST = struct.Struct("=QqQqQQqqQqdqddqQ")
_MASK64 = (1 << 64) - 1


class ChoiceRule(IntEnum):
    """How a request's tokens are chosen."""

    PEAK = 0  # the most probable one
    COUPLED = 1  # the largest logit + shared noise
    ACCEPT = 2  # drafts are accepted with min(1, p / q); else a draw from max(p - q, 0), or p after the last
    PROPOSE = 3  # a draw from the renormalised top of p


class LogitRows:
    """Rows of logits, checked once: float32 [rows, columns] on the CPU, columns contiguous."""

    __slots__ = ("num_columns", "num_rows", "pointer", "stride", "tensor")

    def __init__(self, logits: torch.Tensor) -> None:
        if logits.dim() != 2 or logits.dtype is not torch.float32 or not logits.is_cpu:
            raise InternalError(f"logits are {logits.dtype} {list(logits.shape)}: must be float32 rows on the CPU")
        self.num_rows, self.num_columns = logits.shape
        self.stride, step = logits.stride()
        if not 1 <= self.num_columns <= MAX_COLUMNS or (step != 1 and self.num_columns > 1):
            raise InternalError(f"logits have {self.num_columns} columns: must be 1 to {MAX_COLUMNS}, contiguous")
        self.tensor = logits  # keeps the memory
        self.pointer = logits.data_ptr()


@dataclass(slots=True)
class ChoiceRequest:
    """One request's positions: those of its drafts, and one more.

    Attributes:
        logits, first_row: its rows are `len(drafts) + 1` from `first_row` on.
        position: number of tokens before the first of its positions.
        drafts: columns; one that is no column is never accepted.
        temperature: 1e-30 or more. top_k: 0 for all. top_p: 1 for all. min_p: 0 for all.
        q_ids, q_probs: int32 and float32 [len(drafts), m], contiguous, m at most 1024: what the drafts were
            sampled from, -1 pads; None: each is certain. ACCEPT only.
        numbers: uint64 [len(drafts) + 1, 2], contiguous: the random bits to choose by, instead of those of
            seed and position: for COUPLED the noise's key, for ACCEPT those of acceptance and of the draw,
            for PROPOSE those of the draw.
    """

    logits: LogitRows
    first_row: int
    rule: ChoiceRule
    seed: int
    position: int
    drafts: Sequence[int] = ()
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    q_ids: torch.Tensor | None = None
    q_probs: torch.Tensor | None = None
    numbers: npt.NDArray[np.uint64] | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """What was chosen.

    tokens: for each request the chosen columns, those of the accepted drafts first; none if a row that counts
    has a NaN, an infinity, or nothing but -infinity. kept, probs: int32 and float32 [requests, top_m]: the
    columns that PROPOSE drew from, most probable first, and their probabilities; else, and after them, -1 and 0.
    """

    tokens: list[list[int]]
    kept: npt.NDArray[np.int32]
    probs: npt.NDArray[np.float32]


class ChoosingKernels(PooledKernels):
    """One device thread's kernels that choose."""

    def choose(self, requests: Sequence[ChoiceRequest], hashes: torch.Tensor, top_m: int = 0) -> Choices:
        """Choose the tokens of every request.

        Args:
            hashes: int32 [columns], contiguous, of the columns' tokens; their number is that of the logits.
            top_m: how many columns PROPOSE draws from, at most 1024; fewer if there are fewer columns.

        Raises:
            InternalError: an argument does not fit; nothing was computed.
        """
        num_columns = len(hashes)
        if hashes.dtype is not torch.int32 or not hashes.is_contiguous() or not hashes.is_cpu or hashes.dim() != 1:
            raise InternalError(f"hashes are {hashes.dtype} {list(hashes.shape)}: must be int32 [columns] on the CPU")
        top_m = min(top_m, num_columns)
        if not 0 <= top_m <= MAX_ENTRIES:
            raise InternalError(f"top_m is {top_m}: must be 0 to {MAX_ENTRIES}")
        num_drafts = sum([len(request.drafts) for request in requests])
        # One array for all that goes in and comes out: one each would cost more than what a small choice computes.
        first_draft = len(requests) * _REQUEST.size // 8
        first_token = first_draft + num_drafts
        first_count = first_token + num_drafts + len(requests)
        shared = np.empty(first_count + len(requests), np.int64)
        if num_drafts:
            shared[first_draft:first_token] = [draft for request in requests for draft in request.drafts]
        pointer, num_rows = shared.ctypes.data, 0
        for index, request in enumerate(requests):
            _check(request, num_columns, top_m)
            # Of each earlier request there is a row for each draft, and one more.
            _pack(shared.data, index, request, pointer + 8 * (first_draft + num_rows - index), num_rows)
            num_rows += len(request.drafts) + 1
        kept, probs = np.empty((len(requests), top_m), np.int32), np.empty((len(requests), top_m), np.float32)
        status = self._library.choose(
            self._handle,
            pointer,
            len(requests),
            num_rows,
            num_columns,
            hashes.data_ptr(),
            pointer + 8 * first_token,
            pointer + 8 * first_count,
            top_m,
            kept.ctypes.data if top_m else None,
            probs.ctypes.data if top_m else None,
        )
        check_status(status)
        tokens, counts = shared[first_token:first_count].tolist(), shared[first_count:].tolist()
        return Choices(_split(requests, tokens, counts), kept, probs)


def _check(request: ChoiceRequest, num_columns: int, top_m: int) -> None:
    """Raise InternalError for a request that would be read or written beyond its memory."""
    logits, num_drafts = request.logits, len(request.drafts)
    if logits.num_columns != num_columns or not 0 <= request.first_row < logits.num_rows - num_drafts:
        limit = f"are not in logits of {logits.num_rows} x {logits.num_columns}, with {num_columns} hashes"
        raise InternalError(f"rows from {request.first_row}, for {num_drafts} drafts, {limit}")
    if request.rule is ChoiceRule.PROPOSE and (num_drafts or not top_m):
        raise InternalError(f"a proposal with {num_drafts} drafts and top_m {top_m}: must be 0 and 1 or more")
    if not request.temperature > 0:
        raise InternalError(f"temperature is {request.temperature}: must be positive")
    numbers = request.numbers
    if numbers is not None and not (
        numbers.shape == (num_drafts + 1, 2) and numbers.dtype == np.uint64 and numbers.flags.c_contiguous
    ):
        raise InternalError(f"numbers are {numbers.dtype} {numbers.shape}: must be uint64 [{num_drafts + 1}, 2]")
    for q, dtype in ((request.q_ids, torch.int32), (request.q_probs, torch.float32)):
        if q is not None and not (
            q.dtype is dtype and q.dim() == 2 and len(q) == num_drafts and q.is_contiguous() and q.is_cpu
        ):
            raise InternalError(f"q is {q.dtype} {list(q.shape)}: must be {dtype} [{num_drafts}, m] on the CPU")
    if request.q_ids is not None and (
        request.q_probs is None or request.q_ids.shape != request.q_probs.shape or request.q_ids.shape[1] > MAX_ENTRIES
    ):
        raise InternalError(f"q_ids are {list(request.q_ids.shape)}: q_probs must be alike, of at most {MAX_ENTRIES}")


def _pack(packed: memoryview, index: int, request: ChoiceRequest, drafts: int, first_row: int) -> None:
    logits, q_ids, q_probs, numbers = request.logits, request.q_ids, request.q_probs, request.numbers
    _REQUEST.pack_into(
        packed,
        index * _REQUEST.size,
        logits.pointer + 4 * request.first_row * logits.stride,
        logits.stride,
        drafts,
        len(request.drafts),
        0 if q_ids is None else q_ids.data_ptr(),
        0 if q_probs is None else q_probs.data_ptr(),
        0 if q_ids is None else q_ids.shape[1],
        request.rule,
        request.seed & _MASK64,
        request.position,
        request.temperature,
        request.top_k,
        request.top_p,
        math.log(request.min_p) if request.min_p > 0.0 else -math.inf,
        first_row,
        0 if numbers is None else numbers.ctypes.data,
    )


def _split(requests: Sequence[ChoiceRequest], tokens: list[int], counts: list[int]) -> list[list[int]]:
    """Return each request's part of all tokens."""
    parts, first_row = [], 0
    for request, count in zip(requests, counts, strict=True):
        parts.append(tokens[first_row : first_row + count])
        first_row += len(request.drafts) + 1
    return parts
