"""A program that prints "here" and waits for a signal."""

from __future__ import annotations

import signal

print("here", flush=True)  # noqa: T201
signal.pause()
