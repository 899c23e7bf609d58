"""What control costs: workers whose forward takes no time, and the scheduler's memory under load.

    .venv/bin/python scripts/bench_control.py --json scripts/results/control.json

First part: the pipeline drives two null workers over real gRPC; a step then is control alone.
Second part: the real scheduler process answers many requests through the client API, with workers that
have no model, and its resident memory is read along the way. Run from the root of a checkout.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from minedraft import AsyncClient, SamplingParams
from minedraft.address import Address
from minedraft.bench.report import machine_facts
from minedraft.core.request import NewRequest
from minedraft.core.scheduler import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.errors import MineDraftError, Unavailable
from minedraft.output import RequestUsage
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.types import FinishReason, Mode, TokenLogprobs

ROOT = Path(__file__).resolve().parents[1]


class CountingSink:
    """Counts tokens and says when the request has ended."""

    def __init__(self) -> None:
        self.num_tokens = 0
        self.error: MineDraftError | None = None
        self.done = asyncio.Event()

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> bool:
        self.num_tokens += len(token_ids)
        return False

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        self.error = error
        self.done.set()


@click.command()
@click.option("--requests", default=10_000, show_default=True, type=click.IntRange(100), help="For the memory part.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(requests: int, json_path: Path | None) -> None:
    """Measure the control overhead of a step and the scheduler's memory."""
    console = Console()
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        steps = [asyncio.run(_measure_steps(Path(folder), mode, 8)) for mode in (Mode.MINEDRAFT, Mode.SD)]
        for row in steps:
            console.print(
                f"{row['mode']}: {row['steps_per_s']:.0f} steps/s, {row['step_ms']:.2f} ms a step, "
                f"{row['wire_bytes_per_step']:.0f} bytes a step ({row['num_in_flight']} requests, k=5)"
            )
        memory = asyncio.run(_measure_memory(Path(folder), requests, console))
    peak = max(sample["rss_mb"] for sample in memory)
    console.print(f"scheduler memory: {memory[0]['rss_mb']:.0f} MB at first, {peak:.0f} MB at most")
    if json_path is not None:
        content = {"machine": machine_facts(), "steps": steps, "memory": memory}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


async def _measure_steps(folder: Path, mode: Mode, max_batch_size: int, num_tokens: int = 3000) -> dict[str, Any]:
    """16 requests in flight at k = 5, greedy; a step is one round of one batch."""
    in_flight = max_batch_size * mode.num_batches
    with _processes("tests.fakes.null_worker", folder) as (drafter_at, verifier_at):
        async with AsyncExitStack() as stack:
            await wait_serving(verifier_at, LIVE)
            await wait_serving(drafter_at, LIVE)
            verifier = await stack.enter_async_context(await GrpcVerifier.connect(verifier_at))
            drafter = await stack.enter_async_context(await GrpcDrafter.connect(drafter_at))
            limits = SchedulerLimits(mode, max_batch_size, draft_len=5, max_model_len=1 << 19)
            pipeline = await stack.enter_async_context(Pipeline(limits, verifier, drafter))
            sinks = [CountingSink() for _ in range(in_flight)]
            started_s = time.monotonic()
            for sink in sinks:
                params = SamplingParams(max_new_tokens=num_tokens)
                pipeline.submit(NewRequest(tuple(range(20)), params), sink)
            await asyncio.gather(*(sink.done.wait() for sink in sinks))
            elapsed_s = time.monotonic() - started_s
            assert all(sink.error is None for sink in sinks), [sink.error for sink in sinks]
            num_steps = sum(pipeline.scheduler.counters.rounds.values())
            return {
                "mode": mode.value,
                "num_in_flight": in_flight,
                "steps_per_s": num_steps / elapsed_s,
                "step_ms": elapsed_s / num_steps * 1e3,
                "wire_bytes_per_step": (verifier.wire_bytes + drafter.wire_bytes) / num_steps,
                "summary": asdict(pipeline.stats.summary()),
            }


async def _measure_memory(folder: Path, num_requests: int, console: Console) -> list[dict[str, float]]:
    """The scheduler process's resident memory while `num_requests` answers stream through it."""
    from tests.fakes.workers import VOCAB_SIZE
    from tests.support.tiny_models import write_tiny_tokenizer

    write_tiny_tokenizer(folder / "model", vocab_size=VOCAB_SIZE, eos=None)
    model = ["--model", str(folder / "model"), "--device", "cpu"]
    listen = f"unix:{folder}/m.sock"
    with _processes("tests.fakes.fake_worker", folder, model) as (drafter_at, verifier_at):
        argv = [sys.executable, "-m", "minedraft.server", "--target", str(folder / "model"), "--listen", listen]
        argv += ["--target-address", str(verifier_at), "--draft-address", str(drafter_at)]
        with _process(argv) as server:
            await wait_serving(Address.parse(listen), LIVE)
            samples: list[dict[str, float]] = []
            rng = random.Random(0)
            async with AsyncClient(listen) as client:
                await _until_serving(client)
                with Progress(console=console, transient=True) as progress:
                    task = progress.add_task("requests", total=num_requests)
                    done = 0
                    while done < num_requests:
                        samples.append({"num_requests": done, "rss_mb": _rss_mb(server.pid)})
                        count = min(500, num_requests - done)
                        await _send(client, rng, count, VOCAB_SIZE)
                        done += count
                        progress.update(task, completed=done)
            samples.append({"num_requests": done, "rss_mb": _rss_mb(server.pid)})
            return samples


async def _until_serving(client: AsyncClient) -> None:
    while True:
        try:
            if (await client.status()).state == "serving":
                return
        except Unavailable:
            pass
        await asyncio.sleep(0.05)


async def _send(client: AsyncClient, rng: random.Random, count: int, vocab_size: int) -> None:
    gate = asyncio.Semaphore(64)

    async def one() -> None:
        prompt = [rng.randrange(1, vocab_size) for _ in range(rng.randint(1, 40))]
        async with gate:
            await client.complete(prompt, SamplingParams(max_new_tokens=16))

    await asyncio.gather(*(one() for _ in range(count)))


@contextmanager
def _processes(module: str, folder: Path, flags: Sequence[str] = ()) -> Iterator[tuple[Address, Address]]:
    addresses = [f"unix:{folder}/{role}.sock" for role in ("drafter", "verifier")]
    with (
        _process([sys.executable, "-m", module, "drafter", "--listen", addresses[0], *flags]),
        _process([sys.executable, "-m", module, "verifier", "--listen", addresses[1], *flags]),
    ):
        yield Address.parse(addresses[0]), Address.parse(addresses[1])


@contextmanager
def _process(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS line")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # the workers without a model are the tests'
    main()
