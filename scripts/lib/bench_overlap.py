"""scripts/bench/overlap: draws what drafter and verifier do over time."""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft.observe.timeline import Bar
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import Mode, Role
from scripts.lib.driving import driven
from scripts.lib.processes import workers

COLOURS = {"A": "#2b6cb0", "B": "#dd6b20"}
SHOWN_STEPS = 6


@dataclass(frozen=True, slots=True)
class Stroke:
    """A bar of the picture; times in seconds from its left edge."""

    role: str
    batch: str
    start_s: float
    end_s: float


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", required=True, type=click.Path(path_type=Path, exists=True), help="Target model folder.")
@click.option("--draft", required=True, type=click.Path(path_type=Path, exists=True), help="Draft model folder.")
@click.option(
    "-m", "--max-batch-size", default=4, show_default=True, type=click.IntRange(1), help="Requests per batch."
)
@click.option("-k", "--draft-len", default=3, show_default=True, type=click.IntRange(1), help="Drafts per round.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Path of the output, without its ending.")
def main(target: Path, draft: Path, max_batch_size: int, draft_len: int, out: Path) -> None:
    """Draw a real run of drafter and verifier, taking turns (sd) and overlapping (minedraft).

    Runs the drafter on cpu:0 and the verifier on cpu:1, drives them with the product's pipeline, and
    records when each command runs. Writes OUT.svg and OUT.json. `minedraft models --json` shows the
    model folders.

    \b
    Examples:
      scripts/bench/overlap --target DIR --draft DIR --out overlap
      scripts/bench/overlap --target DIR --draft DIR -m 8 -k 2 --out overlap
    """
    runs = asyncio.run(_record(target, draft, max_batch_size, draft_len))
    content = {
        "machine": machine_facts(),
        "target": target.name,
        "draft": draft.name,
        "max_batch_size": max_batch_size,
        "draft_len": draft_len,
        "runs": {mode: [asdict(stroke) for stroke in strokes] for mode, strokes in runs.items()},
    }
    out.with_suffix(".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _draw(runs, f"{target.name} with {draft.name}, m = {max_batch_size}, k = {draft_len}", out.with_suffix(".svg"))


async def _record(target: Path, draft: Path, max_batch_size: int, draft_len: int) -> dict[str, list[Stroke]]:
    tokenizer = Tokenizer.load(target)
    chosen = load_prompts(None)[: 2 * max_batch_size]
    prompts = [tokenizer.encode_chat([{"role": "user", "content": prompt.text}]) for prompt in chosen]
    params = SamplingParams(max_new_tokens=48, ignore_eos=True)
    runs: dict[str, list[Stroke]] = {}
    verifier, drafter = ("--model", str(target), "--device", "cpu:1"), ("--model", str(draft), "--device", "cpu:0")
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        async with (
            workers(Path(folder), "minedraft_workers.main", verifier=verifier, drafter=drafter) as addresses,
            driven(*addresses) as rounds,
        ):
            for mode in (Mode.SD, Mode.MINEDRAFT):
                rounds.configure(mode, max_batch_size, draft_len)
                # As many prompts as seats: the prompt of a new request would lengthen a round in the middle.
                await rounds.answer(prompts[: max_batch_size * mode.num_batches], params)
                runs[mode.value] = _middle([bar for bar in rounds.timeline.bars if not bar.is_prefill])
    return runs


def _middle(bars: Sequence[Bar]) -> list[Stroke]:
    """Return some steps from the middle of the run, where all batches are full; time starts at zero."""
    verifies = [bar for bar in bars if bar.role is Role.VERIFIER]
    first = len(verifies) // 3
    begin_s, end_s = verifies[first].end_s, verifies[first + SHOWN_STEPS].end_s
    return [
        Stroke(bar.role.value, bar.batch.name, max(bar.start_s, begin_s) - begin_s, min(bar.end_s, end_s) - begin_s)
        for bar in bars
        if bar.end_s > begin_s and bar.start_s < end_s
    ]


def _draw(runs: dict[str, list[Stroke]], title: str, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    longest_s = max(stroke.end_s for strokes in runs.values() for stroke in strokes)
    figure, axes = pyplot.subplots(len(runs), 1, figsize=(9, 3.6), sharex=True)
    names = {"sd": "sd: taking turns", "minedraft": "minedraft: overlapped"}
    for axis, (mode, strokes) in zip(axes, runs.items(), strict=True):
        for stroke in strokes:
            row, left_ms = 0 if stroke.role == "verifier" else 1, stroke.start_s * 1e3
            width_ms = (stroke.end_s - stroke.start_s) * 1e3
            axis.barh(row, width_ms, left=left_ms, color=COLOURS[stroke.batch], edgecolor="white", height=0.8)
            if stroke.end_s - stroke.start_s > longest_s / 40:
                axis.text(left_ms + width_ms / 2, row, stroke.batch, color="white", ha="center", va="center")
        axis.set_yticks([0, 1], ["verifier", "drafter"])
        axis.set_title(f"{names[mode]}, {SHOWN_STEPS} verify rounds", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel(f"milliseconds ({title})")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    run(main, "scripts/bench/overlap")
