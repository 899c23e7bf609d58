"""Reading the files of a model folder: their sha256, and those that are JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError


def file_sha256(path: Path) -> str:
    """The sha256 of what a file holds, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json_object(file: Path, field: str, *, must_exist: bool = False) -> dict[str, Any]:
    """Return the object in `file`; an empty one where there is no such file, unless it must exist.

    Raises:
        ModelError: the file cannot be read, or holds something else; what it says is not lost in silence.
    """
    try:
        value = json.loads(file.read_bytes())
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not must_exist:
            return {}
        raise ModelError(field, str(file), f"cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(field, str(file), "not a JSON object (truncated or overwritten?)") from error
    if not isinstance(value, dict):
        raise ModelError(field, str(file), "not a JSON object (truncated or overwritten?)")
    return value
