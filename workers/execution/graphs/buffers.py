"""The input of a graph: one size of forward, brought to it with rows and pieces of padding."""

from __future__ import annotations

import numpy as np
import torch

from minedraft.core.blocks import BlockPool
from minedraft_workers.execution.fused import ForwardInputs
from minedraft_workers.execution.runner import PackedRows
from minedraft_workers.kernels.kvcache import to_device
from minedraft_workers.kernels.triton_kernels import PiecePlan, fill_plan


class PaddedInputs:
    """The input of one size of forward, always in the same memory.

    What a forward leaves unused of the tables of blocks, and of what is given, keeps what was there before: nothing
    of a request reads it.

    Args:
        width: blocks of the longest request. like: has the dtype and the device of `given`.
        given_size: numbers that a row is given beside its token.

    Attributes:
        forward: all but `given`. given: [rows, given_size].
    """

    def __init__(self, pool: BlockPool, num_rows: int, width: int, given_size: int, like: torch.Tensor) -> None:
        self._block_size, self._padding_slot = pool.block_size, pool.num_blocks * pool.block_size
        # Ids, positions, slots, and pieces of three numbers each.
        self._fixed = torch.zeros(6, num_rows, dtype=torch.int64, device=like.device)
        ids, positions, slots = self._fixed[:3]
        slots.fill_(self._padding_slot)
        tables = torch.zeros(num_rows, width, dtype=torch.int64, device=like.device)
        self._plan = PiecePlan(self._fixed[3:].reshape(-1, 3), tables, slots, has_padding=True)
        self.forward = ForwardInputs(ids, positions, self._plan)
        self.given = like.new_zeros(num_rows, given_size)

    def load(self, rows: PackedRows, given: torch.Tensor | None = None) -> None:
        """Copy a forward's input into the buffers, filled up with padding: one copy from the host.

        Args:
            given: [rows, given_size] on the device.
        """
        num_rows = len(rows.ids)
        plan = fill_plan(rows.spans, self._block_size)
        host = np.zeros(self._fixed.shape, dtype=np.int64)
        host[0, :num_rows], host[1, :num_rows] = rows.ids, rows.positions
        host[2] = self._padding_slot
        host[2, :num_rows] = plan.slots
        host[3:].reshape(-1)[: plan.pieces.size] = plan.pieces.ravel()
        sent = to_device(np.concatenate([host.ravel(), plan.tables.ravel()]), self._fixed.device)
        self._fixed.copy_(sent[: host.size].view(host.shape))
        if rows.given is not None:
            self.forward.ids[:num_rows].copy_(rows.given)
        num_pieces, width = plan.tables.shape
        self._plan.tables[:num_pieces, :width].copy_(sent[host.size :].view(num_pieces, width))
        if given is not None:
            self.given[:num_rows].copy_(given)
