"""scripts/bench/pearl: compares mode pearl with sd and ar for few requests in flight."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.loan import AsyncLoan
from minedraft.local import LocalService, serve
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class Way:
    """One row of the table: a mode with drafts per round (k) and branches. is_wide: the target has both cores."""

    mode: Mode
    draft_len: int = 0
    branches: int = 0
    is_wide: bool = False

    @property
    def label(self) -> str:
        if self.mode is Mode.AR:
            return "ar, both cores" if self.is_wide else "ar, one core"
        branches = f", {self.branches} branch{'es' if self.branches > 1 else ''}" if self.branches else ""
        return f"{self.mode.value} k={self.draft_len}{branches}"


@dataclass(slots=True)
class Runs:
    """The measurements of one row: medians of rounds in milliseconds, one entry for each run.

    hit_rate: share of the runs ahead of a request whose drafts the next round used.
    """

    tokens_per_s: list[float] = field(default_factory=list)
    vsr: list[float] = field(default_factory=list)
    hit_rate: list[float] = field(default_factory=list)
    draft_ms: list[float] = field(default_factory=list)
    verify_ms: list[float] = field(default_factory=list)
    step_ms: list[float] = field(default_factory=list)

    def medians(self) -> dict[str, float]:
        return {name: median(values) for name, values in asdict(self).items()}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", required=True, type=click.Path(path_type=Path, exists=True), help="Target model folder.")
@click.option("--draft", required=True, type=click.Path(path_type=Path, exists=True), help="Draft model folder.")
@click.option("--in-flight", default="1,2", show_default=True, metavar="N,...", help="Requests at a time.")
@click.option("--draft-lens", default="1,2", show_default=True, metavar="K,...", help="Drafts per round.")
@click.option("--branches", default="1,4", show_default=True, metavar="N,...", help="Branches in mode pearl.")
@click.option("--num-prompts", default=4, show_default=True, type=click.IntRange(1, 24), help="Answers per run.")
@click.option("--max-new-tokens", default=64, show_default=True, help="Tokens per answer, exactly.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs per row, interleaved.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Add the figures to this file."
)
def main(
    target: Path,
    draft: Path,
    in_flight: str,
    draft_lens: str,
    branches: str,
    num_prompts: int,
    max_new_tokens: int,
    repeats: int,
    json_path: Path | None,
) -> None:
    """Compare pearl, with one branch as in its paper and with several, with sd and ar: greedy, the same prompts, on
    the same processes, runs interleaved. Tokens/s are of decoding, first tokens and prompts not in it.

    The two devices are the first two cores. `ar, both cores` is a service of its own,
    whose verifier takes the drafter's core in mode ar.

    \b
    Examples:
      scripts/bench/pearl --target DIR --draft DIR
      scripts/bench/pearl --target DIR --draft DIR --in-flight 1 --branches 1,4,8 --json pearl.json
    """
    lens, counts = _numbers(draft_lens), _numbers(branches)
    ways = [Way(Mode.AR, is_wide=True), Way(Mode.AR), *[Way(Mode.SD, k) for k in lens]]
    ways += [Way(Mode.PEARL, k, count) for k in lens for count in counts]
    result = asyncio.run(_compare(target, draft, ways, _numbers(in_flight), num_prompts, max_new_tokens, repeats))
    if json_path is not None:
        known = json.loads(json_path.read_text(encoding="utf-8")) if json_path.exists() else []
        others = [entry for entry in known if entry["target"] != result["target"]]
        json_path.write_text(json.dumps([*others, result], indent=1) + "\n", encoding="utf-8")


async def _compare(
    target: Path,
    draft: Path,
    ways: Sequence[Way],
    sizes: Sequence[int],
    num_prompts: int,
    max_new_tokens: int,
    repeats: int,
) -> dict[str, Any]:
    prompts = [prompt.text for prompt in load_prompts(None)[:num_prompts]]
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    common = {"max_batch_size": max(sizes), "allow_configure": True, "mode": "sd", "lookup": False}
    tables = []
    async with AsyncExitStack() as stack:
        # One of the two rests while the other one answers; only in the second one does ar take the drafter's core.
        pair = await stack.enter_async_context(_service(target, draft, keep_cores=True, **common))
        wide = await stack.enter_async_context(_service(target, draft, **common))
        loans = {pair: await stack.enter_async_context(pair.borrow())}
        loans[wide] = await stack.enter_async_context(wide.borrow())
        for size in sizes:
            rows = {way: Runs() for way in ways}
            for repeat in range(repeats):
                for index in range(len(ways)):
                    way = ways[(index + repeat) % len(ways)]
                    client = wide if way.is_wide else pair
                    await _measure(client, loans[client], way, size, prompts, params, rows[way])
            for way, runs in rows.items():
                _show(way, size, runs)
            tables.append({"in_flight": size, "rows": [_to_json(way, runs) for way, runs in rows.items()]})
    facts = {"machine": machine_facts(), "target": target.name, "draft": draft.name, "repeats": repeats}
    return {**facts, "num_prompts": num_prompts, "max_new_tokens": max_new_tokens, "tables": tables}


def _service(target: Path, draft: Path, **settings: object) -> LocalService:
    return serve(target, draft, on_line=say, environment=None, **settings)


async def _measure(
    client: AsyncClient,
    loan: AsyncLoan,
    way: Way,
    size: int,
    prompts: Sequence[str],
    params: SamplingParams,
    runs: Runs,
) -> None:
    """Answer all prompts, `size` at a time, and add what was measured to `runs`."""
    await loan.configure(way.mode, size, way.draft_len, way.branches)
    before = await client.status()
    decoding_s, num_tokens = 0.0, 0
    for start in range(0, len(prompts), size):
        started_s = time.monotonic()
        chats = [[{"role": "user", "content": text}] for text in prompts[start : start + size]]
        outputs = await asyncio.gather(*[client.complete(chat, params) for chat in chats])
        usages = [output.usage for output in outputs if output.usage is not None]
        decoding_s += time.monotonic() - started_s - max(usage.first_token_s for usage in usages)
        num_tokens += sum(len(output.token_ids) - 1 for output in outputs)
    status = await client.status()
    runs.tokens_per_s.append(num_tokens / decoding_s)
    runs.vsr.append(status.vsr)
    runs.hit_rate.append((status.used_runs - before.used_runs) / max(status.runs_ahead - before.runs_ahead, 1))
    runs.draft_ms.append(status.draft_ms)
    runs.verify_ms.append(status.verify_ms)
    runs.step_ms.append(status.step_ms)


def _show(way: Way, size: int, runs: Runs) -> None:
    figures = runs.medians()
    Console().print(
        f"{size} in flight, {way.label:22} {figures['tokens_per_s']:7.1f} tokens/s  VSR {figures['vsr']:4.0%}  "
        f"hits {figures['hit_rate']:4.0%}  draft {figures['draft_ms']:6.1f}  verify {figures['verify_ms']:6.1f}  "
        f"step {figures['step_ms']:6.1f} ms"
    )


def _to_json(way: Way, runs: Runs) -> dict[str, Any]:
    return {"label": way.label, **asdict(way), "median": runs.medians(), "runs": asdict(runs)}


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers, separated by commas") from None


if __name__ == "__main__":
    run(main, "scripts/bench/pearl")
