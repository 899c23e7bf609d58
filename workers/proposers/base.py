"""The interface of proposers: the rows that they are given, and their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from minedraft_workers.sequence import SequenceState


@dataclass(slots=True)
class DraftRow:
    """A request's row of a draft command. `state` has its old tokens until `tokens` are cached.

    drafts: proposed so far. q_ids, q_probs: int32 and float32 [m] for each draft, under REJECTION only.
    """

    state: SequenceState
    prefix_len: int
    tokens: Sequence[int]
    draft_len: int
    drafts: list[int] = field(default_factory=list)
    q_ids: list[npt.NDArray[np.int32]] = field(default_factory=list)
    q_probs: list[npt.NDArray[np.float32]] = field(default_factory=list)

    @property
    def committed_len(self) -> int:
        return self.prefix_len + len(self.tokens)

    @property
    def is_done(self) -> bool:
        return len(self.drafts) >= self.draft_len


class Proposer(Protocol):
    """A source of draft tokens."""

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
