"""`minedraft simulate`: what a pair of models would give on devices that are not here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from minedraft.bench.measured import fit_rows, read_rows
from minedraft.cli.console import parse_ints, print_json
from minedraft.cli.flags.numbers import NumberRange
from minedraft.cli.forecast.advice import SimulatedRow, advice, rows_table
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN, MAX_NEW_TOKENS
from minedraft.settings.flags import UserPath
from minedraft.sim.acceptance import easy_and_hard, same
from minedraft.sim.gpus import COMPUTE_SHARE, GPUS, MEMORY_SHARE, Gpu
from minedraft.sim.planning import LAUNCH_S, Placed, gpu_machine, measured_machine, parse_gpus
from minedraft.sim.service import Machine
from minedraft.sim.shapes import SHAPES, find_shape
from minedraft.sim.simulation import Load, SimulatedRun, endless_limits, run_simulation, with_tetris
from minedraft.types import MAX_BATCH_SIZE, Mode

_EPILOG = f"""
\b
Examples:
  minedraft simulate --target llama-3.1-8b --draft llama-3.2-1b --gpu h100
  minedraft simulate --target qwen3-32b --draft qwen3-1.7b --gpu a100x4
      --draft-gpu a100 --in-flight 16,32,64 -k 2,3,4 --acceptance 0.75
  minedraft simulate --target vicuna-33b --draft vicuna-33b-eagle --gpu h100
  minedraft simulate --measured result.json --in-flight 8 --output-len 64

How likely drafts are accepted decides as much as the GPU. It is 0.6 to 0.8
for a drafter of the target's family on common text; `minedraft status` of a
running service shows it (VSR, accepted length).

Models: {", ".join(SHAPES)}, or the folder of one.

GPUs: {", ".join(GPUS)}.
"""
_LOADS, _MODES = "8,16,32", "ar,sd,minedraft"
_POSITIVE = NumberRange(0, min_open=True)
_LENGTH = click.IntRange(1, MAX_NEW_TOKENS)
_MAX_LINK_MS = 60_000


@click.command(epilog=_EPILOG)
@click.option("--target", metavar="NAME", default=None, help="Target model.")
@click.option("--draft", metavar="NAME", default=None, help="Draft model; without one, only ar is simulated.")
@click.option(
    "--gpu", "--target-gpu", "gpu", metavar="GPU[xN]", default="h100", show_default=True, help="The target's GPUs."
)
@click.option("--draft-gpu", metavar="GPU[xN]", default=None, help="The draft model's; default: one like these.")
@click.option("--measured", metavar="FILE.json", default=None, type=UserPath(), help="A bench result instead of GPUs.")
@click.option("--in-flight", metavar="N,...", default=_LOADS, show_default=True, help="Requests in flight.")
@click.option("-k", "--draft-len", metavar="N,...", default="3", show_default=True, help="Drafts per round.")
@click.option(
    "--extra-drafts",
    metavar="E",
    default=0,
    show_default=True,
    type=click.IntRange(0, MAX_DRAFT_LEN - 1),
    help="Drafts beyond k, of which TETRIS takes the best of the batch.",
)
@click.option(
    "--acceptance",
    metavar="A",
    default=0.7,
    show_default=True,
    type=NumberRange(0, 1),
    help="How likely a draft is accepted once those before it are.",
)
@click.option("--prompt-len", metavar="N", default=256, show_default=True, type=_LENGTH, help="In tokens.")
@click.option("--output-len", metavar="N", default=256, show_default=True, type=_LENGTH, help="In tokens.")
@click.option("--num-requests", metavar="N", default=None, type=click.IntRange(1), help="[default: 4 for each seat]")
@click.option(
    "--rate",
    metavar="R",
    default=None,
    type=_POSITIVE,
    help="Arrivals per second, queue and all; default: one comes when one ends.",
)
@click.option(
    "--launches",
    type=click.Choice(list(LAUNCH_S)),
    default="graphs",
    show_default=True,
    help="How kernels are launched: by captured graphs, or one by one.",
)
@click.option(
    "--link-ms",
    metavar="MS",
    default=0.1,
    show_default=True,
    type=NumberRange(0, _MAX_LINK_MS),
    help="Time of a message from the scheduler to a worker, and of one back.",
)
@click.option(
    "--drafter-dies-every", metavar="S", default=None, type=_POSITIVE, help="Lose the drafter every S seconds, for one."
)
@click.option("--modes", metavar="MODE,...", default=_MODES, show_default=True, help="Modes to compare.")
@click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
def simulate(**options: Any) -> None:  # noqa: ANN401 (one for each option above)
    """Simulate a service on GPUs that are not here, to plan a purchase.

    The service's own scheduler runs in virtual time, on workers that only take as long as a forward would: the longer
    of reading (weights, keys and values) and computing, by the GPU's data sheet; with --measured, as long as it took
    there. ar has the target's GPUs only, and no use for the drafter's; so the tokens a GPU are shown, too.
    """
    if options["prompt_len"] + options["output_len"] > MAX_NEW_TOKENS:
        limit = f"with output-len {options['output_len']}, at most {MAX_NEW_TOKENS} tokens are simulated"
        raise ConfigError("prompt-len", options["prompt_len"], limit)
    machine, num_gpus, facts = _machine(options)
    loads = parse_ints("in-flight", options["in_flight"], 2 * MAX_BATCH_SIZE)
    most = MAX_DRAFT_LEN - options["extra_drafts"]
    plan = _plan(_modes(options["modes"], machine), loads, parse_ints("draft-len", options["draft_len"], most))
    if not plan:
        raise ConfigError("in-flight", options["in_flight"], "must have an even number for minedraft's two batches")
    rows = []
    as_json = options["as_json"]
    with Progress(console=Console(stderr=True), transient=True, disable=as_json) as progress:
        for mode, size, k in progress.track(plan, description="simulating"):
            rows.append(SimulatedRow(mode, size, k, _run(machine, mode, size, k, options), num_gpus.get(mode)))
    facts = [*advice(rows, options["draft"]), *facts]
    if as_json:
        print_json({"facts": facts, "rows": [row.to_json() for row in rows]})
        return
    console = Console()
    console.print(rows_table(rows))
    for line in facts:
        console.print(line, style="italic", highlight=False, markup=False)


def _run(machine: Machine, mode: Mode, size: int, draft_len: int, options: dict[str, Any]) -> SimulatedRun:
    limits, policies = with_tetris(endless_limits(mode, size, draft_len), options["extra_drafts"])
    num_seats, rate = size * mode.num_batches, options["rate"]
    load = Load(
        (options["prompt_len"],),
        (options["output_len"],),
        options["num_requests"] or 4 * num_seats,
        rate,
        num_seats if rate is None else None,
    )
    return run_simulation(machine, limits, load, policies=policies, drafter_dies_every_s=options["drafter_dies_every"])


def _machine(options: dict[str, Any]) -> tuple[Machine, dict[Mode, int], list[str]]:
    """Return the machine, the number of GPUs that each mode uses, and what was assumed, in words."""
    rate, link_s = options["acceptance"], options["link_ms"] / 1e3
    # Without a choice among drafts it makes no difference which are likely; with one, all depends on it.
    law = easy_and_hard(rate) if options["extra_drafts"] else same(rate)
    if options["measured"] is not None:
        if options["target"] or options["draft"]:
            raise ConfigError(
                "measured", options["measured"].name, "has its own models; leave --target and --draft out"
            )
        costs = fit_rows(read_rows(options["measured"]))
        fact = f"Costs as fitted to {options['measured'].name}; acceptance {rate:g}."
        return measured_machine(costs, law), {}, [fact]
    if options["target"] is None:
        raise ConfigError("target", None, "must be given, or --measured")
    gpu, num_gpus = parse_gpus("gpu", options["gpu"])
    target, draft = Placed(find_shape("target", options["target"]), gpu, num_gpus), None
    if options["draft"] is not None:
        draft_gpu, num_draft = parse_gpus("draft-gpu", options["draft_gpu"] or gpu.name)
        draft = Placed(find_shape("draft", options["draft"]), draft_gpu, num_draft, "draft-gpu")
    machine = gpu_machine(target, draft, law, options["launches"], link_s)
    used = {mode: num_gpus + (draft.num_gpus if draft is not None and mode.has_drafts else 0) for mode in Mode}
    facts = [_describe(target, "Target"), *([_describe(draft, "Drafter")] if draft else [])]
    if draft is not None and draft.shape.num_weights > target.shape.num_weights:
        facts.append("The drafter is larger than the target; perhaps the two are exchanged.")
    return machine, used, [*facts, *sorted({_sheet(p.gpu) for p in (target, draft) if p}), _assumed(rate, options)]


def _sheet(gpu: Gpu) -> str:
    return (
        f"{gpu.name}: {gpu.flops / 1e12:.0f} Tflop/s, {gpu.bytes_per_s / 1e9:.0f} GB/s,"
        f" {gpu.memory_bytes / 1e9:.0f} GB, by its data sheet."
    )


def _assumed(rate: float, options: dict[str, Any]) -> str:
    return (
        f"Assumed: {rate:.0%} of the drafts that are reached are accepted; {COMPUTE_SHARE:.0%} of a data sheet's"
        f" operations and {MEMORY_SHARE:.0%} of its bandwidth are reached; messages take {options['link_ms']:g} ms."
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


def _modes(text: str, machine: Machine) -> list[Mode]:
    """Return the modes to compare: those of the default that need a drafter are left out if there is none."""
    try:
        modes = [Mode(name.strip()) for name in text.split(",")]
    except ValueError:
        raise ConfigError("modes", text, f"must be some of {', '.join(mode.value for mode in Mode)}") from None
    if machine.draft is not None:
        return modes
    if text != _MODES and any(mode.has_drafts for mode in modes):
        raise ConfigError("draft", None, f"must be given for {text}")
    return [mode for mode in modes if not mode.has_drafts]
