"""The scheduler for vLLM's model runner V1 (`--scheduler-cls minedraft.vllm.scheduler.MineDraftScheduler`)."""

from __future__ import annotations

import logging
from typing import Any

from vllm.platforms import current_platform
from vllm.v1.core.sched.scheduler import Scheduler

from minedraft.vllm.alternation import Turn
from minedraft.vllm.noop_proposer import WRONG_SAMPLING
from minedraft.vllm.turn_taking import TurnTaking

logger = logging.getLogger("minedraft.vllm")

_GREEDY_BELOW = 1e-5  # vLLM's own limit of a temperature that counts as 0
_JUST_BELOW_ONE = 1 - 2.0**-24  # the float32 before 1


class MineDraftScheduler(TurnTaking, Scheduler):
    """vLLM's scheduler with two groups that take turns and drafts from our drafter."""

    path = "V1"

    _samples_drafts: bool | None = None  # whether the worker verifies sampled drafts rightly, once it has said so

    def add_request(self, request: Any) -> None:  # noqa: ANN401
        """Take in a request. On a CPU, vLLM ends where a step with top_k and without top_p verifies no draft, with its
        own speculation as well: such a request gets a top_p that float32 just tells from 1."""
        params = request.sampling_params
        if params is not None and params.top_k > 0 and params.top_p >= 1 and current_platform.is_cpu():
            params.top_p = _JUST_BELOW_ONE
        super().add_request(request)

    def update_draft_token_ids(self, draft_token_ids: Any) -> None:  # noqa: ANN401
        """Read what the proposer says of its worker; it proposes nothing."""
        if self._samples_drafts is None and draft_token_ids.draft_token_ids:
            self._samples_drafts = WRONG_SAMPLING not in draft_token_ids.draft_token_ids[0]
            if not self._samples_drafts:
                logger.warning(
                    "this vLLM verifies sampled drafts by a wrong temperature: steps with sampled requests have none"
                )

    def _may_verify(self) -> bool:
        return bool(self._samples_drafts) or all(
            request.sampling_params is not None and request.sampling_params.temperature < _GREEDY_BELOW
            for request in self.requests.values()
        )

    def _prepare(self, request: Any, turn: Turn) -> None:  # noqa: ANN401
        if request.request_id in turn.names:
            self._set_drafts(request, turn.drafts.get(request.request_id, ()))
        else:
            self._rest(request)
        # Or the tokens of all requests that rested would be copied for the worker, which has them.
        self.prev_step_scheduled_req_ids.add(request.request_id)
