"""scripts/bench/doors/overload: how fast a full service refuses, and how soon a cancelled request is gone."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any, cast

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft.errors import MineDraftError, Overloaded, Unavailable
from minedraft.local import serve
from minedraft.output import ServiceStatus
from minedraft.rpc.health import INFERENCE_SERVICE, wait_serving

_WAITING = 16
_SEATS = 16  # 8 requests per batch, two batches
_CALLERS = 4
_FIRST_TOKENS = 100
_LONG = SamplingParams(max_new_tokens=1500, ignore_eos=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--refusals", default=400, show_default=True, type=click.IntRange(10), help="Calls to a full service.")
@click.option("--cancels", default=40, show_default=True, type=click.IntRange(5), help="Requests that are cancelled.")
@click.option("--restarts", default=3, show_default=True, type=click.IntRange(1), help="Restarts of the service.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(refusals: int, cancels: int, restarts: int, json_path: Path | None) -> None:
    """Measure what a client of the default pair sees when the service is full, when it cancels, and after a restart.

    Times are wall-clock times of a client on the same machine, whose cores the models take.

    \b
    Examples:
      scripts/bench/doors/overload
      scripts/bench/doors/overload --refusals 1000 --json overload.json
    """
    figures = {"machine": machine_facts()} | asyncio.run(_measure(refusals, cancels, restarts))
    Console().print_json(data=figures)
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=2) + "\n")


async def _measure(num_refusals: int, num_cancels: int, num_restarts: int) -> dict[str, Any]:
    async with serve(mode="minedraft", draft_len=2, max_waiting=_WAITING, max_batch_size=_SEATS // 2) as client:
        figures: dict[str, Any] = {"overload": await _overload(client, num_refusals)}
        figures["cancel"] = await _cancel(client, num_cancels)
    with tempfile.TemporaryDirectory() as folder:
        address = f"unix:{folder}/m.sock"
        async with AsyncClient(address) as client:
            figures["reconnect_s"] = [await _reconnect(client, address) for _ in range(num_restarts)]
    return figures


async def _overload(client: AsyncClient, num_refusals: int) -> dict[str, Any]:
    """Fill the service, and time refusals of `_CALLERS` callers, and the status and health meanwhile."""
    async with _running(client, _SEATS + _WAITING):
        before = await client.status()
        refused_s: list[float] = []
        hints_s: list[float] = []

        async def call() -> None:
            while len(refused_s) < num_refusals:
                start_s = time.perf_counter()
                try:
                    await client.complete("Hello", SamplingParams(max_new_tokens=4))
                except Overloaded as error:
                    refused_s.append(time.perf_counter() - start_s)
                    hints_s.append(error.retry_after_s or 0.0)

        checks = asyncio.create_task(_checks(client))
        await asyncio.gather(*(call() for _ in range(_CALLERS)))
        checks.cancel()
        with suppress(asyncio.CancelledError):
            await checks
        after = await client.status()
    return {
        "refused_ms": _summary(refused_s),
        "hint_s": {"least": min(hints_s), "most": max(hints_s)},
        "health_and_status_ms": _summary(_checks_s),
        "tokens_meanwhile": after.output_tokens - before.output_tokens,
        "live_calls": _SEATS + _WAITING,
    }


_checks_s: list[float] = []


async def _checks(client: AsyncClient) -> None:
    while True:
        for check in (client.status, lambda: wait_serving(client.address, INFERENCE_SERVICE)):
            start_s = time.perf_counter()
            await check()
            _checks_s.append(time.perf_counter() - start_s)
        await asyncio.sleep(0.05)


async def _cancel(client: AsyncClient, num_cancels: int) -> dict[str, Any]:
    """Cancel requests after their first token, and wait until the KV of both workers is free."""
    ends_s: list[float] = []
    rounds: list[int] = []
    await _free(client)
    for _ in range(num_cancels):
        async with aclosing(cast(Any, client.generate("Once upon a time", _LONG))) as stream:
            await anext(stream)
            before = await client.status()
            start_s = time.perf_counter()
        status = await _free(client)
        ends_s.append(time.perf_counter() - start_s)
        rounds.append(status.steps - before.steps)
    step_ms = status.step_ms
    return {"free_ms": _summary(ends_s), "rounds": {"median": median(rounds), "most": max(rounds)}, "step_ms": step_ms}


async def _free(client: AsyncClient) -> ServiceStatus:
    """Return the status once all KV of both workers is free."""
    while True:
        status = await client.status()
        if all(worker.num_free_blocks == worker.num_blocks for worker in status.workers):
            return status


async def _reconnect(client: AsyncClient, address: str) -> float:
    """Return the seconds from the moment when the new service accepts connections until its answer to a client of
    the service before."""
    async with serve(listen=address):
        await client.status()
    with suppress(MineDraftError):
        await client.status()
    back = asyncio.create_task(_answered_s(client))
    accepts = asyncio.create_task(_accepts_s(address.removeprefix("unix:")))
    async with serve(listen=address):
        return await back - await accepts


async def _answered_s(client: AsyncClient) -> float:
    while True:
        try:
            await client.status()
        except Unavailable:
            await asyncio.sleep(0.005)
        else:
            return time.monotonic()


async def _accepts_s(path: str) -> float:
    while True:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(0.005)
        else:
            writer.close()
            return time.monotonic()


@asynccontextmanager
async def _running(client: AsyncClient, num_calls: int) -> AsyncIterator[None]:
    """Keep so many calls live while the block runs."""
    calls = [asyncio.create_task(client.complete("Once upon a time", _LONG)) for _ in range(num_calls)]
    try:
        status = await client.status()
        most = status.output_tokens + _FIRST_TOKENS  # the first rounds of a new batch are slow
        while status.num_running + status.num_waiting < num_calls or status.output_tokens < most:
            await asyncio.sleep(0.05)
            status = await client.status()
        yield
    finally:
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


def _summary(times_s: list[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    cuts = quantiles(times_s, n=100, method="inclusive")
    return {
        name: round(value * 1000, 2) for name, value in (("p50", cuts[49]), ("p99", cuts[98]), ("max", max(times_s)))
    }


if __name__ == "__main__":
    run(main, "overload")
