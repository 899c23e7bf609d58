"""Drafts from two sources: prompt lookup where the text repeats itself, else another proposer.

For each request and round the lookup drafts if its first draft is likelier to stand than the other proposer's, by the
acceptance that both have had so far. The other proposer still caches the tokens of such a request, in the forward that
starts its round anyway, so it is never more than one round behind; it takes no part in the further forwards.

The choice of the source depends only on committed tokens and on the fate of earlier drafts, never on the drafts of the
round: each source's drafts are offered with the distribution that they were drawn from, so the output law stays the
target's whichever source is chosen (the chain rule over rounds; Leviathan et al. 2023 for each of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minedraft.types import Acceptance
from minedraft_workers.proposers.base import DraftRow, Proposer
from minedraft_workers.proposers.ngram import AcceptanceRate, PromptLookup

if TYPE_CHECKING:
    from minedraft_workers.execution.runner import GraphCapturing

_PRIOR_OF_INNER = 0.6


class CombinedProposer:
    """Drafts with `inner`, and by prompt lookup where that promises more."""

    def __init__(self, inner: Proposer) -> None:
        self._inner = inner
        self._lookup = PromptLookup()
        self._rates_of_inner = {acceptance: AcceptanceRate(_PRIOR_OF_INNER) for acceptance in Acceptance}
        self.feature_layers = inner.feature_layers
        self.feature_size = inner.feature_size

    @property
    def graphs(self) -> GraphCapturing | None:
        return self._inner.graphs

    @property
    def num_free_blocks(self) -> int:
        return self._inner.num_free_blocks

    def propose(self, rows: Sequence[DraftRow]) -> int:
        """Cache each row's tokens and add drafts of one of the two sources to it. Implements `Proposer`."""
        looked_up = []
        for row in rows:
            self._lookup.read(row)
            if row.draft_len and self._lookup.find(row, self._rate_of_inner(row).value):
                looked_up.append((row, row.drafts))
                row.drafts, row.draft_len = [], 0  # for `inner` it is a row to cache
        forward_ns = self._inner.propose(rows)
        for row in rows:
            self._lookup.note(row, self._rate_of_inner(row))
        for row, drafts in looked_up:
            row.drafts, row.draft_len = drafts, len(drafts)
        return forward_ns

    def _rate_of_inner(self, row: DraftRow) -> AcceptanceRate:
        return self._rates_of_inner[row.state.spec.acceptance]

    def release(self, request_id: int) -> None:
        self._lookup.release(request_id)
        self._inner.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._lookup.clear()  # no limit on ids: see `NgramProposer`
        self._inner.reset(target_vocab_size)
