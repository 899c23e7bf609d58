"""The loop: a lane takes one batch from round to round. Each way to interleave the steps is one function."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from minedraft.core.rounds import RoundPlan
from minedraft.engine.verifying import Checked
from minedraft.types import Batch, Proposal


class Steps(Protocol):
    """What a lane is made of. Each step is safe to run beside those of the other lane."""

    async def plan(self, batch: Batch) -> RoundPlan:
        """The batch's next round; waits until there is something to do."""
        ...

    async def draft(self, plan: RoundPlan) -> Sequence[Proposal]:
        """What the drafter proposes for the round."""
        ...

    async def prefill(self, plan: RoundPlan) -> None:
        """Have the drafter cache prompt tokens of the round."""
        ...

    async def verify(self, plan: RoundPlan, proposals: Sequence[Proposal]) -> Checked | None:
        """What the verifier says of the round; None when it came to nothing."""
        ...

    def commit(self, plan: RoundPlan, checked: Checked) -> None:
        """Make the round's tokens part of its requests, and deliver them."""
        ...


async def run_overlapped(steps: Steps, batch: Batch) -> None:
    """Drafts and verifies of one batch in turn, until cancelled. Two such lanes overlap: while one has the
    verifier, the other has the drafter. The drafter's prefill runs beside the verify of the same round."""
    while True:
        plan = await steps.plan(batch)
        proposals = await steps.draft(plan)
        if plan.drafts and not plan.prefills:
            checked = await steps.verify(plan, proposals)
        else:
            async with asyncio.TaskGroup() as together:
                together.create_task(steps.prefill(plan))
                verify = together.create_task(steps.verify(plan, proposals))
            checked = verify.result()
        if checked is not None:
            steps.commit(plan, checked)
