"""`minedraft chat`: a conversation at the terminal."""

from __future__ import annotations

import sys
from contextlib import closing
from typing import Any

import click
from rich.console import Console
from rich.text import Text

from minedraft.cli.chat_input import COMMANDS, is_command, read_messages
from minedraft.cli.console import show
from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.cli.flags.sampling import sampling_flags, to_sampling_params
from minedraft.cli.readiness import wait_until_loaded
from minedraft.client import Client
from minedraft.errors import EXIT_OK, InvalidRequest, MineDraftError
from minedraft.output import Output
from minedraft.process.entry import EXIT_REQUEST
from minedraft.sampling_params import DEFAULT_CHAT_TOKENS, SamplingParams
from minedraft.types import FinishReason

_EPILOG = """
\b
During an answer, Ctrl-C ends the answer; at the prompt, Ctrl-C or Ctrl-D quits.
/new starts over, /undo removes the last exchange, /help shows all commands.
\b
Each line is a message; pasted text is one message, even with several lines.
Piped input is split into messages at empty lines, and the exit code is 1 if
one was not answered; for a whole file as one message:
  minedraft generate --chat <FILE
\b
Examples:
  minedraft chat
  minedraft chat --system "You answer in one sentence." --temperature 0.7
"""
_REMEDY = "/undo removes the last exchange, /new starts over"


@click.command(epilog=_EPILOG)
@connection_flags
@click.option("--system", default=None, metavar="TEXT", help="System message at the start of the conversation.")
@sampling_flags
def chat(connection: Connection, system: str | None, **flags: object) -> int:
    """Chat with the model of a running service.

    The model sees the whole conversation with each message. Start the service with minedraft-launch.
    """
    params = to_sampling_params(dict(flags))
    if params.n != 1:
        raise InvalidRequest("n", params.n, "must be 1 in a chat")
    if params.logprobs is not None:
        raise InvalidRequest("logprobs", params.logprobs, "are not shown in a chat; use minedraft generate --json")
    console = Console(highlight=False, soft_wrap=True)
    with Client(connection.server, **connection.access) as client:
        wait_until_loaded(client, None)
        status = client.status()
        target = next((worker.model for worker in status.workers if worker.role == "verifier"), "the model")
        _say(console, f"{target}, mode {status.mode}; Ctrl-C ends an answer, Ctrl-D quits, /help shows all commands")
        return _converse(client, console, params, system)


def _converse(client: Client, console: Console, params: SamplingParams, system: str | None) -> int:
    """Return the exit code: messages from a pipe are a script's, which must see that one was not answered."""
    code = EXIT_OK
    opening = [{"role": "system", "content": system}] if system is not None else []
    messages = list(opening)
    for text in read_messages(console):
        if text in ("/quit", "/exit"):
            break
        if text == "/new":
            messages = list(opening)
        elif text == "/undo":
            del messages[max(len(opening), len(messages) - 2) :]
        elif is_command(text):
            if text not in COMMANDS:
                _say(
                    console,
                    f"unknown command {text}; to send a message that starts with a slash, put a space before it",
                )
            _say(console, "\n".join(f"{name:6} {meaning}" for name, meaning in COMMANDS.items()))
        else:
            messages.append({"role": "user", "content": text.strip()})
            answer = _answer(client, console, params, messages, can_shorten=len(messages) > len(opening) + 1)
            if answer is None:
                messages.pop()
                code = EXIT_OK if sys.stdin.isatty() else EXIT_REQUEST
            else:
                messages.append({"role": "assistant", "content": answer})
    return code


def _answer(
    client: Client, console: Console, params: SamplingParams, messages: list[dict[str, str]], *, can_shorten: bool
) -> str | None:
    """Stream one answer and return its text, after Ctrl-C as far as it came; None after an error."""
    parts: list[str] = []
    last: Output | None = None
    outputs: Any = client.generate(messages, params)
    try:
        with closing(outputs):
            for last in outputs:
                parts.append(last.text)
                show(last.text)
    except KeyboardInterrupt:
        _say(console, " (stopped)", end="")
    except MineDraftError as error:
        console.print(Text(str(error), style="red"))
        if can_shorten and isinstance(error, InvalidRequest) and error.field in ("prompt", "max_new_tokens"):
            _say(console, f"the conversation is too long: {_REMEDY}")
        return None
    console.print()
    if last is not None and last.usage is not None:
        usage = last.usage
        rate = usage.output_tokens / max(usage.total_s - usage.queue_s, 1e-9)
        per_round = usage.output_tokens / max(usage.rounds, 1)
        _say(console, f"{usage.output_tokens} tokens, {rate:.0f} tokens/s, {per_round:.1f} tokens per round")
        is_cut = last.finish_reason is FinishReason.LENGTH and params.max_new_tokens is None
        if is_cut and usage.output_tokens < DEFAULT_CHAT_TOKENS:
            _say(console, f"the context is full: {_REMEDY}")
    return "".join(parts)


def _say(console: Console, text: str, end: str = "\n") -> None:
    """Print a line of the chat itself, dimmed to set it apart from the model's text; markup has no effect."""
    console.print(Text(text, style="dim"), end=end)
