"""Drafting without a model and without KV: prompt lookup (Saxena 2023).

It searches the text for earlier occurrences of the longest n-gram that ends it, and proposes the tokens
that followed the most recent one. It costs almost nothing and pays for answers that repeat their prompt
(code, summaries, tool calls). Its drafts are not sampled: under REJECTION, q is 1 on the draft.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from minedraft_workers.proposers.base import DraftRow

_ITEM_BYTES = array("i").itemsize


class PromptLookup:
    """The lookup of one request. It keeps the tokens packed, so that a round only packs its new tokens."""

    __slots__ = ("_max_ngram", "_min_ngram", "_num_packed", "_packed")

    def __init__(self, max_ngram: int = 3, min_ngram: int = 1) -> None:
        assert 1 <= min_ngram <= max_ngram, f"n-grams of {min_ngram} to {max_ngram} tokens"
        self._max_ngram = max_ngram
        self._min_ngram = min_ngram
        self._num_packed = 0
        self._packed = bytearray()

    def propose(self, tokens: Sequence[int], draft_len: int) -> list[int]:
        """Return up to `draft_len` tokens that may follow `tokens`; none if nothing matches.

        Args:
            tokens: all tokens of the request, below 2**31. The tokens of the previous call are taken as
                unchanged if the last of them is; after a shorter history the lookup starts afresh.
        """
        self._pack(tokens)
        for ngram_len in range(min(self._max_ngram, len(tokens) - 1), self._min_ngram - 1, -1):
            start = self._last_occurrence(len(tokens), ngram_len)
            if start >= 0:
                follow = start + ngram_len
                return list(tokens[follow : follow + draft_len])
        return []

    def _pack(self, tokens: Sequence[int]) -> None:
        known = self._num_packed
        if known > len(tokens) or (known and self._packed[-_ITEM_BYTES:] != array("i", [tokens[known - 1]]).tobytes()):
            self._packed.clear()
            known = 0
        self._packed += array("i", tokens[known:]).tobytes()
        self._num_packed = len(tokens)

    def _last_occurrence(self, num_tokens: int, ngram_len: int) -> int:
        """Return the index of the last earlier occurrence of the final n-gram, or -1."""
        ngram = self._packed[(num_tokens - ngram_len) * _ITEM_BYTES :]
        end = (num_tokens - 1) * _ITEM_BYTES  # an earlier occurrence ends before the last token
        while True:
            start = self._packed.rfind(ngram, 0, end)
            if start % _ITEM_BYTES == 0 or start < 0:
                return start // _ITEM_BYTES
            end = start + len(ngram) - 1  # the match is not aligned to a token: search further back


class NgramProposer:
    """Drafts by prompt lookup. It holds no KV and so has no blocks."""

    num_free_blocks = 0
    feature_layers: tuple[int, ...] = ()
    feature_size = 0

    def __init__(self) -> None:
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
        self._lookups.clear()  # no limit on ids: it proposes only tokens of the text, which the target knows
