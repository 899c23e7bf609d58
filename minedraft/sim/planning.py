"""Machines to simulate: from models and GPUs by name, or from costs that were fitted to a measurement."""

from __future__ import annotations

import re
from dataclasses import dataclass

from minedraft.errors import ConfigError
from minedraft.sim.acceptance import AcceptanceLaw
from minedraft.sim.forwards import FittedForward, RooflineForward
from minedraft.sim.gpus import Gpu, find_gpu
from minedraft.sim.service import Machine
from minedraft.sim.shapes import ModelShape
from minedraft.theory.costs import Costs
from minedraft.types import DraftMethod

BLOCK_SIZE = 16
USABLE_SHARE = 0.9
"""Part of a GPU's memory that weights and KV cache may take."""
LAUNCH_S = {"graphs": 0.0, "eager": 150e-6}
"""What launching a layer takes: nothing with captured graphs; one by one, what Python takes for about ten kernels."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A model on `num_gpus` GPUs of a kind, by tensor parallelism. field: what set the GPUs."""

    shape: ModelShape
    gpu: Gpu
    num_gpus: int
    field: str = "gpu"

    @property
    def num_blocks(self) -> int:
        """KV blocks that fit beside the weights.

        Raises:
            ConfigError: not even the weights fit.
        """
        free = self.num_gpus * self.gpu.memory_bytes * USABLE_SHARE - self.shape.resident_bytes
        blocks = int(free / (BLOCK_SIZE * self.shape.kv_bytes))
        if blocks < 1:
            need, usable = self.shape.resident_bytes, self.gpu.memory_bytes * USABLE_SHARE
            limit = (
                f"{self.shape.name} needs {need / 1e9:.0f} GB for its weights, of each {self.gpu.name}'s memory"
                f" {usable / 1e9:.0f} GB are usable: {self.gpu.name}x{int(need / usable) + 1} would hold it"
            )
            raise ConfigError(self.field, f"{self.gpu.name}x{self.num_gpus}", limit)
        return blocks

    def forward(self, launches: str, forward_s: float = 0.0) -> RooflineForward:
        """Return how long its forwards take. launches: one of LAUNCH_S. forward_s: see `RooflineForward`."""
        return RooflineForward(self.shape, self.gpu, self.num_gpus, launch_s=LAUNCH_S[launches], forward_s=forward_s)


def parse_gpus(field: str, text: str) -> tuple[Gpu, int]:
    """Return the kind and the number of GPUs of a text like "h100" or "a100x4".

    Raises:
        ConfigError: it is none, or names no known GPU.
    """
    found = re.fullmatch(r"([a-z]+[0-9]+[a-z]*?)(?:x([1-9][0-9]?))?", text.lower())
    if found is None:
        raise ConfigError(field, text, "must be a GPU and perhaps a number of them, as h100 or a100x4")
    return find_gpu(field, found[1]), int(found[2] or 1)


def gpu_machine(
    target: Placed, draft: Placed | None, acceptance: AcceptanceLaw, launches: str = "graphs", link_s: float = 1e-4
) -> Machine:
    """Return a machine of two devices, each with its own memory. A shape whose name ends in -eagle is a head that reads
    the target's features.

    Raises:
        ConfigError: a model does not fit, or the drafter's words are not the target's.
    """
    if draft is not None and draft.shape.vocab != target.shape.vocab:
        limit = f"has {draft.shape.vocab} words and {target.shape.name} {target.shape.vocab}: they must be the same"
        raise ConfigError("draft", draft.shape.name, limit)
    is_head = draft is not None and draft.shape.name.endswith("-eagle")
    return Machine(
        target.forward(launches),
        draft.forward(launches) if draft is not None else None,
        acceptance,
        target.num_blocks,
        draft.num_blocks if draft is not None else 1,
        BLOCK_SIZE,
        link_s,
        draft_method=DraftMethod.EAGLE if is_head else DraftMethod.MODEL,
    )


def measured_machine(costs: Costs, acceptance: AcceptanceLaw, num_requests: float = 1.0) -> Machine:
    """Return a machine with the costs that a measurement of this one gave.

    Args:
        num_requests: of a batch, by which messages take their time.
    """
    draft = FittedForward(costs.draft, costs.draft_kv_s) if costs.draft.base_s else None
    return Machine(
        FittedForward(costs.verify, costs.verify_kv_s, wide=costs.verify_wide),
        draft,
        acceptance,
        # A batch's draft and verify are two commands, each with a message to the worker and one back.
        link_s=costs.turns_overhead.at(num_requests) / 4,
        gap_s=costs.queued_overhead.at(num_requests),
        collision=costs.collision,
        shares_cores=costs.verify_wide is not None,
    )
