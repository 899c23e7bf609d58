"""The modes over the length of the prompts, of the file of `scripts/bench/studies/context`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scripts.lib.matrix.store import median_of
from scripts.lib.report.markdown import bold, times, to_table
from scripts.lib.report.pictures import Line, Panel
from scripts.lib.report.results import Results


@dataclass(frozen=True, slots=True)
class LengthLine:
    """What a pair of models does with prompts of one length.

    Attributes:
        draft_ms, verify_ms: of `sd` with all requests in one batch.
        rates: tokens/s of full batches that decode, by mode; of `ar` the better one of both devices and the verifier's
            alone.
    """

    pair: str
    prompt_len: int
    in_flight: int
    draft_ms: float
    verify_ms: float
    rates: Mapping[str, float]

    @property
    def gain(self) -> float:
        """Of overlapping over taking turns, with as many requests in flight."""
        return self.rates["minedraft"] / self.rates["sd"]


def context_table(results: Results, file: str) -> str:
    """Return times and rates at each length of the prompts, and what overlapping gains at equal requests in flight."""
    header = (
        "models, prompt tokens, in flight", "draft, ms", "verify, ms", "`ar`, tokens/s", "`sd`", "`minedraft`",
        "of `sd`", "of `ar`",
    )  # fmt: skip
    lines = []
    for line in length_lines(results.load(file)):
        rates = [f"{line.rates[mode]:.1f}" for mode in ("ar", "sd", "minedraft")]
        gains = [line.gain, line.rates["minedraft"] / line.rates["ar"]]
        lines.append(
            [f"{line.pair}, {line.prompt_len}, {line.in_flight}", f"{line.draft_ms:.1f}", f"{line.verify_ms:.1f}"]
            + rates
            + [bold(times(gain)) if gain >= 1 else times(gain) for gain in gains]
        )
    return to_table(header, lines)


def context_chart(results: Results) -> Sequence[Panel]:
    """Return t_draft and t_verify of each pair, and what overlapping gains, over the length of the prompts."""
    lines = length_lines(results.load("studies/context.json"))
    panels, gains = [], []
    for pair in dict.fromkeys(line.pair for line in lines):
        own = [line for line in lines if line.pair == pair]
        lens = tuple(line.prompt_len for line in own)
        curves = (
            Line("draft", lens, tuple(round(line.draft_ms, 2) for line in own)),
            Line("verify", lens, tuple(round(line.verify_ms, 2) for line in own)),
        )
        panels.append(Panel(f"{pair}, sd, {own[0].in_flight} in flight", "tokens of a prompt", "ms", curves))
        gains.append(Line(f"{pair}, {own[0].in_flight} in flight", lens, tuple(round(line.gain, 3) for line in own)))
    gained = Panel("overlapping, at equal requests in flight", "tokens of a prompt", "of sd", tuple(gains), y_level=1.0)
    return [*panels, gained]


def length_lines(content: Any) -> list[LengthLine]:  # noqa: ANN401 - JSON
    """Return a line for each pair and length, in order, of which every mode was measured: medians over the runs."""

    def median(row: Mapping[str, Any], metric: str) -> float:
        return median_of(content, row, metric)

    lines = []
    for table in sorted(content["tables"], key=lambda table: (table["pair"], int(table["kind"]))):
        in_flight = 2 * table["size"]
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in table["rows"]:
            if row["config"]["num_in_flight"] == in_flight:
                rows.setdefault(row["config"]["mode"], []).append(row)
        if not {"ar", "sd", "minedraft"} <= rows.keys():
            continue  # not all of it was measured
        [turns] = rows["sd"]
        rates = {mode: max(median(row, "decode_tokens_per_s") for row in found) for mode, found in rows.items()}
        where = table["pair"], int(table["kind"]), in_flight
        lines.append(LengthLine(*where, median(turns, "draft_ms"), median(turns, "verify_ms"), rates))
    return lines
