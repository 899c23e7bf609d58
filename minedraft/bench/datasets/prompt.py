"""One prompt of a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BenchPrompt:
    """A user message and the kind of task it is.

    Attributes:
        kind: the category that the file names, or its layout.
        text: the message; of a conversation, all of its messages.
        messages: the conversation, if it is more than one user message.
        output_len: tokens that the file wants for the answer, if it says so.
    """

    kind: str
    text: str
    messages: tuple[Mapping[str, str], ...] = ()
    output_len: int | None = None
