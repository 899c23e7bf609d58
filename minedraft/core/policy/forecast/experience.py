"""What has been learnt from all rounds so far, for every policy that needs it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from minedraft.core import events
from minedraft.core.policy.forecast.acceptance import AcceptanceRates
from minedraft.core.policy.forecast.cost_model import CostModel


@dataclass(frozen=True, slots=True)
class Experience:
    """Costs of rounds and acceptance of drafts; an observer of its own, before the policies that ask it."""

    costs: CostModel = field(default_factory=CostModel)
    acceptance: AcceptanceRates = field(default_factory=AcceptanceRates)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Take an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.RoundCommitted():
                for num_drafts, accepted_len in event.accepted:
                    self.acceptance.add(num_drafts, accepted_len)
            case events.RequestEnded():
                self.acceptance.forget(event.request_id)
        self.costs.observe(event, now_s)
