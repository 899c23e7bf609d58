"""Puts the watchdog around the policies of a service."""

from __future__ import annotations

from typing import Any

from minedraft.core.policy.base import DraftPolicy, ModePolicy
from minedraft.core.policy.suspended_mode import SuspendedMode
from minedraft.core.policy.watchdog import Watchdog
from minedraft.settings.service import Settings


def watched(settings: Settings, draft_policy: DraftPolicy, mode_policy: ModePolicy) -> dict[str, Any]:
    """Return the pipeline's arguments: these policies, with a watchdog around them unless the settings forbid it."""
    if settings.keep_drafting:
        return {"draft_policy": draft_policy, "mode_policy": mode_policy}
    watchdog = Watchdog(draft_policy)
    return {
        "draft_policy": watchdog,
        "mode_policy": SuspendedMode(mode_policy, watchdog),
        "event_sources": [watchdog.take_events],
    }
