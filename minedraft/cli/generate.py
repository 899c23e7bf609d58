"""`minedraft generate`: prints the answer to one prompt as it is generated."""

from __future__ import annotations

import dataclasses
import sys
from contextlib import closing
from typing import Any

import click

from minedraft.cli.console import print_json, show
from minedraft.cli.flags.connection import Connection, connection_flags
from minedraft.cli.flags.sampling import sampling_flags, to_sampling_params
from minedraft.cli.readiness import wait_until_loaded
from minedraft.client import Client
from minedraft.output import Output
from minedraft.prompts import Prompt, to_call

_EPILOG = """
\b
Examples:
  minedraft generate "Once upon a time"
  minedraft generate --chat --temperature 0.7 --seed 1 "Why is the sky blue?"
  cat notes.txt | minedraft generate --max-new-tokens 200
  minedraft generate --json --n 3 --temperature 1 "Name a colour:" | jq .text
"""


@click.command(epilog=_EPILOG)
@click.argument("prompt", required=False)
@connection_flags
@click.option("--chat", is_flag=True, help="Send the prompt as a user message, in the model's chat template.")
@click.option("--token-ids", is_flag=True, help="Read the prompt as token ids, separated by spaces or commas.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line, one per streamed piece.")
@click.option("--timeout-s", type=float, default=None, metavar="SECONDS", help="Give up after this time.")
@sampling_flags
def generate(
    prompt: str | None,
    connection: Connection,
    chat: bool,
    token_ids: bool,
    as_json: bool,
    timeout_s: float | None,
    **flags: object,
) -> None:
    """Continue PROMPT and print the answer as it is generated.

    Without PROMPT, the prompt is read from standard input. Start the service with minedraft-launch; while it loads
    its models, this command waits.
    """
    params = to_sampling_params(dict(flags))
    if params.logprobs is not None and not as_json:
        raise click.UsageError("--logprobs needs --json, which shows them")
    if prompt is None:
        if sys.stdin.isatty():
            raise click.UsageError('give a prompt, as in: minedraft generate "Once upon a time"')
        prompt = sys.stdin.read()
    asked = _to_prompt(prompt, chat, token_ids)
    to_call(asked, params, None)  # what is wrong with it is told before a service is waited for
    with Client(connection.server, timeout_s=timeout_s, **connection.access) as client:
        left_s = wait_until_loaded(client, timeout_s)
        outputs: Any = client.generate(asked, params, timeout_s=left_s)
        with closing(outputs):
            if as_json:
                for output in outputs:
                    print_json(to_json(output))
            elif params.n == 1:
                for output in outputs:
                    show(output.text)
                click.echo()
            else:
                _print_by_index(list(outputs))


def to_json(output: Output) -> dict[str, Any]:
    """Return the JSON object of one piece of an answer, without the fields that are empty."""
    entry = dataclasses.asdict(output)
    return {name: value for name, value in entry.items() if value not in (None, (), "") or name in ("text", "index")}


def _to_prompt(text: str, chat: bool, token_ids: bool) -> Prompt:
    if chat and token_ids:
        raise click.UsageError("--chat and --token-ids cannot be used together")
    if chat:
        return [{"role": "user", "content": text}]
    if token_ids:
        parts = text.replace(",", " ").split()
        wrong = next((part for part in parts if not part.isdecimal()), None)
        if wrong is not None:
            raise click.UsageError(f"--token-ids: {wrong!r} is not a token id, which is a number such as 1042")
        return [int(part) for part in parts]
    return text


def _print_by_index(outputs: list[Output]) -> None:
    for index in sorted({output.index for output in outputs}):
        show(f"[{index}] " + "".join(output.text for output in outputs if output.index == index) + "\n")
