"""The interface of proposers: the rows that they are given, and their methods."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from minedraft.messages import RunAhead
from minedraft.types import DraftMethod, ScoreKind
from minedraft_workers.sequence import SequenceState

if TYPE_CHECKING:
    import torch

    from minedraft_workers.execution.runner import GraphCapturing


@dataclass(slots=True)
class DraftRow:
    """A request's row of a draft command, or a branch of one that runs ahead. `state` has its old tokens until
    `tokens` are cached.

    Attributes:
        drafts: proposed so far, by `source`.
        q_ids, q_probs: int32 and float32 [m] for each draft, under REJECTION only.
        scores: of each draft, of the kind `score_kind`.
        features: [n, feature_size], any float dtype and device, where the proposer wants them: the target's of the
            positions max(prefix_len - 1, 0) to committed_len - 2.
        adopts: the fork whose KV becomes the request's, whose tokens `state` has already; 0: none.
        ahead: set for a row that runs ahead; the last of `tokens` are then drafts that are being verified.
        branches: of a row that runs ahead, what it has prepared: one row each, all with drafts.
        lead: of a branch, the tokens between the committed ones and its drafts.
        kv_id: of a branch, whose KV it continues.
        is_finite: whether all logits that were to be drafted from were finite.
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
    adopts: int = 0
    ahead: RunAhead | None = None
    branches: list[DraftRow] = field(default_factory=list)
    lead: tuple[int, ...] = ()
    kv_id: int = 0
    is_finite: bool = True

    @property
    def committed_len(self) -> int:
        return self.prefix_len + len(self.committed)

    @property
    def committed(self) -> Sequence[int]:
        """Those of `tokens` that are committed."""
        return self.tokens[: len(self.tokens) - len(self.in_flight)]

    @property
    def in_flight(self) -> tuple[int, ...]:
        """Those of `tokens` that are drafts in the verifier's hands."""
        num_drafts = 0 if self.ahead is None else self.ahead.num_drafts
        return tuple(self.tokens[len(self.tokens) - num_drafts :])

    @property
    def uncommitted(self) -> list[int]:
        """All tokens after the committed ones; the KV of the last is not cached."""
        return [*self.lead, *self.drafts]

    def branch_off(self, accepted_len: int, token: int, kv_id: int, draft_len: int) -> DraftRow:
        """Return a row of the branch that begins with `accepted_len` of the drafts in flight and `token`."""
        lead = (*self.in_flight[:accepted_len], token)
        branch = DraftRow(self.state, self.prefix_len, self.committed, draft_len, lead=lead, kv_id=kv_id)
        branch.source, branch.score_kind = self.source, self.score_kind
        return branch

    @property
    def is_done(self) -> bool:
        return len(self.drafts) >= self.draft_len


class Proposer(Protocol):
    """A source of draft tokens.

    Attributes:
        feature_layers: the layers of the target whose outputs it drafts from; () if it needs none.
        feature_size: numbers in a row of features; 0 without.
        graphs: what captures its forwards as CUDA graphs; None where they run without.
    """

    feature_layers: tuple[int, ...]
    feature_size: int

    @property
    def graphs(self) -> GraphCapturing | None: ...

    @property
    def num_free_blocks(self) -> int: ...

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens, also in `state.tokens`, and add up to `draft_len` drafts to it, or branches if
        it runs ahead. Before that, what it adopts becomes the request's KV, and its other forks are forgotten.

        Returns:
            Nanoseconds spent in forward passes.

        Raises:
            BlocksExhausted, ProtocolError: the rows cannot be cached; only forks were changed.
        """
        ...

    def release(self, request_id: int) -> None: ...

    def reset(self, target_vocab_size: int) -> None:
        """Forget every request; from now on propose only ids below `target_vocab_size` (0: no limit)."""
        ...
