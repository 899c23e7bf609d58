"""Finds stop strings in text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Truncates streamed text at the first stop string, wherever the pieces are split.

    The first stop string is the one that ends at the earliest character; of two that end there, the longer.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._found = False

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can be shown, and whether a stop string ended it.

        Text that may be the beginning of a stop string is held back; text after a stop string is dropped.
        """
        if self._found:
            return "", True
        text = self._held + text
        ends = [(start + len(stop), start) for stop in self._stop if (start := text.find(stop)) >= 0]
        if ends:
            self._found, self._held = True, ""
            return text[: min(ends)[1]], True
        keep = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[keep:]
        return text[:keep], False

    def flush(self) -> str:
        """Return the text still held back, at the end of an answer."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest end of `text` that is a proper beginning of `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
