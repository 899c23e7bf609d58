"""The plugin inside vLLM, of the file of `scripts/vllm`."""

from __future__ import annotations

from minedraft.vllm.guide.known_limits import KNOWN_LIMITS
from scripts.lib.report.markdown import bold, percent, times, to_table
from scripts.lib.report.results import Results

_WAYS = {
    "ar": "vLLM alone",
    "vllm draft model": "vLLM's own draft-model speculation",
    "serial": "our drafter, in turns",
    "alternating": bold("our drafter, two groups"),
}


def vllm_table(results: Results, file: str) -> str:
    """Return tokens/s of each way over requests in flight, at the drafter's own pace and slowed to that of a verify."""
    content = results.load(file)
    own, paced = content["own_pace"], content["paced"]
    counts = [line["in_flight"] for line in own["lines"]]
    slowed = [line["in_flight"] for line in paced["lines"]]
    pace = f"the drafter slowed to {paced['drafter_takes_of_a_verify']} of a verify"
    header = ["tokens/s, in flight", *map(str, counts), *(f"{count}, {pace}" for count in slowed)]
    lines = []
    for way, name in _WAYS.items():
        rates = [own["medians"].get(f"{way}, {count}") for count in counts]
        if any(rates):  # the way was measured
            rates += [paced["medians"].get(f"{way}, {count}") for count in slowed]
            lines.append([name, *("" if rate is None else f"{rate:.0f}" for rate in rates)])
    both = [*own["lines"], *paced["lines"]]
    lines.append(["two groups of in turns", *(times(line["alternating_of_serial"]) for line in both)])
    lines.append(["waits for drafts, of the run", *(percent(line["blocked"]) for line in both)])
    steady = [line.get("blocked_steady") for line in both]
    if any(share is not None for share in steady):  # files of before do not tell
        lines.append(
            ["while all answers are in flight", *("" if share is None else percent(share) for share in steady)]
        )
    return to_table(header, lines)


def vllm_limits_table(results: Results) -> str:
    """Return what is known not to work in vLLM itself, and what to do instead, as `minedraft vllm-doctor` says it."""
    rows = [[limit.where, limit.what, limit.instead] for limit in KNOWN_LIMITS]
    return to_table(["where", "what", "instead"], rows, text=(0, 1, 2))
