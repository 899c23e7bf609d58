"""What runs a packed forward, and how the tokens of many requests are packed into rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, Self, runtime_checkable

import numpy as np
import torch
from transformers import PreTrainedModel

from minedraft_workers.execution.attention import CONTEXT_KEYWORD
from minedraft_workers.execution.features import FeatureLayers, FeatureRecorder, ForwardOutput
from minedraft_workers.kernels.kvcache import KVCache, to_device
from minedraft_workers.kernels.paged_attention import ForwardContext, Scratch
from minedraft_workers.kernels.tables import BlockTables, QuerySpan


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """The new tokens of a forward, one row each.

    ids, positions: int64 [rows]. spans: in the order of their rows. logit_rows: int64 [n], the rows whose logits
    are wanted, in the order in which the spans were given; `wants_all` if they are all rows, from the first to the
    last. order: of each span, its place among those given.
    given: int64 [rows], ids on the device, which count instead of `ids`; None if the host knows them.
    """

    ids: np.ndarray
    positions: np.ndarray
    spans: list[QuerySpan]
    logit_rows: np.ndarray
    wants_all: bool
    order: list[int]
    given: torch.Tensor | None = None

    @classmethod
    def make(cls, tokens: Sequence[Sequence[int]], spans: Sequence[QuerySpan], num_logits: Sequence[int]) -> Self:
        """Pack spans so that those which torch's operators attend together are neighbours.

        In lists, as a round of decoding has few rows: NumPy's calls would cost more than they do.

        Args:
            tokens: ids of each span. num_logits: of each span, how many of its last rows have logits.
        """
        order = sorted(range(len(spans)), key=lambda i: (spans[i].num_tokens, -spans[i].num_blocks))
        ids: list[int] = []
        positions: list[int] = []
        ends = [0] * len(spans)
        for index in order:
            span = spans[index]
            ids += tokens[index]
            positions += range(span.start, span.start + span.num_tokens)
            ends[index] = len(ids)
        wanted = [row for end, count in zip(ends, num_logits, strict=True) for row in range(end - count, end)]
        arrays = np.array(ids, np.int64), np.array(positions, np.int64), np.array(wanted, np.int64)
        wants_all = len(wanted) == len(ids) and wanted == list(range(len(ids)))
        return cls(arrays[0], arrays[1], [spans[i] for i in order], arrays[2], wants_all, order)

    @property
    def end(self) -> int:
        """One more than the last position."""
        return max([span.start + span.num_tokens for span in self.spans])

    def with_given(self, ids: torch.Tensor) -> Self:
        """Return the rows with these ids, int64 [spans] on the device, one for each of the spans as they were given,
        which have one row each."""
        if not self.is_as_given:
            ids = ids.index_select(0, to_device(np.array(self.order), ids.device))
        return replace(self, given=ids)

    def ids_on(self, device: torch.device) -> torch.Tensor:
        """Return the ids on the device, int64 [rows]."""
        return to_device(self.ids, device) if self.given is None else self.given

    @property
    def is_as_given(self) -> bool:
        """Whether the rows are in the order in which the spans were given."""
        return self.order == list(range(len(self.order)))

    def rows_as_given(self) -> np.ndarray:
        """Return int64 [rows], the rows in the order in which the spans were given."""
        lengths = [span.num_tokens for span in self.spans]
        pieces = np.split(np.arange(len(self.ids)), np.cumsum(lengths)[:-1])
        return np.concatenate([pieces[packed] for packed in np.argsort(self.order)])


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

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Cache the tokens and return the logits asked for, float32 [len(logit_rows), columns]."""
        ...

    def want_features(self, wanted: FeatureLayers) -> None:
        """From now on `run_with_features` gives the features of these layers of the model."""
        ...

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Run as `run`, with the same bits; the features, [rows, columns], are in the order of `rows`."""
        ...


@runtime_checkable
class GraphCapturing(Protocol):
    """A runner that can run its forwards as CUDA graphs.

    Attributes:
        kernels: as of `Runner`; once they are captured, also of how many rows.
    """

    kernels: str

    def capture(self, say: Callable[[str], object] = ...) -> None:
        """Capture them, in the thread that will run them, and tell `say` how far it has got.

        Raises:
            MemoryExhausted: there is no memory for any of them.
        """
        ...


class TransformersRunner:
    """Any model of transformers, through its own code and the attention interface."""

    kernels = "transformers"
    is_batch_invariant = False

    def __init__(self, model: PreTrainedModel, cache: KVCache) -> None:
        self._model = model
        self._cache = cache
        self._scratch = Scratch()
        self._recorder = FeatureRecorder(model, FeatureLayers())

    @property
    def tables(self) -> BlockTables:
        return self._cache

    def want_features(self, wanted: FeatureLayers) -> None:
        """Implements `Runner`."""
        self._recorder = FeatureRecorder(self._model, wanted)

    def run_with_features(self, rows: PackedRows) -> ForwardOutput:
        """Implements `Runner`."""
        with self._recorder.recording(len(rows.ids)) as features:
            logits = self.run(rows)
        return ForwardOutput(logits, features)

    def run(self, rows: PackedRows) -> torch.Tensor:
        """Implements `Runner`."""
        device = self._cache.device
        logits = self._model(
            input_ids=rows.ids_on(device)[None],
            position_ids=to_device(rows.positions, device)[None],
            logits_to_keep=to_device(rows.logit_rows, device),
            use_cache=False,
            **{CONTEXT_KEYWORD: ForwardContext(self._cache, self._scratch, rows.spans)},
        ).logits
        wanted: torch.Tensor = logits[0].float()
        return wanted
