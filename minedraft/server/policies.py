"""The policies that the settings ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from minedraft.core.policy.auto_mode import AutoMode
from minedraft.core.policy.base import DraftPolicy, FixedDraftLen, FixedMode, ModePolicy
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.forecast.mode import ModeForecast
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.settings.choices import AUTO
from minedraft.settings.service import Settings
from minedraft.types import ScoreKind


@dataclass(frozen=True, slots=True)
class Policies:
    """What decides for one service.

    Attributes:
        experience: what they learn from; it observes every event before them.
        explain_mode: says why the present mode was chosen; "" if the settings fix it, or nothing is known yet.
    """

    draft: DraftPolicy
    mode: ModePolicy
    explain_mode: Callable[[], str] = lambda: ""
    experience: Experience = field(default_factory=Experience)


def choose_policies(settings: Settings) -> Policies:
    """Return the policies; what the settings fix is decided by none of them."""
    experience = Experience(settings.branches)
    draft: DraftPolicy = AutoDraftLen(experience) if settings.draft_len == AUTO else FixedDraftLen()
    if settings.draft_policy != "fixed":
        draft = TetrisPolicy(draft, settings.extra_drafts, settings.verify_capacity)
    if settings.mode != AUTO:
        return Policies(draft, FixedMode(), experience=experience)
    forecast = ModeForecast(experience, None if settings.draft_len == AUTO else settings.draft_len)
    mode = AutoMode(forecast, settings.max_batch_size, settings.max_draft_len)
    return Policies(draft, mode, mode.explain, experience)


def choose_scores(settings: Settings) -> ScoreKind:
    """Return what the policy must know of each draft."""
    return {"fixed": ScoreKind.NONE, "tetris": ScoreKind.PEAK, "tetris-exact": ScoreKind.DRAWN}[settings.draft_policy]
