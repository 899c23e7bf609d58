"""scripts/bench/channels: measures what a step costs by each carrier of tensors, with workers that compute nothing."""

from __future__ import annotations

import asyncio
import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from minedraft.address import Address
from minedraft.bench.report import machine_facts
from minedraft.carriers import AUTO_CARRIER, Carrier
from minedraft.cli.console import run
from minedraft.engine.pairing import LEAST_BYTES, PairingConnector
from minedraft.engine.workers import Drafter, Verifier
from minedraft.messages import DraftCommand, DraftSpan, Features, Proposal, VerifyCommand, VerifySpan
from minedraft.rpc.connector import GrpcConnector
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, RoundId, SequenceSpec
from scripts.lib.processes import workers

CHANNEL_WORKER = "scripts.lib.channels.worker"
CHOICES = {"inline": Carrier.INLINE, "shm": Carrier.SHM, "dist": Carrier.DIST, AUTO_CARRIER: Carrier.SHM}
DRAFT_LEN = 4
NUM_WARM = 5


@dataclass(frozen=True)
class Load:
    """What travels in a step: `width` entries of q and `size` bfloat16 numbers of features for each draft and token of
    each request."""

    name: str
    num_requests: int
    width: int = 0
    size: int = 0

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors of a step."""
        return self.num_requests * (DRAFT_LEN * self.width * 8 + (DRAFT_LEN + 1) * self.size * 2)


LOADS = (
    Load("ids", 16),
    Load("q, top 32", 16, width=32),
    Load("q, top 128", 16, width=128),
    Load("q, top 1024", 16, width=1024),
    Load("features of 1728", 1, size=1728),
    Load("features of 1728", 16, size=1728),
    Load("features of 12288", 16, size=12288),
)


class _Rounds:
    """Plays the scheduler for one batch of requests, all of whose drafts are accepted."""

    def __init__(self, verifier: Verifier, drafter: Drafter, load: Load) -> None:
        self._verifier, self._drafter, self._load = verifier, drafter, load
        acceptance = Acceptance.REJECTION if load.width else Acceptance.GREEDY
        params = SamplingParams(temperature=1.0 if load.width else 0.0, top_k=load.width)
        self._spec: SequenceSpec | None = SequenceSpec(params, 1, load.size, acceptance)
        self._len = 1
        self._number = 0
        self._features: dict[int, tuple[Features, ...]] = {}

    async def step(self) -> None:
        """Draft and verify once."""
        self._number += 1
        before = self._len - DRAFT_LEN - 1 if self._number > 1 else 0
        proposals = (await self._drafter.draft(self._draft_command(before))).proposals
        reply = await self._verifier.verify(self._verify_command(before, proposals))
        self._spec = None
        self._len += DRAFT_LEN + 1
        self._features = {row.request_id: (row.features,) for row in reply.verdicts if row.features is not None}

    def _draft_command(self, before: int) -> DraftCommand:
        tokens = (7,) * (self._len - before)
        spans = [
            DraftSpan(id_, before, tokens, DRAFT_LEN, self._spec, self._features.get(id_, ()))
            for id_ in range(self._load.num_requests)
        ]
        return DraftCommand(RoundId(self._drafter.info.epoch, Batch.A, self._number), tuple(spans))

    def _verify_command(self, before: int, proposals: tuple[Proposal, ...]) -> VerifyCommand:
        prefix_len = self._len - 1
        spans = [
            VerifySpan(
                row.request_id,
                prefix_len,
                (7,),
                row.tokens,
                row.q,
                spec=self._spec,
                wants_features=bool(self._load.size),
            )
            for row in proposals
        ]
        layers = (0,) if self._load.size else ()
        round_id = RoundId(self._verifier.info.epoch, Batch.A, self._number)
        return VerifyCommand(round_id, tuple(spans), (), layers)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--steps", default=60, show_default=True, type=click.IntRange(10), help="Steps of one measurement.")
@click.option("--repeats", default=5, show_default=True, type=click.IntRange(1), help="Measurements of each kind.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures to this file."
)
def main(steps: int, repeats: int, json_path: Path | None) -> None:
    """Measure bytes and microseconds of a step by each carrier of tensors.

    Two workers that compute nothing, as processes, take turns over the product's links: the drafter sends token ids
    and q, the verifier ids and features, and both read what they get. Carriers alternate; figures are medians.

    \b
    Examples:
      scripts/bench/channels
      scripts/bench/channels --repeats 3 --json channels.json
    """
    console = Console()
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        rows = asyncio.run(_measure(Path(folder), steps, repeats))
    for row in rows:
        figures = ", ".join(
            f"{name} {figure['step_us']:.0f} us {figure['wire_bytes'] / 1e3:.1f} KB"
            for name, figure in row["carriers"].items()
        )
        console.print(f"{row['load']}, {row['num_requests']} requests, {row['tensor_bytes'] / 1e3:.1f} KB: {figures}")
    if json_path is not None:
        content = {"machine": machine_facts(), "draft_len": DRAFT_LEN, "auto_least_bytes": LEAST_BYTES, "steps": rows}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


async def _measure(folder: Path, num_steps: int, repeats: int) -> list[dict[str, Any]]:
    figures: dict[tuple[int, str], list[tuple[float, float]]] = {}
    async with workers(folder, CHANNEL_WORKER) as addresses:
        for repeat, (index, load) in product(range(repeats), enumerate(LOADS)):
            for place in range(len(CHOICES)):  # each is the first one in turn
                choice = list(CHOICES)[(repeat + place) % len(CHOICES)]
                figure = await _measure_once(*addresses, choice, load, num_steps)
                figures.setdefault((index, choice), []).append(figure)
    return [
        {
            "load": load.name,
            "num_requests": load.num_requests,
            "tensor_bytes": load.tensor_bytes,
            "carriers": {
                choice: {
                    "step_us": statistics.median(step_us for step_us, _ in figures[index, choice]),
                    "wire_bytes": statistics.median(wire_bytes for _, wire_bytes in figures[index, choice]),
                }
                for choice in CHOICES
            },
        }
        for index, load in enumerate(LOADS)
    ]


async def _measure_once(
    verifier_at: Address, drafter_at: Address, choice: str, load: Load, num_steps: int
) -> tuple[float, float]:
    """Return the median microseconds, and the bytes over both links, of a step."""
    connector = PairingConnector(GrpcConnector(verifier_at, drafter_at), choice)
    verifier = await connector.connect_verifier()
    drafter = await connector.connect_drafter(verifier.info)
    assert drafter is not None, "it has an address"
    try:
        assert verifier.stats.carrier is CHOICES[choice], f"the workers cannot be joined by {choice}"
        rounds = _Rounds(verifier, drafter, load)
        for _ in range(NUM_WARM):
            await rounds.step()
        before = verifier.stats.wire_bytes + drafter.stats.wire_bytes
        times = []
        for _ in range(num_steps):
            started_ns = time.perf_counter_ns()
            await rounds.step()
            times.append((time.perf_counter_ns() - started_ns) / 1e3)
        wire_bytes = verifier.stats.wire_bytes + drafter.stats.wire_bytes - before
        assert verifier.stats.carrier is CHOICES[choice], f"{choice} failed"
        return statistics.median(times), wire_bytes / num_steps
    finally:
        await drafter.close()
        await verifier.close()


if __name__ == "__main__":
    run(main, "scripts/bench/channels")
