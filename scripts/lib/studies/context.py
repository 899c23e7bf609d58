"""scripts/bench/studies/context: drafting, verifying and every mode over the length of the prompts."""

from __future__ import annotations

import asyncio
import pydoc_data.topics
import time
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft import AsyncClient
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.report import machine_facts
from minedraft.cli.console import parse_ints, progress_printer, run, say
from minedraft.local import serve
from minedraft.models.catalogue import ensure_model
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import Mode
from scripts.lib.matrix.main import MODELS, Matrix, MatrixOptions
from scripts.lib.matrix.plan import Axes
from scripts.lib.matrix.store import Store

_QUESTION = "\n\nWhat does this text explain? Answer in detail."
# Prompt tokens per round: the last prompt of a batch is read before the first answer has ended, and the drafter answers
# before it counts as late.
_CHUNK = 1024
_CHARS_PER_TOKEN = 8  # more than there are on average
_ANSWER = 64  # tokens: long enough that all requests decode together for a while after the last prompt


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pair", type=click.Choice(list(MODELS)), default="smollm2", show_default=True, help="Models.")
@click.option("--lengths", default="256,1024,2048,4096", show_default=True, help="Prompt tokens.")
@click.option("-m", "--size", default=2, show_default=True, type=click.IntRange(1), help="Requests per batch.")
@click.option("-k", "--draft-len", default=2, show_default=True, type=click.IntRange(1), help="Drafts per round.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--minutes", default=4.0, show_default=True, help="Stop before a length that would not fit.")
@click.option("--json", "path", type=click.Path(path_type=Path), required=True, help="Result file; it is continued.")
def main(pair: str, lengths: str, size: int, draft_len: int, repeats: int, minutes: float, path: Path) -> None:
    """Measure t_draft, t_verify and the modes with prompts of several lengths, at equal requests in flight.

    The prompts are parts of Python's own manual, as many tokens long as asked. A later start with the same file goes on
    with the lengths, the pair and the repeats that are missing. The tables of the file are those of
    scripts/bench/matrix, with the length as their kind.

    \b
    Examples:
      scripts/bench/studies/context --json context.json
      scripts/bench/studies/context --pair qwen -m 1 -k 3 --minutes 20 --json context.json
    """
    counts = parse_ints("lengths", lengths, 1 << 15)
    target, draft = (ensure_model(name, progress_printer()) for name in MODELS[pair])
    tokenizer = Tokenizer.load(target)
    prompts = {str(num): long_prompts(tokenizer, num, 2 * size) for num in counts}

    def open_service(name: str) -> AbstractAsyncContextManager[AsyncClient]:
        own: dict[str, Any] = {"max_batch_size": size, "prefill_chunk": _CHUNK}
        return serve(target, draft, mode="minedraft", allow_configure=True, on_line=say, **own)

    axes = Axes([pair], list(prompts), [size], [1], [0.0], [draft_len])
    options = MatrixOptions(max_new_tokens=_ANSWER, repeats=repeats, is_natural=False)
    store = Store(path, options.to_json())
    matrix = Matrix(open_service, prompts, options, store, {"machine": machine_facts()})
    left = asyncio.run(matrix.run(axes.in_order(), minutes * 60, time.monotonic))
    for setting in left:
        say(f"left out: {setting.label}")
    Console(width=120).print(_table(store))


def long_prompts(tokenizer: Tokenizer, num_tokens: int, num: int) -> list[BenchPrompt]:
    """Return `num` questions about different parts of Python's manual, of about `num_tokens` tokens each, the chat
    template included."""
    text = "\n\n".join(str(topic) for _, topic in sorted(pydoc_data.topics.topics.items()))
    ids = tokenizer.encode(text[: _CHARS_PER_TOKEN * num * num_tokens])
    framed = len(tokenizer.encode_chat([{"role": "user", "content": _QUESTION}]))
    length = max(num_tokens - framed, 1)
    parts = [ids[i * length : (i + 1) * length] for i in range(num)]
    return [BenchPrompt(str(num_tokens), tokenizer.decode(part) + _QUESTION) for part in parts]


def _table(store: Store) -> Table:
    table = Table("pair", "prompt", "mode", "draft ms", "verify ms", "step ms", "decode tok/s", "of sd", "tok/s")
    for (pair, length, size, _, _), rows in store.measured():
        turns = [row for row in rows if (row.config.mode, row.config.num_in_flight) == (Mode.SD, 2 * size)]
        for row in rows:
            times = [f"{row.median(name):.1f}" for name in ("draft_ms", "verify_ms", "step_ms")]
            rate = row.median("decode_tokens_per_s")
            gain = f"{rate / turns[0].median('decode_tokens_per_s'):.2f}" if turns else "-"
            rates = [f"{rate:.1f}", gain, f"{row.median('tokens_per_s'):.1f}"]
            table.add_row(pair, length, row.config.label, *times, *rates)
    return table


if __name__ == "__main__":
    run(main, "scripts/bench/studies/context")
