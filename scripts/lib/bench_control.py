"""scripts/bench/control: measures the cost of control, with workers whose forward takes no time."""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from tokenizers import Tokenizer, models

from minedraft import AsyncClient, SamplingParams
from minedraft.address import Address
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft.rpc.health import INFERENCE_SERVICE
from minedraft.types import Mode
from scripts.lib.driving import driven
from scripts.lib.processes import serving, workers

NULL_WORKER = "scripts.lib.null_worker"
SIZES = ((Mode.MINEDRAFT, 8), (Mode.MINEDRAFT, 64), (Mode.SD, 8), (Mode.AR, 16), (Mode.AR, 64), (Mode.AR, 128))
DRAFT_LEN = 5
NUM_STEPS = 750
CHUNK = 500
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--requests", default=10_000, show_default=True, type=click.IntRange(100), help="Requests of the memory part."
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures to this file."
)
def main(requests: int, json_path: Path | None) -> None:
    """Measure the control overhead of a step and the scheduler's memory.

    First, the pipeline drives two null workers over real gRPC, so that a step (one round of one batch) is
    control alone. Then the real scheduler process, also with null workers, answers many requests while its
    resident memory is sampled. No model is needed.

    \b
    Examples:
      scripts/bench/control
      scripts/bench/control --requests 1000 --json control.json
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        steps = [asyncio.run(_measure_steps(Path(folder), mode, m)) for mode, m in SIZES]
        for row in steps:
            console.print(
                f"{row['mode']}: {row['steps_per_s']:.0f} steps/s, {row['step_ms']:.2f} ms per step, "
                f"{row['wire_bytes_per_step']:.0f} bytes per step ({row['num_in_flight']} requests, k={DRAFT_LEN})"
            )
        memory = asyncio.run(_measure_memory(Path(folder), requests, console))
    peak = max(sample["rss_mb"] for sample in memory)
    console.print(f"scheduler memory: {memory[0]['rss_mb']:.0f} MB at the start, {peak:.0f} MB at the peak")
    if json_path is not None:
        content = {"machine": machine_facts(), "steps": steps, "memory": memory}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


async def _measure_steps(folder: Path, mode: Mode, max_batch_size: int) -> dict[str, Any]:
    """Return the figures of steps with a greedy request in every seat."""
    in_flight = max_batch_size * mode.num_batches
    num_tokens = NUM_STEPS * (1 if mode is Mode.AR else 1 + (DRAFT_LEN + 1) // 2)
    async with workers(folder, NULL_WORKER) as addresses, driven(*addresses) as rounds:
        rounds.configure(mode, max_batch_size, DRAFT_LEN, max_model_len=1 << 19)
        elapsed_s = await rounds.answer([range(20)] * in_flight, SamplingParams(max_new_tokens=num_tokens))
        return {
            "mode": mode.value,
            "num_in_flight": in_flight,
            "steps_per_s": rounds.num_steps / elapsed_s,
            "step_ms": elapsed_s / rounds.num_steps * 1e3,
            "wire_bytes_per_step": rounds.wire_bytes / rounds.num_steps,
            "summary": rounds.summary(),
        }


async def _measure_memory(folder: Path, num_requests: int, console: Console) -> list[dict[str, float]]:
    """Return samples of the scheduler process's resident memory while it answers `num_requests` requests."""
    model, listen = folder / "model", f"unix:{folder}/m.sock"
    write_letters(model)
    flags = ("--tokenizer", str(model))
    async with workers(folder, NULL_WORKER, verifier=flags, drafter=flags) as (verifier_at, drafter_at):
        argv = ["--target", str(model), "--listen", listen]
        argv += ["--target-address", str(verifier_at), "--draft-address", str(drafter_at)]
        async with (
            serving(Address.parse(listen), INFERENCE_SERVICE, "minedraft.server", *argv) as server,
            AsyncClient(listen) as client,
        ):
            samples = [{"num_requests": 0.0, "rss_mb": _rss_mb(server.pid)}]
            rng = random.Random(0)
            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("requests", total=num_requests)
                for done in range(0, num_requests, CHUNK):
                    count = min(CHUNK, num_requests - done)
                    await _send(client, rng, count)
                    progress.update(task, completed=done + count)
                    samples.append({"num_requests": done + count, "rss_mb": _rss_mb(server.pid)})
            return samples


async def _send(client: AsyncClient, rng: random.Random, count: int) -> None:
    gate = asyncio.Semaphore(64)

    async def one() -> None:
        prompt = [rng.randrange(len(LETTERS)) for _ in range(rng.randint(1, 40))]
        async with gate:
            await client.complete(prompt, SamplingParams(max_new_tokens=16))

    await asyncio.gather(*(one() for _ in range(count)))


def write_letters(folder: Path) -> None:
    """Write the smallest tokenizer that a scheduler accepts: one token per letter."""
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(LETTERS)}, []))
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def _rss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmRSS line")


if __name__ == "__main__":
    run(main, "scripts/bench/control")
