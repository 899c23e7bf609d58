"""The policies that the settings ask for."""

from __future__ import annotations

from minedraft.core.policy.acceptance import AcceptanceRates
from minedraft.core.policy.base import DraftPolicy, FixedDraftLen
from minedraft.core.policy.cost_model import CostModel
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.settings.choices import AUTO
from minedraft.settings.config import Settings


def choose_draft_policy(settings: Settings) -> DraftPolicy:
    """Return the policy that decides how many tokens to draft."""
    return AutoDraftLen(CostModel(), AcceptanceRates()) if settings.draft_len == AUTO else FixedDraftLen()
