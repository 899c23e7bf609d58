"""scripts/bench/doors/http: what the HTTP door costs beside the gRPC door, on one service, in turns."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.errors import Unavailable
from minedraft.local import serve

_USAGE = re.compile(rb'"completion_tokens":\s*(\d+)')


Ask = Callable[[str], Awaitable[tuple[float, int]]]
_NUM_ALONE = 40
_END = b"\r\n0\r\n\r\n"  # of a body in chunks


class _Connections:
    """Connections that stay open from one answer to the next, as those of people's clients do, and as gRPC's does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Lend a connection; one that an answer failed on is closed."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():  # the door closes those that nobody has used for some seconds
                break
            writer.close()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield reader, writer
        except BaseException:
            writer.close()
            raise
        self._idle.append((reader, writer))


@dataclass(frozen=True, slots=True)
class Turn:
    """One run through one door. Times in milliseconds, of the median request."""

    tokens_per_s: float
    first_byte_ms: float
    control_overhead_ms: float
    num_failed: int


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--in-flight", default=16, show_default=True, type=click.IntRange(1), help="Streams at a time.")
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(1), help="Tokens of each answer.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Pairs of runs.")
@click.option("--streams", default=200, show_default=True, type=click.IntRange(1), help="Streams of the last run.")
@click.option("--mode", default="auto", show_default=True, help="Mode of the service.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(in_flight: int, max_new_tokens: int, repeats: int, streams: int, mode: str, json_path: Path | None) -> None:
    """Compare the HTTP door with the gRPC door: tokens per second, time to the first byte, the scheduler's own time.

    Both are asked in turns, by one light client each, for the same streamed greedy answers of the default pair: all at
    once, then one by one. At the end, many streams are opened over HTTP at once.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    result = asyncio.run(_measure(in_flight, max_new_tokens, repeats, streams, mode, port))
    Console().print_json(json.dumps(result))
    if json_path is not None:
        text = json.dumps({"machine": machine_facts(), **result}, indent=1)
        json_path.write_text(text + "\n", encoding="utf-8")


async def _measure(
    in_flight: int, max_new_tokens: int, repeats: int, streams: int, mode: str, port: int
) -> dict[str, Any]:
    texts = [prompt.text for prompt in load_prompts(None)]
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    size = max(in_flight // 2, 1)
    async with serve(mode=mode, max_batch_size=size, http=f"127.0.0.1:{port}", model_name="m", on_line=say) as client:
        connections = _Connections(port)
        asks: dict[str, Ask] = {
            "grpc": lambda text: _ask_grpc(client, text, params),
            "http": lambda text: _ask_http(connections, text, params),
        }
        turns: dict[str, list[Turn]] = {name: [] for name in asks}
        for repeat in range(repeats + 1):
            for name in sorted(asks, reverse=bool(repeat % 2)):
                say(f"{name}, run {repeat} of {repeats}")
                turn = await _run(client, asks[name], texts, in_flight)
                if repeat:  # the first one warms up
                    turns[name].append(turn)
        say(f"{_NUM_ALONE} requests alone through each door")
        later_s = [await _later(asks, texts[i % len(texts)], bool(i % 2)) for i in range(_NUM_ALONE)]
        say(f"{streams} streams over HTTP")
        many = await _run(client, asks["http"], texts, streams)
    medians = {
        name: {key: median(getattr(turn, key) for turn in made) for key in Turn.__slots__}
        for name, made in turns.items()
    }
    pairs = list(zip(turns["http"], turns["grpc"], strict=True))
    return {
        "in_flight": in_flight,
        "max_new_tokens": max_new_tokens,
        "mode": mode,
        "median": medians,
        "http_of_grpc": median(http.tokens_per_s / grpc.tokens_per_s for http, grpc in pairs),
        "first_byte_later_ms": median(http.first_byte_ms - grpc.first_byte_ms for http, grpc in pairs),
        "alone": {"requests": _NUM_ALONE, "first_byte_later_ms": 1e3 * median(later_s)},
        "control_overhead_more_ms": median(h.control_overhead_ms - g.control_overhead_ms for h, g in pairs),
        "many": {"streams": streams, **asdict(many)},
        "turns": {name: [asdict(turn) for turn in made] for name, made in turns.items()},
    }


async def _later(asks: Mapping[str, Ask], text: str, is_http_first: bool) -> float:
    """Return how many seconds later the first byte comes over HTTP, for one request that nobody is beside."""
    first_s = {name: (await asks[name](text))[0] for name in sorted(asks, reverse=is_http_first)}
    return first_s["http"] - first_s["grpc"]


async def _run(client: AsyncClient, ask: Ask, texts: list[str], count: int) -> Turn:
    started_s = time.monotonic()
    asked = [ask(texts[i % len(texts)]) for i in range(count)]
    made = await asyncio.gather(*asked, return_exceptions=True)
    elapsed_s = time.monotonic() - started_s
    answers = [answer for answer in made if not isinstance(answer, BaseException)]
    overhead_ms = (await client.status()).control_overhead_ms
    num_tokens = sum(count for _, count in answers)
    first_ms = 1e3 * median(first_s for first_s, _ in answers) if answers else 0.0
    return Turn(num_tokens / elapsed_s, first_ms, overhead_ms, len(made) - len(answers))


async def _ask_grpc(client: AsyncClient, text: str, params: SamplingParams) -> tuple[float, int]:
    """Return the seconds to the first piece, and the number of tokens."""
    started_s, first_s, count = time.monotonic(), 0.0, 0
    async for output in client.generate([{"role": "user", "content": text}], params):
        first_s = first_s or time.monotonic() - started_s
        count += len(output.token_ids)
    return first_s, count


async def _ask_http(connections: _Connections, text: str, params: SamplingParams) -> tuple[float, int]:
    """Do as `_ask_grpc`, with as little of a client as can be: its time is taken from the same cores."""
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": params.max_new_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(content)}\r\n"
    started_s, first_s, last = time.monotonic(), 0.0, b""
    async with connections.one() as (reader, writer):
        writer.write(f"{head}content-type: application/json\r\n\r\n".encode() + content)
        if not (await reader.readline()).startswith(b"HTTP/1.1 200"):
            raise Unavailable("the door has refused the call")
        while not last.endswith(_END):
            if not (data := await reader.read(1 << 16)):
                raise Unavailable("the door has ended an answer before its end")
            if not first_s and b"data: " in data:
                first_s = time.monotonic() - started_s
            last = (last + data)[-4096:]
    [usage] = _USAGE.findall(last)
    return first_s, int(usage)


if __name__ == "__main__":
    run(main, "scripts/bench/doors/http")
