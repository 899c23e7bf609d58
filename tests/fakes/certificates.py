"""Certificates for tests, of a CA made on the spot."""

from __future__ import annotations

from pathlib import Path

from minedraft.security.authority import make_certificates

HERE = "localhost,127.0.0.1"


def certify(folder: Path, *hosts: str, days: int = 2) -> Path:
    """Return the folder of the first host's certificates; without a host, of those of this machine."""
    return make_certificates(folder, list(hosts) or [HERE], days)[0]


def write_secret(path: Path, text: str, mode: int = 0o600) -> Path:
    """Write a file that only this user may read, or one with another mode."""
    path.write_text(text)
    path.chmod(mode)
    return path
