"""The tokens that the columns of a logits row stand for: the whole vocabulary, or a drafter's part of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.weak import WeakIdKeyDictionary

from minedraft_workers.sampling.randomness import TokenNoise

_reduced: WeakIdKeyDictionary = WeakIdKeyDictionary()


class Columns:
    """The mapping between columns and token ids, and the noise of each column's token."""

    __slots__ = ("_column_of", "_token_ids", "noise", "num_columns")

    def __init__(self, token_ids: torch.Tensor, *, is_whole_vocabulary: bool) -> None:
        self.noise = TokenNoise(token_ids)
        self.num_columns = len(token_ids)
        self._token_ids = None if is_whole_vocabulary else token_ids.cpu().numpy().astype(np.int32)
        if self._token_ids is not None:
            self._column_of = np.full(int(self._token_ids.max()) + 1, -1, dtype=np.int64)
            self._column_of[self._token_ids] = np.arange(self.num_columns)

    def token_id(self, column: int) -> int:
        """Return the token id that `column` stands for."""
        return column if self._token_ids is None else int(self._token_ids[column])

    def token_ids(self, columns: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Return the token ids of columns, of any shape; -1 stays -1."""
        return columns if self._token_ids is None else np.where(columns < 0, columns, self._token_ids[columns])

    @property
    def num_ids(self) -> int:
        """One more than the largest token id that has a column."""
        return self.num_columns if self._token_ids is None else len(self._column_of)

    def of_ids(self, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Return the flags of all columns, bool [num_columns], from those of all token ids, bool [num_ids]."""
        return flags if self._token_ids is None else flags[self._token_ids]

    def locate(self, token_ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Return the columns of the `token_ids` that have one, int64, and the mask of those ids in `token_ids`."""
        if self._token_ids is None:
            known = (token_ids >= 0) & (token_ids < self.num_columns)
            return token_ids[known], known
        in_range = (token_ids >= 0) & (token_ids < len(self._column_of))
        columns = np.where(in_range, self._column_of[np.where(in_range, token_ids, 0)], -1)
        known = columns >= 0
        return columns[known], known


def columns_of(vocab_size: int, device: torch.device, draft_vocab_ids: torch.Tensor | None = None) -> Columns:
    """Return the columns of logits of this width; made once per vocabulary.

    Args:
        vocab_size: width of the logits.
        draft_vocab_ids: integers [vocab_size], the token id of each column; None = column j is token j.
    """
    if draft_vocab_ids is None:
        return _whole_vocabulary(vocab_size, device)
    if draft_vocab_ids not in _reduced:
        _reduced[draft_vocab_ids] = Columns(draft_vocab_ids.to(device), is_whole_vocabulary=False)
    known: Columns = _reduced[draft_vocab_ids]
    assert known.num_columns == vocab_size, f"{vocab_size} logits for {known.num_columns} draft vocabulary ids"
    return known


@lru_cache(maxsize=8)
def _whole_vocabulary(vocab_size: int, device: torch.device) -> Columns:
    return Columns(torch.arange(vocab_size, device=device), is_whole_vocabulary=True)
