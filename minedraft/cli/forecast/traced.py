"""Rows like those of a benchmark, from the trace that a service wrote while it worked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Any

from minedraft.bench.measured import MeasuredRow
from minedraft.errors import ConfigError
from minedraft.observe.trace_events import BATCH_CATEGORIES, LANES
from minedraft.observe.trace_reader import no_trace, read_records
from minedraft.theory.fit import Measured
from minedraft.types import Mode, Role

_LEAST_ROUNDS = 8
"""Rounds of one kind that make a row."""
_LEAST_SHARE = 0.25
"""The same, as a share of those of the most frequent number of drafts at this load."""


@dataclass(frozen=True, slots=True)
class TracedRound:
    """A committed round. Times in seconds, `at_s` from the start of the trace. `verify_s` and `num_output` are those of
    each of its `num_steps` decode steps."""

    mode: Mode
    batch: str
    at_s: float
    num_requests: int
    num_drafts: int
    num_prompt_tokens: int
    draft_s: float
    verify_s: float
    num_output: float
    num_accepted: int
    num_steps: int

    @property
    def draft_len(self) -> int:
        """Drafts asked for a request; rounded, where requests had different numbers."""
        return round(self.num_drafts / self.num_requests)


def is_trace(path: Path) -> bool:
    """Return whether a file begins like a trace, a list, and not like a benchmark's result."""
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(64).lstrip().startswith("[")
    except (OSError, ValueError):
        return False


def traced_rows(path: Path) -> list[MeasuredRow]:
    """Return a row for each mode, number of requests and number of drafts of which the trace has enough rounds.

    Raises:
        ConfigError: the file is no trace, or has too few rounds of any kind.
    """
    try:
        rounds = list(_rounds(read_records(path)))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise no_trace(path) from None
    kinds: defaultdict[tuple[Mode, int, int], list[tuple[TracedRound, float]]] = defaultdict(list)
    for before, this in pairwise(rounds):
        if _is_steady(before, this):
            step_s = (this.at_s - before.at_s) / this.num_steps
            kinds[this.mode, this.num_requests, this.draft_len].append((this, step_s))
    rows = [_row(*kind, found) for kind, found in sorted(kinds.items()) if len(found) >= _least(kinds, kind)]
    if not rows:
        raise ConfigError("result", str(path), f"has no {_LEAST_ROUNDS} steady rounds of one kind")
    return rows


def _least(kinds: Mapping[tuple[Mode, int, int], Sequence[object]], kind: tuple[Mode, int, int]) -> float:
    """Return how many rounds of a kind make a row: those in which some requests near their end and have fewer drafts
    look like rounds of another number of drafts, but are few."""
    most = max(len(found) for (mode, num_requests, _), found in kinds.items() if (mode, num_requests) == kind[:2])
    return max(_LEAST_ROUNDS, most * _LEAST_SHARE)


def _rounds(records: Sequence[Mapping[str, Any]]) -> Iterator[TracedRound]:
    """Yield the committed rounds. Of a round the trace has its commands, and then the counts of its batch."""
    batches = set(BATCH_CATEGORIES.values())
    mode, batch, now_us = Mode.AR, "", -1.0
    open_rounds: dict[str, dict[str, Any]] = {}
    for record in records:
        args = record.get("args", {})
        if record["ph"] == "i" and record.get("cat") == "mode" and record["name"].startswith("mode "):
            mode = Mode(record["name"].removeprefix("mode "))
            open_rounds.clear()
        elif record["ph"] == "X" and record["cat"] in batches and "requests" in args:
            this = open_rounds.setdefault(record["cat"], {"draft_s": 0.0, "verify_s": 0.0})
            name = "verify_s" if record["tid"] == LANES[Role.VERIFIER] else "draft_s"
            if name == "verify_s" or record["name"].startswith("draft"):
                this[name] += record["dur"] / 1e6
            this["args"] = args
        elif record["ph"] == "C" and record["name"] in batches:
            batch, now_us = record["name"], record["ts"]
        elif record["ph"] == "C" and (found := open_rounds.pop(batch, None)) is not None:
            planned = found.pop("args")
            num_steps = planned.get("steps", 1)
            yield TracedRound(
                mode,
                batch,
                now_us / 1e6,
                planned["requests"],
                planned["drafts"],
                planned["prompt tokens"],
                found["draft_s"],
                found["verify_s"] / num_steps,
                num_output=args["output"] / num_steps,
                num_accepted=args["accepted"],
                num_steps=num_steps,
            )


def _is_steady(before: TracedRound, this: TracedRound) -> bool:
    """Whether a step is that of a system at work: no prompts, the same requests, the batches in turn."""
    is_turn = (before.batch != this.batch) is (this.mode.num_batches > 1)
    is_alike = before.mode is this.mode and abs(before.num_requests - this.num_requests) <= 1
    return is_turn and is_alike and not before.num_prompt_tokens and not this.num_prompt_tokens


def _row(mode: Mode, num_requests: int, draft_len: int, found: Sequence[tuple[TracedRound, float]]) -> MeasuredRow:
    rounds = [this for this, _ in found]
    step_s = median(step_s for _, step_s in found)
    if mode.num_batches > 1 and len(found) > 1:  # the steps of two batches alternate between short and long
        step_s = median((a + b) / 2 for (_, a), (_, b) in pairwise(found))
    tokens_per_round = fmean(this.num_output for this in rounds) / num_requests
    draft_s, verify_s = (median(getattr(this, name) for this in rounds) for name in ("draft_s", "verify_s"))
    rate = num_requests * tokens_per_round / step_s
    accepted_len = fmean(this.num_accepted for this in rounds) / num_requests
    measured = Measured(mode, num_requests, draft_len, draft_s, verify_s, step_s)
    return MeasuredRow(measured, tokens_per_round, rate, rate, mean_accepted_len=accepted_len)
