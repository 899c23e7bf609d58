"""How long a forward takes: by the roofline of a named device, or as measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from minedraft.sim.gpus import COMPUTE_SHARE, MEMORY_SHARE, Gpu
from minedraft.sim.shapes import ModelShape
from minedraft.theory.costs import Cost

LAYER_S = 8e-6
"""Time that the kernels of a layer, about ten, take to start one after the other in a captured graph."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What a command of a worker takes. seconds: alone. reading: the share of them in which it only reads."""

    seconds: float
    reading: float = 1.0


class Forward(Protocol):
    """A model on its device."""

    def work(self, num_rows: int, num_kv_tokens: int, *, num_prompt: int = 0, is_wide: bool = False) -> Effort:
        """Return what a forward pass takes.

        Args:
            num_rows: tokens that it computes. num_prompt: those of them that belong to prompts.
            num_kv_tokens: cached tokens that they attend to, over all requests.
            is_wide: it may use the other worker's cores.
        """
        ...


@dataclass(frozen=True, slots=True)
class RooflineForward:
    """A forward takes the longer of reading (weights once, keys and values) and computing, and a fixed time a layer; or
    what the program takes to launch it, if that is longer.

    Attributes:
        num_gpus: that share the model by tensor parallelism, with two all-reduces a layer.
        layer_s: what a layer's kernels take however little they compute.
        launch_s: what the program takes to launch a layer's kernels one by one; 0 with a captured graph.
        forward_s: what the program takes for each forward before and after it, while the GPU waits.
    """

    shape: ModelShape
    gpu: Gpu
    num_gpus: int = 1
    layer_s: float = LAYER_S
    launch_s: float = 0.0
    forward_s: float = 0.0

    def work(self, num_rows: int, num_kv_tokens: int, *, num_prompt: int = 0, is_wide: bool = False) -> Effort:
        """Return what a forward pass takes; devices of their own neither collide nor widen."""
        shape, gpu = self.shape, self.gpu
        read_bytes = shape.read_bytes + shape.kv_bytes * num_kv_tokens
        # Each row attends to its own request's tokens: on average to num_kv_tokens / requests; rows of one request
        # read them once. The operations of attention never bound a decode, so counting each token once is enough.
        flops = shape.flops_per_token * num_rows + shape.flops_per_kv_token * num_kv_tokens
        read_s = read_bytes / (gpu.bytes_per_s * MEMORY_SHARE)
        compute_s = flops / (gpu.flops * COMPUTE_SHARE)
        layers_s = shape.num_layers * (self.layer_s + self._reduce_s(num_rows))
        kernels_s = max(read_s, compute_s) / self.num_gpus + layers_s
        return Effort(max(kernels_s, shape.num_layers * self.launch_s) + self.forward_s, reading=0.0)

    def _reduce_s(self, num_rows: int) -> float:
        """Return the time of a layer's two all-reduces."""
        if self.num_gpus == 1:
            return 0.0
        num_bytes = 2.0 * num_rows * self.shape.hidden * 2 * (self.num_gpus - 1) / self.num_gpus
        return 2 * (self.gpu.link_s + num_bytes / self.gpu.link_bytes_per_s)


@dataclass(frozen=True, slots=True)
class FittedForward:
    """A forward as measured on this machine.

    Attributes:
        kv_token_s: seconds that a cached token adds.
        prompt_token_s: seconds that a token of a prompt adds; None: as any other row.
        wide: the cost on all cores; None: it has no others.
    """

    cost: Cost
    kv_token_s: float = 0.0
    prompt_token_s: float | None = None
    wide: Cost | None = None

    def work(self, num_rows: int, num_kv_tokens: int, *, num_prompt: int = 0, is_wide: bool = False) -> Effort:
        """Return what a forward pass takes."""
        cost = self.wide if is_wide and self.wide is not None else self.cost
        if self.prompt_token_s is None:
            seconds = cost.at(num_rows)
        else:
            seconds = cost.at(num_rows - num_prompt) + self.prompt_token_s * num_prompt
        seconds += self.kv_token_s * num_kv_tokens
        return Effort(seconds, cost.base_s / seconds if seconds else 0.0)
