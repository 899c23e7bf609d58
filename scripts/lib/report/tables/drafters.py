"""The trained drafters, of the files of `scripts/train_drafter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.lib.report.markdown import percent, to_table
from scripts.lib.report.results import Results

_FOLDER = "scripts/drafter/results"


def drafters_table(results: Results) -> str:
    """Return tokens a round of the draft model, of the one before it, and of the head, by kind of prompt."""
    model, head = results.load(f"{_FOLDER}/model.json"), results.load(f"{_FOLDER}/head.json")
    kinds = list(model["prompts"])
    lines = [
        ["draft model, greedy, k = 4", *_figures(model["acceptance"], "trained", 4, kinds)],
        ["the same in 6 bits, as it is packed", *_figures(model["acceptance"], "packed", 4, kinds)],
        ["the one before it", *_figures(model["shipped_before"], "trained", 4, kinds)],
        ["head, greedy, k = 3", *_figures(head["acceptance"], "trained", 3, kinds)],
        ["head and lookup, greedy, k = 3", *_figures(head["acceptance"], "trained + lookup", 3, kinds)],
    ]
    return to_table(["tokens a round", *kinds, "all", "all, sampled"], lines)


def _figures(acceptance: Mapping[str, Any], way: str, draft_len: int, kinds: list[str]) -> list[str]:
    greedy = [acceptance["greedy"][kind][way] for kind in [*kinds, "all"]]
    return [f"{part['tokens_per_round'][draft_len - 1]:.2f}" for part in [*greedy, acceptance["sampled"]["all"][way]]]


_SHARE_OF = "sd m=8 k=2 T=0 all"  # the setting whose times give a draft's share of a verify
_SETTINGS = {
    "`sd` 4": "sd m=4 k=2 T=0 all",
    "`sd` 8": _SHARE_OF,
    "`sd` 16": "sd m=16 k=2 T=0 all",
    "2+2": "minedraft m=2 k=2 T=0 all",
    "4+4": "minedraft m=4 k=2 T=0 all",
    "8+8": "minedraft m=8 k=2 T=0 all",
}


def students_table(results: Results, file: str) -> str:
    """Return every drafter of `scripts/bench/drafts --vary drafter`: its acceptance, its cost, and tokens/s with it."""
    rows = {(row["way"], row["setting"]): row for row in results.load(file)["rows"]}
    settings = {name: setting for name, setting in _SETTINGS.items() if ("shipped", setting) in rows}
    lines = []
    for way, rounds, tokens in _drafters(results):
        row = rows.get((way, _SHARE_OF))
        share = percent(row["draft_ms"] / 2 / row["verify_ms"]) if row else ""
        found = [rows.get((way, setting)) for setting in settings.values()]
        rates = [f"{one['tokens_per_s']:.0f}" if one else "" for one in found]
        lines.append([way, tokens, *(f"{rounds[k - 1]:.2f}" for k in (2, 4)), share, *rates])
    header = ("drafter", "trained tokens, thousands", "k = 2", "k = 4", "a draft of a verify", *settings)
    return to_table(header, lines)


def _drafters(results: Results) -> list[tuple[str, list[float], str]]:
    """Return each drafter's name, greedy tokens a round at k = 1, 2 ..., and training tokens of its file."""
    model, head = results.load(f"{_FOLDER}/model.json"), results.load(f"{_FOLDER}/head.json")
    found = [
        (
            name,
            made["acceptance"]["greedy"]["all"]["trained"]["tokens_per_round"],
            f"{made['trained_tokens'] / 1e3:.0f}",
        )
        for name, made in (("shipped", model), ("head", head))
    ]
    for row in results.load(f"{_FOLDER}/students.json"):
        name = f"{row['layers']} layers"
        found.append((name, row["evaluation"]["greedy"], f"{row['trained_tokens'] / 1e3:.0f}"))
    return found
