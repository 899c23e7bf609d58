"""The scheduler for vLLM's model runner V1 (`--scheduler-cls minedraft.vllm.scheduler.MineDraftScheduler`)."""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler

from minedraft.vllm.alternation import Turn
from minedraft.vllm.turn_taking import TurnTaking


class MineDraftScheduler(TurnTaking, Scheduler):
    """vLLM's scheduler with two groups that take turns and drafts from our drafter."""

    path = "V1"

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:  # noqa: ANN401
        """Ignore what the proposer proposed: nothing."""

    def _prepare(self, request: Any, turn: Turn) -> None:  # noqa: ANN401
        if request.request_id in turn.names:
            self._set_drafts(request, turn.drafts.get(request.request_id, ()))
        else:
            self._rest(request)
        # Or the tokens of all requests that rested would be copied for the worker, which has them.
        self.prev_step_scheduled_req_ids.add(request.request_id)
