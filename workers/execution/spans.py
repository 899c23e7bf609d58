"""The spans of a forward: checked, given their blocks, and packed into rows; and models whose blocks are shared out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Self, TypeVar

import torch

from minedraft.errors import ProtocolError
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.tables import BlockTables, QuerySpan

OutputT = TypeVar("OutputT")

# Reasons for kernels that are what a user expects.
ASKED_FOR = "asked for"
FITTING = "they fit this machine and model"


@dataclass(frozen=True, slots=True)
class ForwardSpan:
    """The span of a forward: keep `prefix_len` cached tokens, append `tokens` (one or more).

    num_logits: number of last positions of `tokens` to compute logits for (0 = only cache the tokens).
    """

    request_id: int
    prefix_len: int
    tokens: Sequence[int]
    num_logits: int


class SpanRunner:
    """Runs forwards of spans over the blocks of one cache.

    Args:
        tables: the blocks of every request. vocab_size: token ids are below it. max_model_len: tokens of a sequence.
    """

    def __init__(self, tables: BlockTables, vocab_size: int, max_model_len: int) -> None:
        self._tables = tables
        self._vocab_size = vocab_size
        self._max_model_len = max_model_len

    def run(self, spans: Sequence[ForwardSpan], run: Callable[[PackedRows], OutputT]) -> OutputT:
        """Check the spans, one or more, give them their blocks, and return what `run` makes of their rows.

        Raises:
            BlocksExhausted, ProtocolError, OutOfMemoryError (torch's): as `Executor.forward`.
        """
        self._check(spans)
        tables = self._tables.resize([(span.request_id, span.prefix_len + len(span.tokens)) for span in spans])
        queries = [
            QuerySpan(span.prefix_len, len(span.tokens), table) for span, table in zip(spans, tables, strict=True)
        ]
        try:
            return run(PackedRows.make([span.tokens for span in spans], queries, [span.num_logits for span in spans]))
        except torch.OutOfMemoryError as error:
            out_of_memory = error.with_traceback(None)
        # Only here, where no traceback holds the tensors of the forward.
        torch.cuda.empty_cache()
        self._tables.resize([(span.request_id, span.prefix_len) for span in spans])
        raise out_of_memory

    def _check(self, spans: Sequence[ForwardSpan]) -> None:
        seen: set[int] = set()
        for span in spans:
            num_cached, num_tokens = self._tables.length(span.request_id), len(span.tokens)
            if span.request_id in seen:
                raise _refusal(span, "comes twice")
            seen.add(span.request_id)
            if not 0 <= span.prefix_len <= num_cached:
                raise _refusal(span, f"keeps {span.prefix_len} tokens, {num_cached} are cached")
            if not num_tokens or span.prefix_len + num_tokens > self._max_model_len:
                raise _refusal(span, f"has {num_tokens} tokens after {span.prefix_len}, limit {self._max_model_len}")
            if not 0 <= span.num_logits <= num_tokens:
                raise _refusal(span, f"wants {span.num_logits} rows of logits for {num_tokens} tokens")
            if min(span.tokens) < 0 or max(span.tokens) >= self._vocab_size:
                raise _refusal(span, f"has a token id outside 0..{self._vocab_size - 1}")


class PagedModel:
    """A model and the blocks of its requests.

    Attributes:
        vocab_size: token ids given to a forward are below it.
        num_blocks, block_size: size of the KV cache, in blocks and in tokens per block.
        max_model_len: longest sequence, in tokens.
        kernels, kernels_reason: what computes ("native amx_bf16", "torch", "transformers"), and why.
    """

    kernels: str
    kernels_reason: str

    def __init__(self, tables: BlockTables, vocab_size: int, context: int | None) -> None:
        """Take the tables of the cache, and the most tokens of a sequence; None if the model has no limit."""
        self.vocab_size = vocab_size
        self._context = context
        self._use(tables)

    def _use(self, tables: BlockTables) -> None:
        self._tables = tables
        self.num_blocks, self.block_size = tables.pool.num_blocks, tables.pool.block_size
        capacity = self.num_blocks * self.block_size
        self.max_model_len = capacity if self._context is None else min(self._context, capacity)
        self._spans = SpanRunner(tables, self.vocab_size, self.max_model_len)

    def divide(self, num_parts: int) -> list[Self]:
        """Return the model with as many equal parts of its KV blocks, each for requests of its own: the ids in one
        mean nothing in another. Call it before the first forward, and use only the parts then, in one thread.

        The weights, and the memory of a forward in progress, are those of the model.
        """
        parts = []
        for tables in self._tables.divide(num_parts):
            part = copy(self)
            part._use(tables)
            parts.append(part)
        return parts

    @property
    def described_kernels(self) -> str:
        """The kernels; where others would be faster, also why those are not used."""
        return (
            self.kernels if self.kernels_reason in (ASKED_FOR, FITTING) else f"{self.kernels} ({self.kernels_reason})"
        )

    @property
    def num_free_blocks(self) -> int:
        return self._tables.pool.num_free

    def cached_len(self, request_id: int) -> int:
        """Return the number of tokens whose KV is cached for this request; 0 if it is unknown."""
        return self._tables.length(request_id)

    def release(self, request_id: int) -> None:
        """Free the KV of the request and its forks; an unknown request is ignored."""
        self._tables.release(request_id)

    def release_all(self) -> None:
        """Free everything: a new epoch begins."""
        self._tables.release_all()


def _refusal(span: ForwardSpan, what: str) -> ProtocolError:
    return ProtocolError(f"span of request {span.request_id} {what}")
