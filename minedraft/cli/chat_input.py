"""What a person types, pastes or pipes into `minedraft chat`, one message after the other."""

from __future__ import annotations

import re
import readline
import sys
from collections.abc import Iterable, Iterator

from rich.console import Console

COMMANDS = {
    "/new": "start over",
    "/undo": "take the last exchange back",
    "/help": "show this",
    "/quit": "leave",
    "/exit": "leave, as Ctrl-D does",
}
_COMMAND = re.compile(r"/[a-z]+")


def is_command(text: str) -> bool:
    """Say whether a message is meant for the chat itself: a slash and a word, and nothing else."""
    return _COMMAND.fullmatch(text) is not None


def read_messages(console: Console) -> Iterator[str]:
    """Yield messages until the end of input or a Ctrl-C.

    At a terminal a message is a line, and what is pasted is one message, whatever lines it has. From a
    pipe it is a paragraph (see `split_paragraphs`).
    """
    try:
        yield from _typed(console) if sys.stdin.isatty() else split_paragraphs(sys.stdin)
    except (EOFError, KeyboardInterrupt):
        console.print()


def split_paragraphs(lines: Iterable[str]) -> Iterator[str]:
    """Yield what stands between empty lines; a command on a line of its own stands for itself."""
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
    # Python turns it off; without it a terminal sends pasted lines as if each had been typed.
    readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        text = console.input("[bold]> [/bold]").rstrip()
        if text.strip():
            yield text
