"""Events of a stream. A chunk is made once by the `openai` package's types, then only its text is exchanged: a stream
has one for every few tokens, and the cores that would make objects of them are those that the models run on.
"""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel

DONE = b"data: [DONE]\n\n"
_HERE = "\u241ftext\u241f"
_END = b"}\n\n"


def event(chunk: BaseModel, extra: dict[str, Any] | None = None, in_choice: dict[str, Any] | None = None) -> bytes:
    """Return the event of a whole chunk.

    Args:
        extra, in_choice: fields that the package's types do not have, of the chunk and of its choice.
    """
    content = chunk.model_dump(mode="json", exclude_unset=True) | (extra or {})
    if in_choice:
        content["choices"][0] |= in_choice
    return b"data: " + json.dumps(content, separators=(",", ":")).encode() + b"\n\n"


def named_event(name: str, content: BaseModel) -> bytes:
    """Return an event that says its name."""
    data = content.model_dump_json(exclude_unset=True, warnings=False)
    return f"event: {name}\ndata: {data}\n\n".encode()


class TextTemplate:
    """Events that differ in one text, and in what stands behind it.

    Args:
        chunk: one of them, with `TextTemplate.HERE` in the place of the text.
    """

    HERE = _HERE

    def __init__(self, chunk: BaseModel) -> None:
        self._before, after = event(chunk).split(json.dumps(_HERE).encode())
        self._after = after.removesuffix(_END)

    def event(self, text: str, extra: dict[str, Any] | None = None) -> bytes:
        """Return the event with this text.

        Args:
            extra: as in `event`.
        """
        more = b"" if not extra else b"," + json.dumps(extra, separators=(",", ":")).encode()[1:-1]
        return self._before + json.dumps(text).encode() + self._after + more + _END
