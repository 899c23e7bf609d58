"""Files of a run: atomic writes, tensor shards and the errors a user can cause."""

import errno
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file


class DrafterError(Exception):
    """An error that the user can fix (a wrong folder, a full disk); printed without a traceback."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Writes through a temporary file beside `path` and renames it, so a stop or a full disk leaves the old file.

    Raises:
        DrafterError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors makes its files private to this user
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in str(error):
            raise DrafterError(
                f"the disk is full while writing {path}; the file before is kept: free some space and run again"
            ) from error
        raise DrafterError(f"cannot write {path}: {error}; the file before is kept") from error
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    """Saves one safetensors file atomically."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Loads one safetensors file.

    Raises:
        DrafterError: the file is missing, truncated or not a safetensors file.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise DrafterError(
            f"{path} cannot be read ({error}); it is missing or truncated: delete it and run its stage again"
        ) from error


def save_json(path: Path, value: Any) -> None:  # noqa: ANN401 (any JSON value)
    """Saves JSON atomically, indented for readers."""
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: _write_text(temporary, text))


def load_json(path: Path, made_by: str) -> Any:  # noqa: ANN401 (any JSON value)
    """Loads JSON.

    Raises:
        DrafterError: the file is missing (the message names the stage that makes it) or truncated.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DrafterError(f"{path} is missing: run the stage `{made_by}` first") from error
    except (OSError, ValueError) as error:
        raise DrafterError(f"{path} cannot be read ({error}); delete it and run the stage `{made_by}` again") from error


def sha256_of(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
