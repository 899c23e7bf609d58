"""The loop: a lane takes one batch from round to round. Each way to interleave its calls is one function."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from minedraft.core.rounds import RoundPlan
from minedraft.engine.verifying import Checked, Unchecked
from minedraft.messages import Proposal, VerifySpan
from minedraft.types import Batch


class LaneActions(Protocol):
    """The calls that a lane makes. Each is safe to run concurrently with those of the other lane."""

    async def plan(self, batch: Batch) -> RoundPlan:
        """Return the batch's next round; wait until there is something to do."""
        ...

    async def draft(self, plan: RoundPlan) -> Sequence[Proposal]:
        """Return the drafter's proposals for the round."""
        ...

    def assemble(self, plan: RoundPlan, proposals: Sequence[Proposal]) -> tuple[VerifySpan, ...]:
        """Return the spans of the round's verify command: its requests, with the drafts that fit."""
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

    async def run_ahead(self, plan: RoundPlan, spans: Sequence[VerifySpan]) -> None:
        """Have the drafter prepare drafts for the next round from those that are being verified, after what `prefill`
        does."""
        ...

    async def verify(self, plan: RoundPlan, spans: tuple[VerifySpan, ...]) -> Checked | Unchecked:
        """Return the verifier's verdicts on the round, or why there are none."""
        ...

    def commit(self, plan: RoundPlan, outcome: Checked | Unchecked) -> None:
        """End the round: add its tokens to its requests and deliver them, or give it up."""
        ...


async def run_overlapped(actions: LaneActions, batch: Batch) -> None:
    """Draft and verify the rounds of one batch, until cancelled. Two such lanes overlap: while one uses the
    verifier, the other uses the drafter. The drafter's prefill runs during the verify of the same round. In one
    lane without drafts, a round is sent while the one before it is verified; in one lane whose drafter runs ahead,
    drafter and verifier work on the same requests."""
    while True:
        plan = await actions.plan(batch)
        spans = actions.assemble(plan, await actions.draft(plan))
        if plan.num_branches:
            await _verify_beside(actions, plan, spans, actions.run_ahead(plan, spans))
        elif actions.has_prefill(plan):
            await _verify_beside(actions, plan, spans, actions.prefill(plan))
        elif (following := actions.follow(plan)) is not None:
            await _verify_chain(actions, plan, following)
        else:
            actions.commit(plan, await actions.verify(plan, spans))


async def _verify_beside(
    actions: LaneActions, plan: RoundPlan, spans: tuple[VerifySpan, ...], drafting: Coroutine[Any, Any, None]
) -> None:
    """Verify a round while the drafter works, and commit it when both are done: the verdict says which of the drafts
    that run ahead have come true."""
    async with asyncio.TaskGroup() as together:
        verify = together.create_task(actions.verify(plan, spans))
        together.create_task(drafting)
    actions.commit(plan, verify.result())


async def _verify_chain(actions: LaneActions, plan: RoundPlan, following: RoundPlan | None) -> None:
    """Verify a round without drafts and those that follow it, as long as each has a follower. The next command is in
    the verifier's mailbox before it is needed."""
    async with asyncio.TaskGroup() as sent:
        verify = sent.create_task(actions.verify(plan, actions.assemble(plan, ())))
        while following is not None:
            next_verify = sent.create_task(actions.verify(following, actions.assemble(following, ())))
            actions.commit(plan, await verify)
            plan, verify = following, next_verify
            following = None if actions.has_prefill(plan) else actions.follow(plan)
        actions.commit(plan, await verify)
