"""`minedraft simulate`: what a pair of models would give on devices that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from minedraft.bench.measured import fit_rows, read_rows
from minedraft.cli.console import parse_ints, print_json
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.settings.flags import UserPath
from minedraft.sim.acceptance import same
from minedraft.sim.gpus import COMPUTE_SHARE, GPUS, MEMORY_SHARE
from minedraft.sim.planning import LAYER_S, Placed, gpu_machine, measured_machine, parse_gpus
from minedraft.sim.service import Machine
from minedraft.sim.shapes import SHAPES, find_shape
from minedraft.sim.simulation import Load, SimulatedRun, endless_limits, run_simulation
from minedraft.types import MAX_BATCH_SIZE, Mode

_EPILOG = f"""
\b
Examples:
  minedraft simulate --target llama-3.1-8b --draft llama-3.2-1b
  minedraft simulate --target qwen3-32b --draft qwen3-1.7b --target-gpu a100x4
      --draft-gpu a100 --in-flight 16,32,64 -k 2,3,4 --acceptance 0.75
  minedraft simulate --measured result.json --in-flight 8 --output-len 64

Models: {", ".join(SHAPES)}, or the folder of one.

GPUs: {", ".join(GPUS)}.
"""
_LOADS = "8,16,32"
_POSITIVE = click.FloatRange(0, min_open=True)


@dataclass(frozen=True, slots=True)
class _Row:
    mode: Mode
    max_batch_size: int
    draft_len: int
    run: SimulatedRun

    @property
    def label(self) -> str:
        return f"{self.mode.value} {'+'.join([str(self.max_batch_size)] * self.mode.num_batches)}"


@click.command(epilog=_EPILOG)
@click.option("--target", metavar="NAME", default=None, help="Target model.")
@click.option("--draft", metavar="NAME", default=None, help="Draft model; without one, only ar is simulated.")
@click.option("--target-gpu", metavar="GPU[xN]", default="h100", show_default=True, help="The target's GPUs.")
@click.option("--draft-gpu", metavar="GPU[xN]", default=None, help="The draft model's; default: one like these.")
@click.option("--measured", metavar="FILE.json", default=None, type=UserPath(), help="A bench result instead of GPUs.")
@click.option("--in-flight", metavar="N,...", default=_LOADS, show_default=True, help="Requests in flight.")
@click.option("-k", "--draft-len", metavar="N,...", default="3", show_default=True, help="Drafts per round.")
@click.option(
    "--acceptance",
    metavar="A",
    default=0.7,
    show_default=True,
    type=click.FloatRange(0, 1),
    help="How likely a draft is accepted once those before it are.",
)
@click.option("--prompt-len", metavar="N", default=256, show_default=True, type=click.IntRange(1), help="In tokens.")
@click.option("--output-len", metavar="N", default=256, show_default=True, type=click.IntRange(1), help="In tokens.")
@click.option("--num-requests", metavar="N", default=None, type=click.IntRange(1), help="[default: 4 for each seat]")
@click.option("--rate", metavar="R", default=None, type=_POSITIVE, help="Arrivals per second; default: all at once.")
@click.option(
    "--launches",
    type=click.Choice(list(LAYER_S)),
    default="graphs",
    show_default=True,
    help="How kernels are launched: by captured graphs, or one by one.",
)
@click.option(
    "--link-ms",
    metavar="MS",
    default=0.1,
    show_default=True,
    type=click.FloatRange(0),
    help="Time of a message from the scheduler to a worker, and of one back.",
)
@click.option(
    "--drafter-dies-every", metavar="S", default=None, type=_POSITIVE, help="Lose the drafter every S seconds, for one."
)
@click.option("--modes", metavar="MODE,...", default="ar,sd,minedraft", show_default=True, help="Modes to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def simulate(**options: Any) -> None:  # noqa: ANN401 (one for each option above)
    """Simulate a service: its own scheduler, in virtual time, on workers that only take as long as a forward would.

    A forward takes the longer of reading (weights, keys and values) and computing, by the GPU's data sheet; with
    --measured, as long as it took there. ar has the target's GPUs only, and no use for the drafter's.
    """
    machine, num_gpus, facts = _machine(options)
    loads = parse_ints("in-flight", options["in_flight"], 2 * MAX_BATCH_SIZE)
    plan = _plan(_modes(options["modes"]), loads, parse_ints("draft-len", options["draft_len"], MAX_DRAFT_LEN))
    plan = [case for case in plan if machine.draft is not None or not case[0].has_drafts]
    rows = []
    as_json = options["as_json"]
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        for mode, size, k in progress.track(plan, description="simulating"):
            rows.append(_Row(mode, size, k, _run(machine, mode, size, k, options)))
    if as_json:
        print_json({"facts": facts, "rows": [_to_json(row, num_gpus) for row in rows]})
        return
    console = Console()
    console.print(_table(rows, num_gpus))
    for line in facts:
        console.print(line, style="italic", highlight=False, markup=False)


def _run(machine: Machine, mode: Mode, size: int, draft_len: int, options: dict[str, Any]) -> SimulatedRun:
    limits = endless_limits(mode, size, draft_len)
    load = Load(
        (options["prompt_len"],),
        (options["output_len"],),
        options["num_requests"] or 4 * size * mode.num_batches,
        options["rate"],
    )
    return run_simulation(machine, limits, load, drafter_dies_every_s=options["drafter_dies_every"])


def _machine(options: dict[str, Any]) -> tuple[Machine, dict[Mode, int], list[str]]:
    """Return the machine, the number of GPUs that each mode uses, and what was assumed, in words."""
    acceptance, link_s = options["acceptance"], options["link_ms"] / 1e3
    if options["measured"] is not None:
        costs = fit_rows(read_rows(options["measured"]))
        fact = f"Costs as fitted to {options['measured'].name}; acceptance {acceptance:g}."
        return measured_machine(costs, same(acceptance)), {}, [fact]
    if options["target"] is None:
        raise ConfigError("target", None, "must be given, or --measured")
    gpu, num_gpus = parse_gpus("target-gpu", options["target_gpu"])
    target, draft = Placed(find_shape("target", options["target"]), gpu, num_gpus), None
    if options["draft"] is not None:
        draft_gpu, num_draft = parse_gpus("draft-gpu", options["draft_gpu"] or gpu.name)
        draft = Placed(find_shape("draft", options["draft"]), draft_gpu, num_draft)
    machine = gpu_machine(target, draft, acceptance, options["launches"], link_s)
    used = {mode: num_gpus + (draft.num_gpus if draft is not None and mode.has_drafts else 0) for mode in Mode}
    return machine, used, [_describe(target, "Target"), *([_describe(draft, "Drafter")] if draft else []), _ASSUMED]


_ASSUMED = (
    f"Assumed: {MEMORY_SHARE:.0%} of the data sheets' bandwidth, {COMPUTE_SHARE:.0%} of their operations."
    " Predicted, not measured."
)


def _describe(placed: Placed, role: str) -> str:
    shape, tokens = placed.shape, placed.num_blocks * 16
    where = f"{placed.num_gpus} x {placed.gpu.name}"
    return f"{role}: {shape.name} on {where}, {shape.resident_bytes / 1e9:.1f} GB of weights, KV for {tokens:,} tokens."


def _plan(modes: Sequence[Mode], loads: Sequence[int], draft_lens: Sequence[int]) -> list[tuple[Mode, int, int]]:
    """Return (mode, requests per batch, k) of every row; minedraft needs an even number of requests."""
    return [
        (mode, load // mode.num_batches, k)
        for load in loads
        for mode in modes
        for k in (draft_lens if mode.has_drafts else [0])
        if load % mode.num_batches == 0
    ]


def _modes(text: str) -> list[Mode]:
    try:
        return [Mode(name.strip()) for name in text.split(",")]
    except ValueError:
        raise ConfigError("modes", text, f"must be some of {', '.join(mode.value for mode in Mode)}") from None


def _table(rows: Sequence[_Row], num_gpus: dict[Mode, int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    names = ["mode", "k", "tok/s", *(["a GPU"] if num_gpus else []), "draft", "verify", "step", "TTFT", "TPOT", "busy"]
    for name in names:
        table.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
    for row in rows:
        run, rounds = row.run, row.run.rounds
        has_drafts = row.mode.has_drafts
        table.add_row(
            row.label,
            str(row.draft_len) if has_drafts else "-",
            f"{run.tokens_per_s:.0f}",
            *([f"{run.tokens_per_s / num_gpus[row.mode]:.0f}"] if num_gpus else []),
            f"{rounds.draft_ms:.1f}" if has_drafts else "-",
            f"{rounds.verify_ms:.1f}",
            f"{rounds.step_ms:.1f}",
            f"{run.first_token.p50 * 1e3:.0f}",
            f"{run.per_token.p50 * 1e3:.1f}",
            f"{rounds.verifier_busy:.0%}",
        )
    table.caption = "Times in ms, TTFT and TPOT of the median request; busy: the verifier's share."
    return table


def _to_json(row: _Row, num_gpus: dict[Mode, int]) -> dict[str, Any]:
    facts = {"mode": row.mode.value, "max_batch_size": row.max_batch_size, "draft_len": row.draft_len}
    return facts | {"num_gpus": num_gpus.get(row.mode)} | asdict(row.run)
