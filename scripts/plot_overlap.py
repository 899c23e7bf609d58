"""Draws what drafter and verifier do over time, taking turns (sd) and overlapped (minedraft).

    .venv/bin/python scripts/plot_overlap.py --target DIR --draft DIR --out scripts/results/overlap

Runs the real workers as processes on cpu:0 and cpu:1, drives them with the product's pipeline, and
notes when each command was executed. Writes OUT.svg and OUT.json.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import click

from minedraft.address import Address
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.core.request import NewRequest
from minedraft.core.scheduler import SchedulerLimits
from minedraft.engine.pipeline import Pipeline
from minedraft.engine.workers import Drafter, Verifier
from minedraft.errors import MineDraftError
from minedraft.output import RequestUsage
from minedraft.rpc.health import LIVE, wait_serving
from minedraft.rpc.worker_link import GrpcDrafter, GrpcVerifier
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import (
    DraftCommand,
    DraftReply,
    FinishReason,
    Mode,
    RoundId,
    Timing,
    TokenLogprobs,
    VerifyCommand,
    VerifyReply,
)

COLOURS = {"A": "#2b6cb0", "B": "#dd6b20"}
SHOWN_STEPS = 6


@dataclass(frozen=True, slots=True)
class Bar:
    """One command on one device; seconds since the run began."""

    role: str
    batch: str
    start_s: float
    end_s: float


class Recorder:
    """Stands before a worker's link and notes what was executed when."""

    def __init__(self, role: str, link: Drafter | Verifier, bars: list[Bar]) -> None:
        self.info = link.info
        self._role, self._link, self._bars = role, link, bars

    async def draft(self, command: DraftCommand) -> DraftReply:
        reply = await cast(Drafter, self._link).draft(command)
        self._note(command.round, reply.timing)
        return reply

    async def prefill(self, command: DraftCommand) -> DraftReply:
        return await cast(Drafter, self._link).prefill(command)

    async def verify(self, command: VerifyCommand) -> VerifyReply:
        reply = await cast(Verifier, self._link).verify(command)
        self._note(command.round, reply.timing)
        return reply

    async def release(self, request_ids: Sequence[int]) -> int:
        return await self._link.release(request_ids)

    def _note(self, round_id: RoundId, timing: Timing) -> None:
        end_s = time.monotonic()
        self._bars.append(Bar(self._role, round_id.batch.name, end_s - timing.busy_ns / 1e9, end_s))


class Ignore:
    """A sink that only waits for the end."""

    def __init__(self) -> None:
        self.done = asyncio.Event()

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...]) -> bool:
        return False

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        self.done.set()


@click.command()
@click.option("--target", required=True, type=click.Path(path_type=Path, exists=True), help="Target model folder.")
@click.option("--draft", required=True, type=click.Path(path_type=Path, exists=True), help="Draft model folder.")
@click.option("-m", "--max-batch-size", default=4, show_default=True, help="Requests a batch.")
@click.option("-k", "--draft-len", default=3, show_default=True, help="Drafts a round.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Path without ending.")
def main(target: Path, draft: Path, max_batch_size: int, draft_len: int, out: Path) -> None:
    """Draw the two batches overlapping, from a real run."""
    runs = asyncio.run(_record(target, draft, max_batch_size, draft_len))
    content = {
        "machine": machine_facts(),
        "target": target.name,
        "draft": draft.name,
        "max_batch_size": max_batch_size,
        "draft_len": draft_len,
        "runs": {mode: [asdict(bar) for bar in bars] for mode, bars in runs.items()},
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _draw(runs, f"{target.name} with {draft.name}, m = {max_batch_size}, k = {draft_len}", out.with_suffix(".svg"))


async def _record(target: Path, draft: Path, max_batch_size: int, draft_len: int) -> dict[str, list[Bar]]:
    tokenizer = Tokenizer.load(target)
    prompts = [
        tokenizer.encode_chat([{"role": "user", "content": p.text}]) for p in load_prompts(None)[: 2 * max_batch_size]
    ]
    runs: dict[str, list[Bar]] = {}
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        addresses = {role: Address.parse(f"unix:{folder}/{role}.sock") for role in ("drafter", "verifier")}
        with (
            _worker("drafter", draft, "cpu:0", addresses["drafter"]),
            _worker("verifier", target, "cpu:1", addresses["verifier"]),
        ):
            async with AsyncExitStack() as stack:
                for address in addresses.values():
                    await wait_serving(address, LIVE)
                verifier = await stack.enter_async_context(await GrpcVerifier.connect(addresses["verifier"]))
                drafter = await stack.enter_async_context(
                    await GrpcDrafter.connect(addresses["drafter"], target_vocab_size=verifier.info.vocab_size)
                )
                bars: list[Bar] = []
                seats: tuple[Any, Any] = Recorder("verifier", verifier, bars), Recorder("drafter", drafter, bars)
                pipeline = await stack.enter_async_context(Pipeline(SchedulerLimits(), *seats))
                for mode in (Mode.SD, Mode.MINEDRAFT):
                    bars.clear()
                    pipeline.reconfigure(SchedulerLimits(mode, max_batch_size, draft_len))
                    # As many as have a seat: a newcomer's prompt would stretch a round in the middle.
                    seated = prompts[: max_batch_size * mode.num_batches]
                    sinks = [Ignore() for _ in seated]
                    for prompt, sink in zip(seated, sinks, strict=True):
                        params = SamplingParams(max_new_tokens=48, ignore_eos=True)
                        pipeline.submit(NewRequest(tuple(prompt), params), sink)
                    await asyncio.gather(*(sink.done.wait() for sink in sinks))
                    runs[mode.value] = _middle(bars)
    return runs


def _middle(bars: list[Bar]) -> list[Bar]:
    """Some steps from the middle of the run, where all batches are full; time starts at zero."""
    verifies = [bar for bar in bars if bar.role == "verifier"]
    first = len(verifies) // 3
    begin_s, end_s = verifies[first].end_s, verifies[first + SHOWN_STEPS].end_s
    shown = [bar for bar in bars if bar.end_s > begin_s and bar.start_s < end_s]
    return [Bar(b.role, b.batch, max(b.start_s, begin_s) - begin_s, min(b.end_s, end_s) - begin_s) for b in shown]


def _draw(runs: dict[str, list[Bar]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    longest_s = max(bar.end_s for bars in runs.values() for bar in bars)
    figure, axes = pyplot.subplots(len(runs), 1, figsize=(9, 3.6), sharex=True)
    names = {"sd": "sd: taking turns", "minedraft": "minedraft: overlapped"}
    for axis, (mode, bars) in zip(axes, runs.items(), strict=True):
        for bar in bars:
            row = 0 if bar.role == "verifier" else 1
            width_ms = (bar.end_s - bar.start_s) * 1e3
            axis.barh(row, width_ms, left=bar.start_s * 1e3, color=COLOURS[bar.batch], edgecolor="white", height=0.8)
            if bar.end_s - bar.start_s > longest_s / 40:
                axis.text(bar.start_s * 1e3 + width_ms / 2, row, bar.batch, color="white", ha="center", va="center")
        axis.set_yticks([0, 1], ["verifier", "drafter"])
        axis.set_title(f"{names[mode]}, {SHOWN_STEPS} verify rounds", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"milliseconds ({title})")
    figure.tight_layout()
    figure.savefig(path)


@contextmanager
def _worker(role: str, model: Path, device: str, address: Address) -> Iterator[None]:
    argv = [sys.executable, "-m", "minedraft_workers.main", role, "--model", str(model)]
    with subprocess.Popen([*argv, "--device", device, "--listen", str(address)]) as process:
        try:
            yield
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
