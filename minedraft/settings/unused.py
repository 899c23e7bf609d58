"""Settings that were given and have no effect with the others: an operator may believe that they have."""

from __future__ import annotations

from minedraft.settings.choices import AUTO
from minedraft.settings.service import Settings
from minedraft.types import Mode


def unused(settings: Settings) -> list[str]:
    """Return a line for each setting that nothing uses, with what it needs. One that has its default asks for nothing;
    `minedraft.local` gives them all."""
    has_http, is_fixed = settings.http is not None, settings.draft_policy == "fixed"
    needs = {
        "http_origins": "" if has_http else "http",
        "http_hosts": "" if has_http or settings.metrics is not None else "http or metrics",
        "model_name": "" if has_http else "http",
        "extra_drafts": "draft_policy tetris" if is_fixed else "",
        "verify_capacity": "draft_policy tetris" if is_fixed else "",
        "branches": "" if settings.mode in (Mode.PEARL, AUTO) or settings.allow_configure else "mode pearl or auto",
    }
    changed = {name for name in needs if getattr(settings, name) != Settings.model_fields[name].default}
    return [f"{name} has no effect without {need}" for name, need in needs.items() if need and name in changed]
