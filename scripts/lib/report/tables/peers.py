"""The engines beside each other, of the files of `scripts/bench/peers`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scripts.lib.report.markdown import bold, times, to_table
from scripts.lib.report.results import Results

_CORES = {"0": "one core", "0-1": "two cores"}
_OURS = "minedraft ar"


def decoding_table(results: Results, file: str) -> str:
    """Return tokens/s in steady decoding of each engine over requests in flight, and ours of the best other one; of
    ours alone, those of the last set of cores over those of the first."""
    content = results.load(file)
    chosen = [row for row in content["rows"] if row["kind"] == "fixed"]
    counts = sorted({row["in_flight"] for row in chosen})
    lines, own = [], []
    for cores in dict.fromkeys(row["cores"] for row in chosen):
        rates = {
            engine: [_rate(chosen, engine, cores, count, "decode_tokens_per_s") for count in counts]
            for engine in content["engines"]
        }
        for engine, values in rates.items():
            lines.append([f"{_name(engine, content['engines'])}, {_CORES[cores]}", *map(_shown, values)])
        own.append(rates.pop(_OURS))
        if rates:
            others = [max(values) for values in zip(*rates.values(), strict=True)]
            lines.append(["ours of the best other", *_ratios(own[-1], others)])
    if not rates:
        lines.append([f"{_CORES[cores]} of one", *_ratios(own[-1], own[0])])
    return to_table(["tokens/s, in flight", *map(str, counts)], lines)


def _ratios(ours: Sequence[float], others: Sequence[float]) -> list[str]:
    return [times(one / other) for one, other in zip(ours, others, strict=True)]


def formats_table(results: Results, file: str) -> str:
    """Return tokens/s in steady decoding of each engine in each number format, and ours of the best other one, where
    the better format of each counts."""
    content = results.load(file)
    chosen = [row for row in content["rows"] if row["kind"] == "fixed"]
    counts = sorted({row["in_flight"] for row in chosen})
    rates = {(row["engine"], row["in_flight"]): float(row["decode_tokens_per_s"]["median"]) for row in chosen}
    lines = []
    for engine, facts in content["engines"].items():
        name, dtype = engine.rsplit(" ", 1)
        values = [_shown(rates[engine, count]) if (engine, count) in rates else "" for count in counts]
        lines.append([f"{_name(name, {name: facts})}, {dtype}", *values])
    ratios = []
    for count in counts:
        own = {engine: rate for (engine, at), rate in rates.items() if at == count}
        best = max(rate for engine, rate in own.items() if engine.startswith(_OURS))
        ratios.append(times(best / max(rate for engine, rate in own.items() if not engine.startswith(_OURS))))
    return to_table(["tokens/s, in flight", *map(str, counts)], [*lines, ["ours of the best other", *ratios]])


def prompts_table(results: Results, file: str) -> str:
    """Return times to first tokens of prompts sent together, and rates behind long prompts, on one core."""
    content = results.load(file)
    rows = [row for row in content["rows"] if row["cores"] == "0" and row["prompt_len"] is not None]
    header = ["one core"]
    cells = list(dict.fromkeys((row["kind"], row["in_flight"], row["prompt_len"]) for row in rows))
    for kind, count, length in cells:
        what = "first token: median, last, ms" if kind == "first" else "prompt, then decoding, tokens/s"
        header.append(f"{count} x {length:,}: {what}")
    lines = []
    for engine in content["engines"]:
        line = [_name(engine, content["engines"])]
        for cell in cells:
            own = [row for row in rows if (row["kind"], row["in_flight"], row["prompt_len"]) == cell]
            line.append(_pair(next(row for row in own if row["engine"] == engine)))
        lines.append(line)
    return to_table(header, lines)


def _pair(row: Mapping[str, Any]) -> str:
    if row["kind"] == "first":
        return f"{row['first_token_s']['median'] * 1e3:.0f}, {row['last_first_token_s']['median'] * 1e3:.0f}"
    return f"{row['prompt_tokens_per_s']['median']:.0f}, {row['decode_tokens_per_s']['median']:.0f}"


def _shown(rate: float) -> str:
    return f"{rate:.0f}" if rate >= 20 else f"{rate:.1f}"


def _rate(rows: Sequence[Mapping[str, Any]], engine: str, cores: str, count: int, figure: str) -> float:
    wanted = (engine, cores, count)
    row = next(row for row in rows if (row["engine"], row["cores"], row["in_flight"]) == wanted)
    return float(row[figure]["median"])


def _name(engine: str, facts: Mapping[str, Mapping[str, Any]]) -> str:
    """Return an engine's name with its version."""
    known = facts[engine]
    if engine == _OURS:
        return bold("ours, `ar`")
    if engine == "transformers":
        return f"transformers {_short(known['transformers'])} `generate`"
    if engine == "vllm":
        return f"vLLM {_short(known['version'])} (CPU)"
    return f"{engine} {known['version']}"


def _short(version: str) -> str:
    return ".".join(version.split(".")[:2])
