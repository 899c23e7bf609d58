"""Reads the messages that a user types, pastes or pipes into `minedraft chat`."""

from __future__ import annotations

import re
import readline
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console

COMMANDS = {
    "/new": "start over",
    "/undo": "remove the last exchange",
    "/help": "show this list",
    "/quit": "quit",
    "/exit": "quit, like Ctrl-D",
}
_COMMAND = re.compile(r"/[a-z]+")


def is_command(text: str) -> bool:
    """Return whether a message is a command to the chat: a slash and a word, and nothing else."""
    return _COMMAND.fullmatch(text) is not None


def read_messages(console: Console) -> Iterator[str]:
    """Yield messages until the end of input or a Ctrl-C.

    At a terminal each line is a message, and pasted text is one message, even with several lines. From a
    pipe each paragraph is a message (see `split_paragraphs`).
    """
    try:
        yield from _typed(console) if sys.stdin.isatty() else split_paragraphs(sys.stdin)
    except (EOFError, KeyboardInterrupt):
        console.print()


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield the text between empty lines; a command alone on a line is a message of its own."""
    paragraph: list[str] = []
    for line in lines:
        is_own = line.rstrip() in COMMANDS
        if line.strip() and not is_own:
            paragraph.append(line.rstrip("\r\n"))
            continue
        if paragraph:
            yield "\n".join(paragraph)
            paragraph = []
        if is_own:
            yield line.rstrip()
    if paragraph:
        yield "\n".join(paragraph)


def _typed(console: Console) -> Iterator[str]:
    # Python turns this off; without it a terminal sends pasted lines as if each was typed.
    readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        text = console.input("[bold]> [/bold]").rstrip()
        if text.strip():
            yield text
