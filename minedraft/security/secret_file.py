"""Files with secrets: read only if no other user can read them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from minedraft.errors import ConfigError

MAX_SECRET_BYTES = 1 << 20

_OF_OTHERS = 0o177  # everything beyond 0600
# systemd gives a credential to the service's user by an ACL, whose mask is shown as the bits of the group.
_OF_OTHERS_THAN_SYSTEMD = 0o137


def find_secret(path: Path) -> Path:
    """Return where a secret lies: a plain name is first looked for among systemd's credentials (`LoadCredential=`)."""
    folder = _credentials_folder()
    if folder is not None and path.name == str(path) and (folder / path).exists():
        return folder / path
    return path


def read_secret(path: Path, field: str) -> bytes:
    """Return the bytes of a file that only this user can read.

    Raises:
        ConfigError: it cannot be read, is no file, is too large, belongs to another user, or is open to others; the
            error names `field` and the path, never what the file holds.
    """

    def refuse(limit: str) -> ConfigError:
        return ConfigError(field, str(path), limit)

    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # the opening of a pipe would wait
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise refuse("is not a file")
            if status.st_uid not in (os.geteuid(), 0):
                raise refuse("belongs to another user")
            forbidden = _OF_OTHERS_THAN_SYSTEMD if path.parent == _credentials_folder() else _OF_OTHERS
            if status.st_mode & forbidden:
                raise refuse(f"has mode {stat.S_IMODE(status.st_mode):04o}, at most 0600 is allowed: chmod 600 it")
            data = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        raise refuse(f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_SECRET_BYTES:
        raise refuse(f"has more than {MAX_SECRET_BYTES} bytes")
    return data


def mark_of(path: Path) -> tuple[int, ...] | None:
    """Return what changes when a file is written, replaced or given other permissions; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _credentials_folder() -> Path | None:
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    return Path(folder) if folder else None
