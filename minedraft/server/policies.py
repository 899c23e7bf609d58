"""The policies that the settings ask for."""

from __future__ import annotations

from minedraft.core.policy.acceptance import AcceptanceRates
from minedraft.core.policy.base import DraftPolicy, FixedDraftLen
from minedraft.core.policy.cost_model import CostModel
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.settings.choices import AUTO
from minedraft.settings.config import Settings
from minedraft.types import ScoreKind


def choose_draft_policy(settings: Settings) -> DraftPolicy:
    """Return the policy that decides how many tokens to draft, and which of the drafts to verify."""
    is_auto = settings.draft_len == AUTO
    policy: DraftPolicy = AutoDraftLen(CostModel(), AcceptanceRates()) if is_auto else FixedDraftLen()
    if settings.draft_policy == "fixed":
        return policy
    return TetrisPolicy(policy, settings.extra_drafts, settings.verify_capacity)


def choose_scores(settings: Settings) -> ScoreKind:
    """Return what the policy must know of each draft."""
    return {"fixed": ScoreKind.NONE, "tetris": ScoreKind.PEAK, "tetris-exact": ScoreKind.DRAWN}[settings.draft_policy]
