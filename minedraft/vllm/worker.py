"""The worker for vLLM's model runner V2 (`--worker-cls minedraft.vllm.worker.MineDraftWorker`).

**Not yet run on a GPU.** That model runner takes the number of drafts from the scheduler and the drafts themselves from
its own memory, where its proposer has left them; here ours are written over these before each forward.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from vllm.v1.worker.gpu_worker import Worker


class MineDraftWorker(Worker):
    """vLLM's worker, which verifies the drafts that the scheduler sends."""

    def execute_model(self, scheduler_output: Any) -> Any:  # noqa: ANN401
        write_drafts(scheduler_output.scheduled_spec_decode_tokens, self.model_runner.req_states)
        return super().execute_model(scheduler_output)


def write_drafts(drafts: Mapping[str, Sequence[int]], states: Any) -> None:  # noqa: ANN401
    """Write drafts to where the model runner reads them.

    Args:
        drafts: by request; placeholders are -1, and the worker's own drafts stay then.
        states: vLLM's `RequestState`: `draft_tokens` [requests, drafts] on the device, `req_id_to_index`.
    """
    cells = [
        (states.req_id_to_index[name], position, token)
        for name, tokens in drafts.items()
        for position, token in enumerate(tokens)
        if token >= 0
    ]
    if not cells:
        return
    table = states.draft_tokens
    packed = torch.tensor(cells, dtype=torch.int64).T.contiguous()
    if table.is_cuda:
        packed = packed.pin_memory()
    rows, columns, tokens = packed.to(table.device, non_blocking=True)
    table[rows, columns] = tokens.to(table.dtype)
