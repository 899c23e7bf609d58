"""scripts/forecast/paper: the paper's matrix, simulated, beside what it publishes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from minedraft.cli.console import run
from minedraft.sim.gpus import COMPUTE_SHARE, GPUS, MEMORY_SHARE
from minedraft.sim.planning import LAUNCH_S
from scripts.lib.forecast.differences import EXPLAINED
from scripts.lib.forecast.files import write_rows
from scripts.lib.forecast.gains import Row, gains_of_pair, pick, throughput_gain
from scripts.lib.forecast.matrix import Cell, cell_json, matrix, same_work, simulate_cell
from scripts.lib.forecast.paper_picture import draw_gains
from scripts.lib.forecast.published import PUBLISHED
from scripts.lib.forecast.reference import (
    ACCEPTANCE,
    GPU,
    NUM_TARGET_GPUS,
    calibrate,
    product_machine,
    reference_machine,
)

_RESULTS = Path("scripts/results/forecast")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--out", type=click.Path(path_type=Path), default=_RESULTS, show_default=True, help="Folder of paper.json and .svg."
)
@click.option("--show", is_flag=True, help="Simulate nothing; show what paper.json has, and draw it again.")
def main(out: Path, show: bool) -> None:
    """Simulate the paper's evaluation: 321 cells of models, batch sizes, drafts, samples and TETRIS.

    The product's own scheduler, lanes, policies and books run in virtual time, on workers that take as long as the
    GPU's data sheet and two published numbers say. The table sets the gains beside those that the paper publishes, and
    says what each difference comes from. It takes some minutes, and gives the same file each time.
    """
    path = out / "paper.json"
    out.mkdir(parents=True, exist_ok=True)
    content = json.loads(path.read_text(encoding="utf-8")) if show else _simulate()
    content["pairs"] = _pairs(content)
    write_rows(content, path)
    console = Console()
    console.print(pairs_table(content["pairs"]))
    for pair in content["pairs"]:
        console.print(f"{_name(pair)}: {pair['explained']}", style="italic", highlight=False)
    for title, experiment in (("requests per batch", "m"), ("samples of a prompt", "n"), ("TETRIS, k = 3", "tetris")):
        console.print(_ablation(content["rows"], title, experiment))
    draw_gains(content, out / "paper.svg")


def _simulate() -> dict[str, Any]:
    engine, cells = calibrate(), list(matrix())
    found: dict[tuple[str, Cell], dict[str, Any]] = {}
    rows: dict[str, list[dict[str, Any]]] = {"paper": [], "product": []}
    work = [("paper", cell) for cell in cells]
    work += [("product", cell) for cell in cells if cell.experiment == "pairs" and not cell.extra]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        for whose, cell in progress.track(work, description="simulating"):
            key = whose, same_work(cell)
            if key not in found:
                paper = reference_machine(cell.target, cell.draft, engine)
                machine = paper if whose == "paper" else product_machine(cell.target, cell.draft)
                found[key] = cell_json(cell, simulate_cell(machine, cell))
            row = found[key] | {"experiment": cell.experiment, "num_samples": cell.num_samples}
            if row not in rows[whose]:
                rows[whose].append(row)
    constants = {
        "gpu": asdict(GPUS[GPU]),
        "target_gpus": NUM_TARGET_GPUS,
        "draft_gpus": 1,
        "compute_share": COMPUTE_SHARE,
        "memory_share": MEMORY_SHARE,
        "launch_s_per_layer": LAUNCH_S["eager"],
        "engine": asdict(engine),
        "acceptance": ACCEPTANCE,
    }
    return {"constants": constants, "pairs": [], "rows": rows["paper"], "product_rows": rows["product"]}


def _pairs(content: dict[str, Any]) -> list[dict[str, Any]]:
    pairs, rows = [], {"paper": content["rows"], "product": content["product_rows"]}
    for (target, draft), published in PUBLISHED.items():
        own = {
            whose: pick(all_rows, experiment="pairs", target=target, draft=draft) for whose, all_rows in rows.items()
        }
        size = min(row["size"] for row in own["paper"])
        facts = {"target": target, "draft": draft, "size": size, "published": asdict(published)}
        simulated = {whose: gains_of_pair(of, size) for whose, of in own.items()}
        pairs.append(facts | {"simulated": simulated, "explained": EXPLAINED[target, draft]})
    return pairs


def pairs_table(pairs: Sequence[dict[str, Any]]) -> Table:
    """Return the gains of every pair beside the published ones, in percent."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify="left")
    for name in ("pair", "sd", "paper", "peak", "paper", "E2EL", "paper", "flight", "ar", "ours"):
        table.add_column(name, justify="left" if name == "pair" else "right", no_wrap=True)
    for pair in pairs:
        simulated, published = pair["simulated"]["paper"], pair["published"]
        table.add_row(
            _name(pair),
            _percent(simulated["over_sd"]),
            _percent(published["over_sd"]),
            _percent(simulated["where_sd_peaks"]),
            f"{published['least']:g} to {published['most']:g}",
            _percent(-simulated["makespan"]),
            _percent(-published["makespan"]),
            _percent(simulated["equal_in_flight"]),
            _percent(simulated["over_ar"]),
            _percent(pair["simulated"]["product"]["equal_in_flight"]),
        )
    table.caption = (
        "Gains of two batches of m, in percent. sd: the largest over sd with m at\n"
        "the same k; peak: at the k where that is best; E2EL: makespan a request.\n"
        "flight, ar: the best over the best of sd, of ar with as many in flight.\n"
        "ours: as flight, with captured graphs and this product's messages."
    )
    return table


def _ablation(rows: Sequence[Row], title: str, experiment: str) -> Table:
    """Return the gain of minedraft over sd with as many requests per batch, by what the experiment varies."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, title=title, title_justify="left")
    for name in ("pair", experiment, "k", "e", "sd", "minedraft", "gain"):
        table.add_column(name, justify="left" if name == "pair" else "right", no_wrap=True)
    varied = {"m": "size", "n": "num_samples", "tetris": "num_samples"}[experiment]
    for row in pick(rows, experiment=experiment, mode="minedraft"):
        names = ("target", "draft", "size", "draft_len", "num_samples", "extra")
        (base,) = pick(rows, experiment=experiment, mode="sd", **{name: row[name] for name in names})
        if experiment != "tetris" and row["draft_len"] not in (1, 3, 5):
            continue
        cells = (row[varied], row["draft_len"], row["extra"] or "-", round(base["tokens_per_s"]))
        gain = _percent(throughput_gain(row, base))
        table.add_row(_name(row), *map(str, cells), f"{row['tokens_per_s']:.0f}", gain)
    return table


def _name(row: Row) -> str:
    family, size = row["target"].split("-")[0], row["target"].removesuffix("-int4").split("-")[-1]
    return f"{family} {size}+{row['draft'].split('-')[-1]}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:+.0f}"


if __name__ == "__main__":
    run(main, "scripts/forecast/paper")
