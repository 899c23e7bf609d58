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
from scripts.lib.peers.cells import IN_FLIGHT, full_cells, quick_cells
from scripts.lib.peers.clock import Clock, in_words, showing_steps
from scripts.lib.peers.driving import Outcome, Plan, measure_all
from scripts.lib.peers.engines.base import Installable, Peer
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.llama_cpp import LlamaCpp
from scripts.lib.peers.engines.ours import Ours
from scripts.lib.peers.engines.transformers_generate import TransformersGenerate
from scripts.lib.peers.engines.vllm_cpu import VllmCpu
from scripts.lib.peers.prompts import PromptSet
from scripts.lib.peers.summary import to_rows
from scripts.lib.processes import until_told

DEFAULT = ("ours", "llama.cpp", "vllm", "transformers")
ENGINES = (*DEFAULT, "vllm-compiled")
_INSTALLABLE: dict[str, Installable] = {
    "llama.cpp": LlamaCpp(),
    "vllm": VllmCpu(),
    "vllm-compiled": VllmCpu(is_compiled=True),
}


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
_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)


def _install(context: click.Context, option: click.Parameter, names: list[str] | None) -> None:
    """Install engines and end the command, if that is what it is called for."""
    if names is None or context.resilient_parsing:
        return
    for name in names:
        if name in _INSTALLABLE:
            _INSTALLABLE[name].install(say)
        else:
            say(f"{name}: nothing to install, it is in this project's environment")
    context.exit()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    *("--install", "names"),
    type=Names(ENGINES),
    metavar="LIST",
    is_eager=True,
    expose_value=False,
    callback=_install,
    help="Install these engines and end.",
)
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
    "--dtype",
    type=click.Choice(["bfloat16", "float32"]),
    default="bfloat16",
    show_default=True,
    help="Number format of the weights, of every engine.",
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
    default=",".join(_COUNTS.known),
    show_default=True,
    help="Prompts at once.",
)
@click.option("--repeats", type=click.IntRange(1), help="Starts of each engine.  [default: 3, with --quick 1]")
@click.option("--quick", is_flag=True, help="Fewer and shorter measurements.")
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.svg.")
def main(
    engines: list[str],
    modes: list[str],
    model: Path | None,
    draft: Path | None,
    dtype: str,
    core_lists: Sequence[str],
    in_flight: list[str],
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
    spread       (highest - lowest repeat) / median, the largest of the line

    An engine that is not installed is named, with the command that installs it, and left out.

    \b
    Examples:
      scripts/bench/peers --install llama.cpp,vllm           into the cache, 13 minutes on two cores
      scripts/bench/peers --quick
      scripts/bench/peers --out scripts/results/peers
      scripts/bench/peers --engines ours,vllm --cores 0 --in-flight 8,16 --repeats 5
    """
    pair = Pair(model, draft) if model is not None else ensure_pair(on_progress=progress_printer())
    peers = _peers(engines, modes, draft or pair.draft)
    absent = {peer.name: why for peer in peers if (why := peer.missing()) is not None}
    for name, why in absent.items():
        say(f"{name}: {why}")
    plan = Plan(
        model=pair.target,
        dtype=dtype,
        peers=[peer for peer in peers if peer.name not in absent],
        core_sets=_core_sets(core_lists),
        cells=(quick_cells if quick else full_cells)(sorted(map(int, in_flight))),
        repeats=repeats or (1 if quick else 3),
        weight_bytes=sum(path.stat().st_size for path in pair.target.glob("*.safetensors")),
    )
    if not plan.peers:
        raise PeerFailed("no engine to run")
    _compare(plan, absent, out)


def _peers(engines: Sequence[str], modes: Sequence[str], draft: Path | None) -> list[Peer]:
    peers: list[Peer] = []
    for name in engines:
        if name == "ours":
            peers += [Ours(Mode(mode), draft) for mode in modes]
        elif name == "transformers":
            peers.append(TransformersGenerate())
        else:
            peers.append(_INSTALLABLE[name])
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
