"""The plugin's state as a file, by which the engine core tells the API server, another process of this host.

vLLM's own messages between the two have no room for a plugin's numbers. The file lies in a folder that only this user
can enter, under the id that vLLM gives an engine.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_RANK_MARK = "_dp"  # what vLLM puts between an engine's id and the number of a data parallel rank


def status_folder() -> Path:
    """Return the folder of this user's status files, which exists then."""
    folder = Path(tempfile.gettempdir()) / f"minedraft-vllm-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} belongs to another user")
    return folder


class StatusFile:
    """The file of one engine core. `write` it now and then, and `remove` it at the end."""

    def __init__(self, engine_id: str) -> None:
        self._path = status_folder() / f"{engine_id}.json"

    def write(self, status: Mapping[str, Any]) -> None:
        """Replace the contents; a reader sees the old or the new ones."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(status), encoding="utf-8")
        new.replace(self._path)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def read_statuses(engine_id: str) -> dict[str, dict[str, Any]]:
    """Return the statuses of an engine by data parallel rank, "0" without ranks; none if it has not written any."""
    statuses = {}
    for path in sorted(status_folder().glob("*.json")):
        name, _, rank = path.stem.partition(_RANK_MARK)
        if name == engine_id.partition(_RANK_MARK)[0]:
            try:
                statuses[rank or "0"] = dict(json.loads(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):  # it ends just now
                continue
    return statuses
