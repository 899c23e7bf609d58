"""The trained drafters, of the files of `scripts/train_drafter`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from scripts.lib.report.markdown import percent, to_table
from scripts.lib.report.pictures import Line, Panel
from scripts.lib.report.results import Results
from scripts.lib.studies.sizes import best_of

_FOLDER = "scripts/drafter/results"
STUDENTS_SERVED = "drafting/students.json"
_KINDS = ("chat", "code", "summarising", "tools")


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


_STUDENTS = f"{_FOLDER}/students.json"
_SHARED_LOAD = 4  # requests in flight of the sd runs whose times give a draft's share of a verify


def students_table(results: Results, file: str) -> str:
    """Return the draft models of several sizes: how each was trained, its acceptance, and its cost in a service.

    Args:
        file: of `scripts/bench/studies/sizes`, with the drafters' names as `student_name` gives them.
    """
    served = results.load(file)["rows"]
    lines = []
    for row in _by_start(results.load(_STUDENTS)["rows"]):
        greedy = {kind: part["greedy"] for kind, part in row["evaluation"].items() if "greedy" in part}
        rounds = {kind: part["tokens_per_round"] for kind, part in greedy.items()}
        trained = [f"{row['trained_tokens'] / 1e3:.0f}", f"{row['seconds']}"] if row["start"] else ["", ""]
        name = student_name(row)
        lines.append([name, *trained, *_shown(greedy["all"]["agreement"], rounds), draft_share(served, name)])
    head = {
        kind: part["trained"] for kind, part in results.load(f"{_FOLDER}/head.json")["acceptance"]["greedy"].items()
    }
    rounds = {kind: part["tokens_per_round"] for kind, part in head.items()}
    lines.append(["head", "", "", *_shown(head["all"]["accepted_at"][0], rounds), draft_share(served, "head")])
    header = ("drafter", "trained tokens, thousands", "seconds", "agreement", "k = 2", "k = 3", "k = 4", *_KINDS)
    return to_table([*header, "a draft of a verify"], lines)


def student_rates_table(results: Results, file: str) -> str:
    """Return tokens/s of every drafter of a file of sizes by mode and load, each with the k that gives most."""
    rows = results.load(file)["rows"]
    ways = sorted({(row["mode"] != "ar", row["mode"] == "minedraft", row["in_flight"], row["mode"]) for row in rows})
    columns = [(mode, num) for _, _, num, mode in ways]
    lines = []
    for name in dict.fromkeys(row["drafter"] for row in rows):
        found = [best_of(rows, name, mode, num) for mode, num in columns]
        cells = [_rate(one) if one else "" for one in found]
        lines.append([name or "none", *cells])
    return to_table(["drafter", *(f"`{mode}` {num}" for mode, num in columns)], lines)


def students_chart(results: Results) -> Sequence[Panel]:
    """Return tokens a round, the cost of a draft token, and tokens/s over the layers of a draft model."""
    rows, served = results.load(_STUDENTS)["rows"], results.load(STUDENTS_SERVED)["rows"]
    starts = {"target": "from the target's layers", "drafter": "from the shipped one's layers"}
    # The shipped one ends both lines: it is of the same making.
    groups = {label: [row for row in rows if row["start"] in (start, None)] for start, label in starts.items()}
    rounds, shares, rates = [], [], []
    for label, group in groups.items():
        if all(row["start"] is None for row in group):
            continue
        group.sort(key=lambda row: int(row["layers"]))
        xs = tuple(float(row["layers"]) for row in group)
        got = tuple(float(row["evaluation"]["all"]["greedy"]["tokens_per_round"][3]) for row in group)
        rounds.append(Line(label, xs, got))
    named = {student_name(row): float(row["layers"]) for row in rows if row["start"] != "itself"}
    costs = [(layers, _share(served, name)) for name, layers in sorted(named.items(), key=lambda one: one[1])]
    known = [(layers, round(share, 3)) for layers, share in costs if share is not None]
    shares.append(
        Line(f"of a verify, sd, {_SHARED_LOAD} in flight", tuple(x for x, _ in known), tuple(y for _, y in known))
    )
    for mode, num in sorted({(row["mode"], row["in_flight"]) for row in served if row["mode"] != "ar"}):
        best: dict[float, float] = {}
        for name, layers in named.items():
            if one := best_of(served, name, mode, num):
                best[layers] = max(best.get(layers, 0.0), float(one["tokens_per_s"]))
        rates.append(Line(f"{mode} {num}", tuple(sorted(best)), tuple(best[layers] for layers in sorted(best))))
    return [
        Panel("Tokens a round, greedy, k = 4", "layers", "tokens a round", tuple(rounds)),
        Panel("Cost of a draft token", "layers", "share of a verify", tuple(shares)),
        Panel("The better start, the best k", "layers", "tokens/s", tuple(rates)),
    ]


def _shown(agreement: float, rounds: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the agreement, tokens a round of all prompts at k = 2 to 4, and of each kind at k = 4."""
    figures = [agreement, *(rounds["all"][k - 1] for k in (2, 3, 4)), *(rounds[kind][3] for kind in _KINDS)]
    return [f"{figure:.2f}" for figure in figures]


def student_name(row: Mapping[str, Any]) -> str:
    """Return the name of a row of `scripts/train_drafter compare`."""
    if row["start"] is None:
        return "shipped"
    if row["start"] == "itself":
        return "shipped, trained on"
    return f"{row['layers']} layers" + (", from the shipped" if row["start"] == "drafter" else "")


def draft_share(served: Sequence[Mapping[str, Any]], name: str) -> str:
    """Return what a draft token of a drafter costs of a verify of the same run; empty if it was not served."""
    share = _share(served, name)
    return "" if share is None else percent(share)


def _share(served: Sequence[Mapping[str, Any]], name: str) -> float | None:
    runs = [row for row in served if row["drafter"] == name and row["mode"] == "sd"]
    found = [row["draft_ms"] / row["k"] / row["verify_ms"] for row in runs if row["in_flight"] == _SHARED_LOAD]
    return median(found) if found else None


def _by_start(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    order = ("target", "drafter", None, "itself")
    return sorted(rows, key=lambda row: (order.index(row["start"]), row["layers"]))


def _rate(row: Mapping[str, Any]) -> str:
    return f"{row['tokens_per_s']:.0f}" + (f" (k = {row['k']})" if row["k"] else "")
