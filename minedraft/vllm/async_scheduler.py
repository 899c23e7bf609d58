"""The scheduler for vLLM's model runner V2 (`--scheduler-cls minedraft.vllm.async_scheduler.MineDraftAsyncScheduler`).

**Not yet run on a GPU.** This engine schedules a step before the one before it has ended. So while one group is
verified, the other one's tokens are known, and its drafts are waited for: every request decodes in each second step.
If a group is empty, a request decodes again as soon as its tokens are known. Without a drafter nothing rests: that is
vLLM as it is, with the drafts of its own n-gram method.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.outputs import DraftTokenIds

from minedraft.vllm.alternation import Turn, is_ours
from minedraft.vllm.turn_taking import TurnTaking


class MineDraftAsyncScheduler(TurnTaking, AsyncScheduler):
    """vLLM's asynchronous scheduler with two groups that take turns and drafts from our drafter."""

    path = "V2"

    def update_draft_token_ids_in_output(self, draft_token_ids: Any, scheduler_output: Any) -> None:  # noqa: ANN401
        """Check the worker's own drafts against their grammars; ours were checked when they were set."""
        drafts = scheduler_output.scheduled_spec_decode_tokens
        pairs = zip(draft_token_ids.req_ids, draft_token_ids.draft_token_ids, strict=True)
        own = [(name, tokens) for name, tokens in pairs if not is_ours(drafts.get(name, ()))]
        super().update_draft_token_ids_in_output(
            DraftTokenIds([name for name, _ in own], [tokens for _, tokens in own]), scheduler_output
        )

    def _prepare(self, request: Any, turn: Turn) -> None:  # noqa: ANN401
        if self._plugin.link.info is None:
            request.next_decode_eligible_step = 0
        elif request.request_id not in turn.names or request.num_output_placeholders:
            self._rest(request)
        elif drafts := turn.drafts.get(request.request_id):
            self._set_drafts(request, drafts)
        else:  # the worker's own drafts stay
            request.next_decode_eligible_step = 0
