"""Running ahead: which requests the drafter goes on with during a verify, and what of that can be used. Pure.

While the verifier checks drafts d1..dk that follow the committed tokens c, the drafter prepares *branches*: for a
number of accepted drafts a and a bonus token g it drafts what follows c d1..da g. The verdict then either is one of
these branches, so that the drafts of the next round are there when it begins, or it is none and they are dropped.
With one branch, that of all drafts accepted, this is PEARL (Liu et al. 2024); with more, as in speculative
speculative decoding (Kumar et al. 2026), most verdicts find their drafts.

Why the output stays exact. The token g of a branch is never a draft: the verifier has chosen that token itself, and
the branch only had to guess it. The drafts after it are used if and only if the committed tokens are those that they
were drafted from, so each was drawn from q given the committed prefix, and that q comes with it. Whether there is a
draft for a position depends on the committed tokens before the position, and on which tokens were guessed; both
come from random numbers of earlier positions, and of drafts that were dropped (`workers/sampling/randomness.py`). The
numbers that draw the draft of this round, accept it and replace it are independent of that, so the token there has the
target's distribution whether a draft was ready or not. Greedy and coupled tokens do not depend on drafts at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from minedraft.messages import Branch, DraftSpan, Proposal, VerifySpan

if TYPE_CHECKING:
    from minedraft.core.rounds import RoundPlan


@dataclass(frozen=True, slots=True)
class Run:
    """What the drafter has prepared for one request in round `number`, in the order of its reply."""

    number: int
    committed_len: int
    proposals: tuple[Proposal, ...]

    def find(self, accepted_len: int, token: int) -> int | None:
        """Return which of the branches a verdict is; None if it is none of them."""
        wanted = Branch(accepted_len, token)
        return next((i for i, proposal in enumerate(self.proposals) if proposal.branch == wanted), None)

    def drafts_of(self, branch: int) -> Proposal:
        """Return the drafts of a branch that has come true: an ordinary proposal for the next round."""
        return replace(self.proposals[branch], branch=None)


def plan_runs(plan: RoundPlan, command: Sequence[VerifySpan]) -> tuple[DraftSpan, ...]:
    """Return the spans with which the drafter runs ahead of a round, KV reserved.

    Args:
        command: the spans of the round's verify command.
    """
    if plan.book is None:
        return ()
    drafts_of = {span.request_id: span.drafts for span in command}
    runs = [
        plan.book.plan_run(span.request, drafts_of[span.request.id], span.ahead_len, plan.num_branches)
        for span in plan.spans
        if span.ahead_len and span.request.id in drafts_of
    ]
    return tuple([run for run in runs if run is not None])
