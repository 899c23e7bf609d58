"""The modes over the length of the prompts, of the file of `scripts/bench/studies/context`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from scripts.lib.report.markdown import to_table
from scripts.lib.report.results import Results


def context_table(results: Results, file: str) -> str:
    """Return times and rates at each length of the prompts, and what overlapping gains at equal requests in flight."""
    header = (
        "models", "prompt", "in flight", "draft, ms", "verify, ms", "bound", "`ar`, tokens/s", "`sd`, tokens/s",
        "`minedraft`, tokens/s", "of `sd`",
    )  # fmt: skip
    return to_table(header, [list(line.values()) for line in context_lines(results.load(file)["tables"])], text=(0,))


def context_lines(tables: Any) -> Iterator[dict[str, str]]:  # noqa: ANN401 - JSON
    """Yield a line for each pair and length. Draft and verify are those of `sd` with all requests in one batch, the
    rates those of full batches while they decode; `ar` is the better one of both devices and the verifier's alone."""
    for table in sorted(tables, key=lambda table: (table["pair"], int(table["kind"]))):
        in_flight = 2 * table["size"]
        rows: dict[str, list[Mapping[str, Any]]] = {}
        for row in table["rows"]:
            if row["config"]["num_in_flight"] == in_flight:
                rows.setdefault(row["config"]["mode"], []).append(row["median"])
        [turns], [overlapped] = rows["sd"], rows["minedraft"]
        draft_ms, verify_ms = turns["draft_ms"], turns["verify_ms"]
        rates = {mode: max(row["decode_tokens_per_s"] for row in found) for mode, found in rows.items()}
        yield {
            "models": table["pair"],
            "prompt": table["kind"],
            "in flight": str(in_flight),
            "draft": f"{draft_ms:.1f}",
            "verify": f"{verify_ms:.1f}",
            "bound": f"{(draft_ms + verify_ms) / max(draft_ms, verify_ms):.2f}x",
            **{mode: f"{rates[mode]:.1f}" for mode in ("ar", "sd", "minedraft")},
            "gain": f"{overlapped['decode_tokens_per_s'] / turns['decode_tokens_per_s']:.2f}x",
        }
