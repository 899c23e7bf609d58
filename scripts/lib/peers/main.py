"""scripts/bench/peers: compares this project's service with other engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from minedraft.cli.console import progress_printer, run, say
from minedraft.device import Device, usable_cores
from minedraft.models.catalogue import Pair, ensure_pair
from minedraft.types import Mode
from scripts.lib.peers import plot, report
from scripts.lib.peers.cells import IN_FLIGHT, QUICK, Cell, CellKind, full_cells, quick_cells
from scripts.lib.peers.clock import Clock, in_words, showing_steps
from scripts.lib.peers.driving import Outcome, Plan, measure_all
from scripts.lib.peers.engines.base import InFormat, Installable, Peer
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.instructions import Instructions, can_watch
from scripts.lib.peers.engines.llama_cpp import LlamaCpp
from scripts.lib.peers.engines.ours import Ours
from scripts.lib.peers.engines.transformers_generate import TransformersGenerate
from scripts.lib.peers.engines.vllm_cpu import VllmCpu
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.peers.summary import to_rows
from scripts.lib.processes import until_told

DEFAULT = ("ours", "llama.cpp", "vllm", "transformers")
ENGINES = (*DEFAULT, "vllm-compiled")
DTYPES = ("bfloat16", "float32")


@dataclass(frozen=True, slots=True)
class Names(click.ParamType[list[str]]):
    """A list of names, separated by commas, each of which must be known."""

    known: tuple[str, ...]
    name = "names"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:  # noqa: ANN401
        names = [each.strip() for each in value.split(",")] if isinstance(value, str) else list(value)
        for each in names:
            if each not in self.known:
                self.fail(f"{each!r}: must be one or more of {', '.join(self.known)}", param, ctx)
        return list(dict.fromkeys(names))


_MODES = Names(tuple(mode.value for mode in Mode))
_COUNTS = Names(tuple(map(str, IN_FLIGHT)))
_KINDS = Names(tuple(kind.value for kind in CellKind))
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def _listed(counts: Sequence[int]) -> str:
    return ",".join(map(str, counts))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--install", type=Names(ENGINES), metavar="LIST", help="Install these engines and end.")
@click.option(
    "--engines",
    type=Names(ENGINES),
    metavar="LIST",
    default=",".join(DEFAULT),
    show_default=True,
    help="To compare; vllm-compiled, too, takes 90 s more for each start.",
)
@click.option(
    "--modes", type=_MODES, metavar="LIST", default="ar", show_default=True, help="Of ours: ar, sd, minedraft."
)
@click.option("--model", type=_FOLDER, help="Model folder.  [default: the default target, fetched if missing]")
@click.option("--draft", type=_FOLDER, help="Draft model folder, for modes with drafts.")
@click.option(
    *("--dtype", "dtypes"),
    type=Names(DTYPES),
    metavar="LIST",
    default=DTYPES[0],
    show_default=True,
    help="Number format of the weights, of every engine: bfloat16, float32 or both.",
)
@click.option(
    "--instructions",
    type=click.Choice([each.value for each in Instructions]),
    default=Instructions.NATIVE.value,
    show_default=True,
    help="avx2: no engine may use more than AVX2, FMA and F16C, whatever this machine has.",
)
@click.option(
    *("--cores", "core_lists"),
    multiple=True,
    metavar="CORES",
    help="0, 0-1 or 0,2; may be given repeatedly.  [default: the first core, then the first two]",
)
@click.option(
    "--in-flight",
    type=_COUNTS,
    metavar="LIST",
    help=f"Prompts at once.  [default: {_listed(IN_FLIGHT)}; with --quick {_listed(QUICK)}]",
)
@click.option(
    "--kinds",
    type=_KINDS,
    metavar="LIST",
    default=",".join(_KINDS.known),
    show_default=True,
    help="What to measure: see below.",
)
@click.option("--repeats", type=click.IntRange(1), help="Starts of each engine.  [default: 3, with --quick 1]")
@click.option("--quick", is_flag=True, help="Fewer and shorter measurements.")
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.svg.")
def main(
    install: list[str] | None,
    engines: list[str],
    modes: list[str],
    model: Path | None,
    draft: Path | None,
    dtypes: list[str],
    instructions: str,
    core_lists: Sequence[str],
    in_flight: list[str] | None,
    kinds: list[str],
    repeats: int | None,
    quick: bool,
    out: Path | None,
) -> None:
    """Compare the whole stack with llama.cpp's server, vLLM on the CPU and transformers' generate.

    All get the same weights, number format, token ids and cores, and decode greedily. One engine runs at a time,
    with all its processes on its cores, and this program on the others if there are any. The order is repeat,
    cores, engine, so that a slow spell of the machine slows all of them; figures are medians over the repeats.
    A whole run takes about 25 minutes, --quick about 5; it says so before it begins. Stop other work first.

    \b
    decoding     tokens/s from the last first token to the first end, from the times at which streamed tokens
                 arrive here: prompts are not in it
    whole        tokens/s from the first request to the last token: prompts are in it
    natural      the same, where the model ends its answers itself
    prompts      rates and times to first tokens of prompts of a given length, sent together
    spread       (highest - lowest repeat) / median, the largest of the line

    --kinds: fixed is decoding and whole, natural, and prompts are first (16 of 100 tokens) and context (8 of 1,024,
    8 of 2,048). An engine that is not installed is named, with the command that installs it, and left out.

    With --instructions avx2, llama.cpp is another build (--install llama.cpp --instructions avx2), the other
    engines are held by variables, and a cell in which a thread used AVX-512 is an error. It is AVX2 code with this
    machine's caches, memory and clock: not what a machine without AVX-512 does.

    \b
    Examples:
      scripts/bench/peers --install llama.cpp,vllm           into the cache, 13 minutes on two cores
      scripts/bench/peers --quick
      scripts/bench/peers --out scripts/results/peers/smollm2
      scripts/bench/peers --engines ours,vllm --cores 0 --in-flight 8,16 --kinds fixed --repeats 5
      scripts/bench/peers --instructions avx2 --dtype bfloat16,float32 --cores 0 --in-flight 4,8 --kinds fixed
    """
    widest = Instructions(instructions)
    if install is not None:
        _install(install, widest)
        return
    pair = Pair(model, draft) if model is not None else ensure_pair(on_progress=progress_printer())
    peers = _peers(engines, modes, draft or pair.draft, widest)
    if len(dtypes) > 1:
        peers = [InFormat(peer, dtype) for peer in peers for dtype in dtypes]
    absent = {peer.name: why for peer in peers if (why := peer.missing()) is not None}
    for name, why in absent.items():
        say(f"{name}: {why}")
    plan = Plan(
        model=pair.target,
        dtype=",".join(dtypes),
        peers=[peer for peer in peers if peer.name not in absent],
        core_sets=_core_sets(core_lists),
        cells=_cells(in_flight, kinds, is_quick=quick),
        repeats=repeats or (1 if quick else 3),
        weight_bytes=sum(path.stat().st_size for path in pair.target.glob("*.safetensors")),
        instructions=widest,
    )
    if not plan.peers:
        raise PeerFailed("no engine to run")
    _compare(plan, absent, out)


def _install(names: Sequence[str], instructions: Instructions) -> None:
    installable = _installable(instructions)
    for name in names:
        if name in installable:
            installable[name].install(say)
        else:
            say(f"{name}: nothing to install, it is in this project's environment")


def _installable(instructions: Instructions) -> dict[str, Installable]:
    return {
        "llama.cpp": LlamaCpp(instructions),
        "vllm": VllmCpu(),
        "vllm-compiled": VllmCpu(is_compiled=True),
    }


def _cells(in_flight: Sequence[str] | None, kinds: Sequence[str], *, is_quick: bool) -> list[Cell]:
    counts = sorted(map(int, in_flight)) if in_flight else QUICK if is_quick else IN_FLIGHT
    return [cell for cell in (quick_cells if is_quick else full_cells)(counts) if cell.kind in kinds]


def _peers(engines: Sequence[str], modes: Sequence[str], draft: Path | None, instructions: Instructions) -> list[Peer]:
    peers: list[Peer] = []
    for name in engines:
        if name == "ours":
            peers += [Ours(Mode(mode), draft) for mode in modes]
        elif name == "transformers":
            peers.append(TransformersGenerate())
        else:
            peers.append(_installable(instructions)[name])
    return peers


def _core_sets(listed: Sequence[str]) -> list[tuple[int, ...]]:
    """Return the given sets of cores; by default the first core, and the first two if there are two."""
    usable = usable_cores()
    if not listed:
        return list(dict.fromkeys([usable[:1], usable[:2]]))
    return [Device.parse(f"cpu:{each.removeprefix('cpu:')}", "--cores").here("--cores").cores for each in listed]


def _compare(plan: Plan, absent: dict[str, str], out: Path | None) -> None:
    prompts, outcome, console = PromptSet.load(plan.model), Outcome(), Console()
    # As on the first set of cores, without the places of this machine.
    setup = replace(plan.setup(plan.core_sets[0], Path("FOLDER")), model=Path("MODEL"))
    facts = {peer.name: peer.facts(setup) for peer in plan.peers}
    whole_s = Clock().left_s([visit.expected(plan.weight_bytes) for visit in plan.visits()])
    say(
        f"{len(plan.peers)} engines, {len(plan.core_sets)} sets of cores, {plan.repeats} repeats: "
        f"about {in_words(whole_s)}"
    )
    if plan.instructions is Instructions.AVX2 and not can_watch():
        say("this kernel does not tell who uses AVX-512: the engines are held to AVX2, and it is not checked")
    is_over = False
    try:
        with showing_steps() as on_step:
            asyncio.run(until_told(measure_all(plan, prompts, outcome, on_step)))
            is_over = True
    finally:
        if outcome.measurements or outcome.failures:
            report.show(console, plan, outcome)
            if not is_over:
                say("interrupted: these are the figures of a part of the run")
    if not outcome.measurements:
        raise PeerFailed("nothing could be measured")
    if out is not None:
        report.write(out.with_suffix(".json"), report.to_content(plan, outcome, prompts.source, facts, absent))
        plot.draw(to_rows(outcome.measurements), f"{plan.model.name}, {plan.dtype}", out.with_suffix(".svg"))
        console.print(f"written to {out.with_suffix('.json')} and {out.with_suffix('.svg')}", markup=False)


if __name__ == "__main__":
    run(main, "scripts/bench/peers")
