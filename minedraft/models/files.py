"""Reading the files of a model folder: sha256 and JSON."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from minedraft.errors import ModelError


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json_object(file: Path, field: str, *, must_exist: bool = False) -> dict[str, Any]:
    """Return the object in `file`; an empty one if the file does not exist, unless it must.

    Raises:
        ModelError: the file cannot be read, or does not hold a JSON object.
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
