"""What has been learnt from all rounds so far, for every policy that needs it. Pure."""

from __future__ import annotations

from minedraft.core import events
from minedraft.core.policy.forecast.acceptance import AcceptanceRates
from minedraft.core.policy.forecast.cost_model import CostModel
from minedraft.types import BRANCHES


class Experience:
    """Costs of rounds and acceptance of drafts; an observer of its own, before the policies that ask it.

    Args:
        num_branches: how many branches of a request are prepared where the drafter runs ahead.
    """

    def __init__(self, num_branches: int = BRANCHES) -> None:
        self.costs = CostModel(num_branches)
        self.acceptance = AcceptanceRates()

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.RoundCommitted():
                for num_drafts, accepted_len in event.accepted:
                    self.acceptance.add(num_drafts, accepted_len)
            case events.RequestEnded():
                self.acceptance.forget(event.request_id)
        self.costs.observe(event, now_s)
