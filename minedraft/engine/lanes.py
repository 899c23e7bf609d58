"""The loop: a lane takes one batch from round to round. Each way to interleave its calls is one function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from minedraft.core.rounds import RoundPlan
from minedraft.engine.verifying import Checked, Unchecked
from minedraft.messages import Proposal
from minedraft.types import Batch


class LaneActions(Protocol):
    """The calls that a lane makes. Each is safe to run concurrently with those of the other lane."""

    async def plan(self, batch: Batch) -> RoundPlan:
        """Return the batch's next round; wait until there is something to do."""
        ...

    async def draft(self, plan: RoundPlan) -> Sequence[Proposal]:
        """Return the drafter's proposals for the round."""
        ...

    def follow(self, plan: RoundPlan) -> RoundPlan | None:
        """Return the round that can be sent before `plan` has ended; None if there is none."""
        ...

    def has_prefill(self, plan: RoundPlan) -> bool:
        """Whether the drafter has something to do during the verify of the round."""
        ...

    async def prefill(self, plan: RoundPlan) -> None:
        """Have the drafter cache the round's prompt tokens, or free KV if it has no other command in the round."""
        ...

    async def verify(self, plan: RoundPlan, proposals: Sequence[Proposal]) -> Checked | Unchecked:
        """Return the verifier's verdicts on the round, or why there are none."""
        ...

    def commit(self, plan: RoundPlan, outcome: Checked | Unchecked) -> None:
        """End the round: add its tokens to its requests and deliver them, or give it up."""
        ...


async def run_overlapped(actions: LaneActions, batch: Batch) -> None:
    """Draft and verify the rounds of one batch, until cancelled. Two such lanes overlap: while one uses the
    verifier, the other uses the drafter. The drafter's prefill runs during the verify of the same round. In one
    lane without drafts, a round is sent while the one before it is verified."""
    while True:
        plan = await actions.plan(batch)
        proposals = await actions.draft(plan)
        if actions.has_prefill(plan):
            async with asyncio.TaskGroup() as together:
                together.create_task(actions.prefill(plan))
                verify = together.create_task(actions.verify(plan, proposals))
            actions.commit(plan, verify.result())
        elif (following := actions.follow(plan)) is not None:
            await _verify_chain(actions, plan, following)
        else:
            actions.commit(plan, await actions.verify(plan, proposals))


async def _verify_chain(actions: LaneActions, plan: RoundPlan, following: RoundPlan | None) -> None:
    """Verify a round without drafts and those that follow it, as long as each has a follower. The next command is in
    the verifier's mailbox before it is needed."""
    async with asyncio.TaskGroup() as sent:
        verify = sent.create_task(actions.verify(plan, ()))
        while following is not None:
            next_verify = sent.create_task(actions.verify(following, ()))
            actions.commit(plan, await verify)
            plan, verify = following, next_verify
            following = None if actions.has_prefill(plan) else actions.follow(plan)
        actions.commit(plan, await verify)
