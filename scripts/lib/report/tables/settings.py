"""The table of settings."""

from __future__ import annotations

from enum import Enum

from minedraft.settings.service import Settings
from scripts.lib.report.results import Results


def settings_table(results: Results) -> str:
    """Return for each setting its name in the TOML file, its default and its description."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in Settings.own_first():
        default = field.default
        shown = default.value if isinstance(default, Enum) else default
        is_plain = field.default_factory is None and shown is not None
        rows.append(f"| `{name}` | {f'`{str(shown).lower()}`' if is_plain else ''} | {field.description} |")
    return "\n".join(rows)
