"""Drafting from what followed the same words earlier in the text; no model, no KV."""

from __future__ import annotations

from collections.abc import Sequence

from minedraft_workers.drafter import DraftRow
from minedraft_workers.ngram import PromptLookup


class NgramProposer:
    """Prompt lookup. It holds no KV, so its `num_blocks` never run out."""

    def __init__(self, num_blocks: int) -> None:
        self.num_free_blocks = num_blocks
        self._lookups: dict[int, PromptLookup] = {}

    def propose(self, rows: Sequence[DraftRow]) -> int:
        for row in rows:
            state = row.state
            state.replace_from(row.prefix_len, row.tokens)
            if row.draft_len:
                lookup = self._lookups.setdefault(state.request_id, PromptLookup())
                row.drafts = lookup.propose(state.tokens, row.draft_len)
                state.tokens.extend(row.drafts[:-1])
        return 0

    def release(self, request_id: int) -> None:
        self._lookups.pop(request_id, None)

    def reset(self, target_vocab_size: int) -> None:
        self._lookups.clear()  # what it proposes stands in the text, so the target knows it
