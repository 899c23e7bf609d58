"""The table of a check: what ran, times, ratios, and what may be claimed. Standard library only, and pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from scripts.gpu.claims import make_claims
from scripts.gpu.scale import FULL, MAIN_DRAFT, MAIN_TARGET

MAX_LINES = 64
_NEVER = "never from one GPU: the throughput of two GPUs"


def summary_lines(content: Mapping[str, Any]) -> list[str]:
    """Return at most MAX_LINES lines for the content of a check's report."""
    claims = [f"  {claim.verdict:14} {claim.text}: {claim.evidence}" for claim in make_claims(content)]
    end = ["what may be claimed:", *claims, f"  {_NEVER}"]
    figures = [line for part in (_machine, _steps, _alone, _bounds, _pair) for line in _shown(part, content)]
    room = MAX_LINES - len(end)
    if len(figures) > room:
        figures = [*figures[: room - 1], "... more in check.json"]
    return figures + end


def _shown(part: Callable[[Mapping[str, Any]], Iterator[str]], content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a part; of a step that was ended in the middle, as far as they go."""
    try:
        yield from part(content)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        yield f"  more in check.json, which lacks what this part shows ({type(error).__name__}: {error})"


def _machine(content: Mapping[str, Any]) -> Iterator[str]:
    facts = content.get("facts", {})
    if not facts:
        yield "machine: unknown, step facts has not run"
        return
    packages = facts.get("packages", {})
    tiny = f"{facts.get('device')}: tiny sizes, which test the check and nothing else"
    what = facts.get("gpu") or (tiny if facts.get("is_tiny") else f"{facts.get('device')} was not found")
    yield f"{what}; torch {packages.get('torch')}, transformers {packages.get('transformers')}"
    yield f"device copy {facts.get('copy_gb_per_s')} GB/s, matmul {facts.get('matmul_tflop_per_s')} TFLOP/s"


def _steps(content: Mapping[str, Any]) -> Iterator[str]:
    steps = content.get("steps", {})
    yield "steps: " + ", ".join(f"{name} {found['result']} {found['seconds']:.0f} s" for name, found in steps.items())
    for name, found in steps.items():
        if found["result"] != "ok":
            yield f"  {name}: {(found['tail'] or ['no output'])[-1][:100]}"


def _alone(content: Mapping[str, Any]) -> Iterator[str]:
    models = {name: found for name, found in content.get("alone", {}).items() if name not in ("failed", "rates")}
    if models:
        yield "A, alone: ms (times the floor) of a forward with m x tokens; ms of commands"
    for name, found in models.items():
        if "skipped" in found:
            yield f"  {name}: {found['skipped']}"
            continue
        rows = sorted(found.get("forwards", []), key=lambda row: (row["tokens"], row["m"]))
        most = max((row["tokens"] for row in rows), default=0)
        shown = [row for row in rows if row["tokens"] in (1, most)]
        cells = [f"{row['m']}x{row['tokens']} {row['ms']:.1f} ({row['ratio']:.2f})" for row in shown]
        beside = [str(found.get("kernels"))]
        if "profile" in found:
            beside.append(f"{found['profile'].get('launches')} launches")
        if "without_graphs" in found:
            beside.append(f"{found['without_graphs']['ms']:.1f} ms without graphs")
        yield f"  {name} ({', '.join(beside)}): " + "  ".join(cells)
        for key in ("verifies", "drafts"):
            cells = [f"m={row['m']} k={row['k']} {row['ms']:.1f}" for row in found.get(key, [])]
            if cells:
                yield f"    {key}: " + "  ".join(cells)


def _bounds(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield what overlapping could give by the times alone, at equal m and at equal requests in flight."""
    alone = content.get("alone", {})
    draft_ms = _command_ms(alone.get(MAIN_DRAFT, {}).get("drafts", []))
    verify_ms = _command_ms(alone.get(MAIN_TARGET, {}).get("verifies", []))
    cells = []
    for m in sorted(draft_ms.keys() & verify_ms.keys()):
        slower_ms = max(draft_ms[m], verify_ms[m])
        cell = f"m={m} {(draft_ms[m] + verify_ms[m]) / slower_ms:.2f}"
        if 2 * m in draft_ms and 2 * m in verify_ms:
            cell += f" ({(draft_ms[2 * m] + verify_ms[2 * m]) / (2 * slower_ms):.2f})"
        cells.append(cell)
    if cells:
        yield f"  two such devices, {MAIN_TARGET} and {MAIN_DRAFT}, bound of sd m (of sd 2m): " + "  ".join(cells)


def _command_ms(rows: list[dict[str, Any]]) -> dict[int, float]:
    """Return milliseconds by requests, of the commands with the k of the pair."""
    return {row["m"]: row["ms"] for row in rows if row["k"] == FULL.draft_len}


def _pair(content: Mapping[str, Any]) -> Iterator[str]:
    pair = content.get("pair", {})
    experiments = {name: pair[name] for name in ("B", "C", "D") if name in pair}
    if not experiments:
        return
    times = pair.get("draft_times")
    yield f"B: drafter sleeps (times {times}); C: drafter on cores; D: drafter on the same device"
    names = "  tok/s  of sd m  of sd 2m  bound  draft  verify   step  overlap  control  gpu busy"
    yield f"  {'mode':<25}{names}"
    for name, found in experiments.items():
        for row in found.get("rows", []):
            config, median = row["config"], row["median"]
            busy = "-" if row.get("gpu_busy") is None else f"{row['gpu_busy']:.0%}"
            yield (
                f"  {name} {config['label']:<22} {median['tokens_per_s']:>7.0f} {row['of_sd_m']:>8.2f} "
                f"{row['of_sd_2m']:>9.2f} {row['bound']:>6.2f} {median['draft_ms']:>6.2f} {median['verify_ms']:>7.2f} "
                f"{median['step_ms']:>6.2f} {median['overlap_efficiency']:>8.2f} {median['control_overhead_ms']:>8.2f}"
                f" {busy:>9}"
            )
        for skipped in found.get("skipped", []):
            yield f"  {name} skipped {skipped}"
    if "generate" in pair:
        yield f"  generate at {pair['generate']['m']} requests: {pair['generate']['tokens_per_s']:.0f} tok/s"
