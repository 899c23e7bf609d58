"""scripts/quickstart, after it has made the environment: starts a service, answers, compares the modes, stops."""

from __future__ import annotations

import asyncio
import json
import shlex
import socket
from pathlib import Path

import click
from openai import AsyncOpenAI
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.plan import can_share_cores
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import render_rows, run_with_progress, write_report
from minedraft.bench.runner import BenchRow, BenchTable, default_configs, measure_auto
from minedraft.cli.console import progress_printer, run, say
from minedraft.errors import StartFailed
from minedraft.local import LocalService, serve
from minedraft.models.catalogue import DEFAULT_PAIR, PAIRS, ensure_pair
from minedraft.types import DraftMethod

# The cheaper the draft model is relative to its target, the more drafts pay; small batches keep the run short.
SHAPES = {"smollm2": (4, 2), "qwen": (2, 3)}  # pair -> m, k
_HTTP = "127.0.0.1:8000"
METHODS = click.Choice([DraftMethod.MODEL.value, DraftMethod.NGRAM.value])  # no pair has a head


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pair", type=click.Choice(list(PAIRS)), default="smollm2", show_default=True, help="Models to serve.")
@click.option(
    "--draft-method",
    type=METHODS,
    default=DraftMethod.MODEL.value,
    show_default=True,
    help="Draft with the model, or with n-grams of the request.",
)
@click.option(
    "--max-new-tokens", default=48, show_default=True, type=click.IntRange(1, 1024), help="Tokens per answer."
)
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1), help="Runs per mode.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the comparison to this file."
)
def tour(pair: str, draft_method: str, max_new_tokens: int, repeats: int, json_path: Path | None) -> None:
    """Fetch the models, start a service, answer four prompts, compare ar, sd and minedraft, and stop.

    The first run makes the environment and downloads the models; later runs find both.

    \b
    Examples:
      scripts/quickstart               SmolLM2-135M-Instruct (93 MB download) with its drafter
      scripts/quickstart --pair qwen   Qwen2.5-Coder 1.5B with 0.5B (1.6 GB download)
    """
    console = Console()
    folders = ensure_pair(pair, progress_printer())
    size, draft_len = SHAPES[pair]
    method = DraftMethod.NGRAM if folders.draft is None else DraftMethod(draft_method)
    service = serve(
        folders.target,
        folders.draft if method is DraftMethod.MODEL else None,
        draft_method=method.value,
        max_batch_size=size,
        allow_configure=True,
        http=(http := f"127.0.0.1:{_free_port()}"),
        on_line=say,
    )
    try:
        asyncio.run(_show(console, service, http, size, draft_len, max_new_tokens, repeats, json_path))
    except StartFailed as error:  # its lines have been shown
        click.get_current_context().exit(error.exit_code)
    console.print("stopped; no process is left running")
    chosen = "" if pair == DEFAULT_PAIR else f" --target {shlex.quote(str(folders.target))}"
    if chosen and folders.draft is not None:
        chosen += f" --draft {shlex.quote(str(folders.draft))}"
    console.print(f"\nTo go on:\n  minedraft-launch{chosen} --http {_HTTP}", highlight=False, soft_wrap=True)
    console.print(f"and open http://{_HTTP}/ or, in another terminal:", highlight=False)
    print(f"  {curl_line(_HTTP, folders.target.name)}")


def curl_line(address: str, model: str) -> str:
    """Return a command that asks the HTTP door at `address`."""
    messages = [{"role": "user", "content": "What is a glacier?"}]
    body = json.dumps({"model": model, "temperature": 0, "messages": messages})
    return f"curl http://{address}/v1/chat/completions -H 'content-type: application/json' -d {shlex.quote(body)}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _show(
    console: Console,
    service: LocalService,
    http: str,
    size: int,
    draft_len: int,
    max_new_tokens: int,
    repeats: int,
    json_path: Path | None,
) -> None:
    prompts = load_prompts(None)
    async with service as client:
        for prompt in prompts[:4]:
            await _stream(console, client, prompt, max_new_tokens)
        await _ask_http(console, http, max_new_tokens)
        console.print("\nThe same prompts in every mode, sent together:\n")
        configs = default_configs(size, draft_len, can_share_cores=can_share_cores(await client.status()))
        params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
        async with client.borrow() as loan:
            table = BenchTable(prompts[: 2 * size], params, [BenchRow(config) for config in configs])
            await run_with_progress(console, client, loan, [table], repeats)
        auto = await measure_auto(client, prompts[: 2 * size], params, repeats)
        status = await client.status()
        table.rows.append(auto)
        console.print(render_rows(table.rows))
        if json_path is not None:
            write_report(json_path, [table], await client.status(), repeats)
            console.print(f"written to {json_path}", markup=False)
        console.print(f"auto runs {status.mode} here: {status.suspended or status.mode_reason}.")


async def _ask_http(console: Console, address: str, max_new_tokens: int) -> None:
    """Ask the HTTP door, as any program for OpenAI's API does."""
    url = f"http://{address}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none") as client:
        [model] = (await client.models.list()).data
        question = "Name three uses of salt."
        console.print(f"\n[bold]OpenAI's client, at {url}:[/bold] {question}", highlight=False)
        made = await client.chat.completions.create(
            model=model.id, messages=[{"role": "user", "content": question}], temperature=0, max_tokens=max_new_tokens
        )
        print(made.choices[0].message.content)


async def _stream(console: Console, client: AsyncClient, prompt: BenchPrompt, max_new_tokens: int) -> None:
    console.print(f"\n[bold]{prompt.kind}:[/bold] {prompt.text}", highlight=False)
    messages = [{"role": "user", "content": prompt.text}]
    async for piece in client.generate(messages, SamplingParams(max_new_tokens=max_new_tokens)):
        print(piece.text, end="", flush=True)
        if piece.usage is not None:
            usage = piece.usage
            rate = usage.output_tokens / max(usage.total_s, 1e-9)
            console.print(
                f"\n[dim]{usage.output_tokens} tokens in {usage.rounds} rounds, {rate:.1f} tokens/s, "
                f"first after {usage.first_token_s:.2f} s[/dim]",
                highlight=False,
            )


if __name__ == "__main__":
    run(tour, "scripts/quickstart")
