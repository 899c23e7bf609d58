"""A drafting head's forwards of few rows as CUDA graphs. Not yet run on a GPU.

There are two kinds: the first forward of a round, which is given the target's features, and those after it, which are
given the head's own states. As with a model, a graph ends before the output rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from minedraft_workers.execution.eagle.decoder import HeadDecoder
from minedraft_workers.execution.graphs.buffers import PaddedInputs
from minedraft_workers.execution.graphs.capture import Capture, Computed
from minedraft_workers.execution.graphs.sizes import GraphSet
from minedraft_workers.execution.runner import PackedRows


@dataclass(frozen=True, slots=True)
class _HeadForward:
    """A forward that gives the normed output and the states."""

    decoder: HeadDecoder[Any, Any, Any]
    given_size: int
    are_states: bool

    def compute(self, inputs: PaddedInputs) -> Computed:
        """Implements `ForwardKind`."""
        return self.decoder.compute(inputs.forward, inputs.given, are_states=self.are_states)


class HeadGraphs:
    """Captures a head's forwards, and runs by them what fits.

    Args:
        decoder: on `TritonLayerKernels`.
        feature_size: numbers of a row of the target's features.
        max_model_len: positions that can occur.
        capture: see `Capture`.

    Attributes:
        kernels: also says for how many rows there are graphs.
    """

    def __init__(
        self, decoder: HeadDecoder[Any, Any, Any], feature_size: int, max_model_len: int, capture: Capture
    ) -> None:
        like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
        self.kernels = decoder.kernels
        self._graphs: GraphSet[_HeadForward] = GraphSet(decoder.cache, like, max_model_len, decoder.kernels, capture)
        self._given_features = self._given_states = _HeadForward(decoder, feature_size, are_states=False)
        if not decoder.takes_states_as_features:
            self._given_states = _HeadForward(decoder, decoder.hidden_size, are_states=True)
        # Their memory may move when they grow, and a graph would not see it.
        decoder.angles.reserve(min(max_model_len, self._graphs.capacity))

    def capture(self, say: Callable[[str], object] = lambda text: None) -> None:
        """Implements `GraphCapturing`."""
        self._graphs.capture(list(dict.fromkeys([self._given_features, self._given_states])), say)
        self.kernels = self._graphs.kernels

    def run(self, rows: PackedRows, given: torch.Tensor, are_states: bool) -> Computed | None:
        """Return the normed output and the states of the forward's rows and its padding, valid until the next call;
        None if no graph fits. Arguments as of `EagleHead.forward`, in the order of `rows`."""
        return self._graphs.replay(self._given_states if are_states else self._given_features, rows, given)
