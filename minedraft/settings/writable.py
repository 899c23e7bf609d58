"""Whether a file can be written, asked before the work whose result it is to hold."""

from __future__ import annotations

import os
from pathlib import Path

from minedraft.errors import ConfigError


def check_writable_file(field: str, path: Path | None) -> None:
    """Raise ConfigError, naming the setting `field`, if the file can be neither made nor written; it stays as it is."""
    if path is None:
        return
    limit = ""
    if path.is_dir():
        limit = "a folder"
    elif not path.parent.is_dir():
        limit = f"there is no folder {path.parent}"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        limit = "Permission denied"
    if limit:
        raise ConfigError(field, str(path), f"cannot be written: {limit}")
