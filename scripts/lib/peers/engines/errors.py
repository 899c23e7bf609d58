"""The error of this benchmark."""

from __future__ import annotations

from minedraft.errors import MineDraftError


class PeerFailed(MineDraftError):
    """An engine could not be installed, or did not answer as asked; the message says which and why."""
