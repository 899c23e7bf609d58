"""scripts/bench/network/padding: what messages of one size cost in bytes, speed and time to the first text."""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import click
import grpc.aio
from rich.console import Console

from minedraft import SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft.local import serve
from minedraft.prompts import to_call
from minedraft.rpc.codec.inference import generate_to_pb

NUM_REQUESTS = 8


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--tokens", default=64, show_default=True, type=click.IntRange(2), help="Tokens an answer.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures here.")
def main(tokens: int, repeats: int, json_path: Path | None) -> None:
    """Measure the option stream_tokens: the default pair, 8 requests in flight, k = 2, mode minedraft.

    One service for each value runs, and they are asked in turn.

    \b
    Examples:
      scripts/bench/network/padding
      scripts/bench/network/padding --tokens 32 --json padding.json
    """
    rows = asyncio.run(_measure((0, 4, 8, 16), tokens, repeats))
    console = Console()
    for row in rows:
        console.print(
            f"stream_tokens {row['stream_tokens']:2}: {row['tokens_per_s']:6.1f} tokens/s, "
            f"{row['bytes_per_token']:5.1f} bytes and {row['messages_per_token']:.2f} messages a token, "
            f"{row['sizes']} sizes, first text after {row['first_text_ms']:.0f} ms"
        )
    if json_path is not None:
        content = {"machine": machine_facts(), "tokens_an_answer": tokens, "repeats": repeats, "rows": rows}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


async def _measure(values: tuple[int, ...], tokens: int, repeats: int) -> list[dict[str, Any]]:
    settings: dict[str, Any] = {
        "mode": "minedraft",
        "draft_len": 2,
        "max_batch_size": NUM_REQUESTS // 2,
        "lookup": False,
    }
    runs: dict[int, list[dict[str, Any]]] = {value: [] for value in values}
    async with AsyncExitStack() as stack:
        services = {value: serve(stream_tokens=value, keep_drafting=True, **settings) for value in values}
        for service in services.values():
            await stack.enter_async_context(service)
        for _ in range(repeats):
            for value, service in services.items():
                runs[value].append(await _run(service.address, tokens))
    return [
        {"stream_tokens": value, **{name: statistics.median(r[name] for r in found) for name in found[0]}}
        for value, found in runs.items()
    ]


async def _run(address: str, tokens: int) -> dict[str, Any]:
    prompts = [prompt.text for prompt in load_prompts(None)[:NUM_REQUESTS]]
    async with grpc.aio.insecure_channel(address) as channel:
        start_s = time.monotonic()
        answers = await asyncio.gather(*(_ask(channel, prompt, tokens, start_s) for prompt in prompts))
        elapsed_s = time.monotonic() - start_s
    sizes = [size for answer in answers for _, size in answer]
    total = tokens * len(prompts)
    return {
        "tokens_per_s": total / elapsed_s,
        "bytes_per_token": sum(sizes) / total,
        "messages_per_token": len(sizes) / total,
        "sizes": len(set(sizes)),
        "first_text_ms": statistics.median(answer[0][0] for answer in answers) * 1e3,
    }


async def _ask(channel: grpc.aio.Channel, prompt: str, tokens: int, start_s: float) -> list[tuple[float, int]]:
    """Return when each message of an answer came, and its bytes."""
    call = generate_to_pb(to_call(prompt, SamplingParams(max_new_tokens=tokens, ignore_eos=True), None))
    stream = channel.unary_stream("/minedraft.v1.Inference/Generate", None, None)(call.SerializeToString())
    return [(time.monotonic() - start_s, len(message)) async for message in stream]


if __name__ == "__main__":
    run(main, "scripts/bench/network/padding")
