"""What is gained, and where it loses, at a glance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.lib.report.markdown import bold, times, to_table
from scripts.lib.report.results import Results


def headline_table(results: Results) -> str:
    """Return rates with 16 requests in flight beside what each is to be compared with, the gains first."""
    pairs = sorted(_pairs(results), key=lambda pair: pair[1] / pair[3], reverse=True)
    lines = [
        [ours, f"{rate:.0f}", other, f"{base:.0f}", bold(times(rate / base)) if rate >= base else times(rate / base)]
        for ours, rate, other, base in pairs
    ]
    return to_table(["16 requests in flight", "tokens/s", "compared with", "tokens/s", ""], lines, text=(0, 2))


def _pairs(results: Results) -> Iterator[tuple[str, float, str, float]]:
    peers = _peers(results.load("peers/smollm2.json"))
    ours = peers.pop("minedraft ar")
    names = {"vllm": "vLLM", "transformers": "transformers' `generate`"}
    best = max(peers, key=lambda name: peers[name])
    yield "plain decoding (`ar`), one core", ours, f"{names.get(best, best)}, the best other engine", peers[best]
    pair = _modes(results.load("smollm2.json"))
    overlapped = pair["minedraft"]
    yield "overlapped speculation (`minedraft`)", overlapped, "the same in turns (`sd`)", pair["sd"]
    yield "overlapped speculation", overlapped, "no speculation (`ar`) on the same two cores", pair["ar"]
    plugin = results.load("vllm/smollm2.json")["own_pace"]["medians"]
    groups = plugin["alternating, 16"]
    yield "inside vLLM: our drafter, two groups", groups, "our drafter, in turns", plugin["serial, 16"]
    yield "inside vLLM: our drafter, two groups", groups, "vLLM's own speculation", plugin["vllm draft model, 16"]
    yield "inside vLLM: our drafter, two groups", groups, "vLLM alone", plugin["ar, 16"]


def _peers(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates of steady decoding on one core by engine."""
    wanted = ("fixed", "0", 16)
    rows = [row for row in content["rows"] if (row["kind"], row["cores"], row["in_flight"]) == wanted]
    return {row["engine"]: row["decode_tokens_per_s"]["median"] for row in rows}


def _modes(content: Mapping[str, Any]) -> dict[str, float]:
    """Return the rates with prompts, ramp and tail by mode."""
    rows = [row for table in content["tables"] for row in table["rows"] if row["config"]["num_in_flight"] == 16]
    return {row["config"]["mode"]: row["median"]["tokens_per_s"] for row in rows}
