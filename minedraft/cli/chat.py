"""`minedraft chat`: a conversation at the terminal."""

from __future__ import annotations

import readline  # noqa: F401 - importing it gives the prompt editing and history
from contextlib import closing
from typing import Any

import click
from rich.console import Console

from minedraft.cli.console import show
from minedraft.cli.sampling_flags import sampling_flags, to_sampling_params
from minedraft.client import Client
from minedraft.errors import InvalidRequest, MineDraftError
from minedraft.output import Output
from minedraft.sampling_params import SamplingParams

_EPILOG = """
\b
While it answers, Ctrl-C ends the answer; at the prompt, Ctrl-C or Ctrl-D leaves.
/new starts over, /undo takes the last exchange back.
\b
Example:
  minedraft chat --system "You answer in one sentence." --temperature 0.7
"""


@click.command(epilog=_EPILOG)
@click.option("--server", metavar="ADDR", default=None, help="unix:PATH or HOST:PORT of the service.")
@click.option("--system", default=None, metavar="TEXT", help="A system message before the conversation.")
@sampling_flags
def chat(server: str | None, system: str | None, **flags: object) -> None:
    """Talk with the model; it sees the whole conversation each time."""
    params = to_sampling_params(dict(flags), max_new_tokens=512)
    if params.n != 1:
        raise InvalidRequest("n", params.n, "a conversation has one answer at a time")
    console = Console(highlight=False, soft_wrap=True)
    with Client(server) as client:
        status = client.status()
        target = next((worker.model for worker in status.workers if worker.role == "verifier"), "the model")
        about = f"{target}, mode {status.mode}; Ctrl-C ends an answer, Ctrl-D leaves"
        console.print(about, style="dim", markup=False)
        _converse(client, console, params, system)


def _converse(client: Client, console: Console, params: SamplingParams, system: str | None) -> None:
    opening = [{"role": "system", "content": system}] if system else []
    messages = list(opening)
    while True:
        text = _ask(console)
        if text is None:
            return
        if text == "/new":
            messages = list(opening)
        elif text == "/undo":
            del messages[max(len(opening), len(messages) - 2) :]
        elif text:
            messages.append({"role": "user", "content": text})
            answer = _answer(client, console, params, messages)
            if answer is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _ask(console: Console) -> str | None:
    """A line of the user; None at the end of input or at Ctrl-C."""
    try:
        return console.input("[bold]> [/bold]").strip()
    except (EOFError, KeyboardInterrupt):
        console.print()
        return None


def _answer(client: Client, console: Console, params: SamplingParams, messages: list[dict[str, str]]) -> str | None:
    """Stream one answer; what came before Ctrl-C counts, None means that there was nothing but an error."""
    parts: list[str] = []
    last: Output | None = None
    outputs: Any = client.generate(messages, params)
    try:
        with closing(outputs):
            for last in outputs:
                parts.append(last.text)
                show(last.text)
    except KeyboardInterrupt:
        console.print("[dim] (stopped)[/dim]", end="")
    except MineDraftError as error:
        console.print(str(error), style="red", markup=False)  # it may quote what was typed
        return None
    console.print()
    if last is not None and last.usage is not None:
        usage = last.usage
        rate = usage.output_tokens / max(usage.total_s - usage.queue_s, 1e-9)
        per_round = usage.output_tokens / max(usage.rounds, 1)
        console.print(f"[dim]{usage.output_tokens} tokens, {rate:.0f} tokens/s, {per_round:.1f} tokens a round[/dim]")
    return "".join(parts)
