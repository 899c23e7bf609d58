"""What runs a packed forward: transformers' model with torch's operators, or the fused decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from transformers import PreTrainedModel

from minedraft_workers.execution.attention import CONTEXT_KEYWORD, ForwardContext, QuerySpan, Scratch, pack_order
from minedraft_workers.execution.kvcache import KVCache, to_device
from minedraft_workers.execution.tables import BlockTables


class Runner(Protocol):
    """A model with its cache; the executor has checked every span and given it its blocks.

    Attributes:
        kernels: the name of what it computes with, for people.
        is_batch_invariant: whether a row's result is the same, bit for bit, whatever else is in the forward.
    """

    kernels: str
    is_batch_invariant: bool

    @property
    def tables(self) -> BlockTables:
        """The blocks of every request."""
        ...

    def run(
        self, tokens: Sequence[np.ndarray], queries: Sequence[QuerySpan], num_logits: Sequence[int]
    ) -> torch.Tensor:
        """Cache the tokens of each span and return logits of its last `num_logits` positions.

        Args:
            tokens: int64 ids of each span. queries: where they belong, and the blocks of their request.

        Returns:
            float32 [sum of num_logits, columns], in the order of the spans.
        """
        ...


class TorchRunner:
    """Any model of transformers, through its own code and the attention interface."""

    kernels = "torch"
    is_batch_invariant = False

    def __init__(self, model: PreTrainedModel, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self._scratch = Scratch()

    @property
    def tables(self) -> BlockTables:
        return self._cache

    def run(
        self, tokens: Sequence[np.ndarray], queries: Sequence[QuerySpan], num_logits: Sequence[int]
    ) -> torch.Tensor:
        """See `Runner.run`."""
        order = pack_order(queries)
        positions = [np.arange(query.start, query.start + query.num_tokens) for query in queries]
        device = self._cache.device
        logits = self._model(
            input_ids=to_device(np.concatenate([tokens[i] for i in order]), device)[None],
            position_ids=to_device(np.concatenate([positions[i] for i in order]), device)[None],
            logits_to_keep=to_device(_logit_rows(queries, num_logits, order), device),
            use_cache=False,
            **{CONTEXT_KEYWORD: ForwardContext(self._cache, self._scratch, [queries[i] for i in order])},
        ).logits
        rows: torch.Tensor = logits[0].float()
        return rows


def _logit_rows(queries: Sequence[QuerySpan], num_logits: Sequence[int], order: Sequence[int]) -> np.ndarray:
    """Return the packed row of every requested row of logits, in the order of the spans."""
    ends = np.empty(len(queries), dtype=np.int64)
    ends[list(order)] = np.cumsum([queries[i].num_tokens for i in order])
    return np.concatenate([np.arange(end - count, end) for count, end in zip(num_logits, ends, strict=True)])
