"""The interface of proposers: the rows that they are given, and their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from minedraft.types import DraftMethod, ScoreKind
from minedraft_workers.sequence import SequenceState

if TYPE_CHECKING:
    import torch


@dataclass(slots=True)
class DraftRow:
    """A request's row of a draft command. `state` has its old tokens until `tokens` are cached.

    drafts: proposed so far, by `source`. q_ids, q_probs: int32 and float32 [m] for each draft, under REJECTION only.
    scores: of each draft, of the kind `score_kind`.
    features: [n, feature_size], any float dtype and device, where the proposer wants them: the target's of the
    positions max(prefix_len - 1, 0) to committed_len - 2.
    """

    state: SequenceState
    prefix_len: int
    tokens: Sequence[int]
    draft_len: int
    drafts: list[int] = field(default_factory=list)
    source: DraftMethod = DraftMethod.MODEL
    q_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    q_probs: list[npt.NDArray[np.float32]] = field(default_factory=list)
    score_kind: ScoreKind = ScoreKind.NONE
    scores: list[float] = field(default_factory=list)
    features: torch.Tensor | None = None

    @property
    def committed_len(self) -> int:
        return self.prefix_len + len(self.tokens)

    @property
    def is_done(self) -> bool:
        return len(self.drafts) >= self.draft_len


class Proposer(Protocol):
    """A source of draft tokens.

    Attributes:
        feature_layers: the layers of the target whose outputs it drafts from; () if it needs none.
        feature_size: numbers in a row of features; 0 without.
    """

    feature_layers: tuple[int, ...]
    feature_size: int

    @property
    def num_free_blocks(self) -> int: ...

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens, also in `state.tokens`, and add up to `draft_len` drafts to it.

        Returns:
            Nanoseconds spent in forward passes.

        Raises:
            BlocksExhausted, ProtocolError: the rows cannot be cached; nothing was changed.
        """
        ...

    def release(self, request_id: int) -> None: ...

    def reset(self, target_vocab_size: int) -> None:
        """Forget every request; from now on propose only ids below `target_vocab_size` (0: no limit)."""
        ...
