"""The report of a run, as JSON and as lines for people."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from minedraft.bench.report import machine_facts
from scripts.lib.chaos.run import Plan, Result


def to_json(result: Result, plan: Plan, service: Mapping[str, object]) -> dict[str, Any]:
    """Return the whole report. `service`: settings of the service that say something."""
    tally = result.tally
    return {
        "machine": machine_facts(),
        "service": dict(service),
        "plan": asdict(plan),
        "seconds": round(result.seconds, 1),
        "requests": {
            **{name: getattr(tally, name) for name in ("sent", "answered", "left", "refused", "interrupted")},
            "wrong": tally.wrong,
            "lost": tally.lost,
            "tokens": tally.tokens,
            "kinds": dict(sorted(tally.kinds.items())),
            "errors": dict(sorted(tally.reasons.items())),
        },
        "leaked": result.leaked,
        "broken": result.broken,
        "problems": tally.problems,
        "faults": {
            "made": result.num_faults,
            "by_kind": {
                kind: {
                    "count": len(times),
                    "back_s": spread(times),
                    "new_request_answered_s": spread(result.pause_s[kind]),
                }
                for kind, times in sorted(result.back_s.items())
            },
            "counted_by_the_service": result.counts,
        },
        "growth": result.growth,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum."""
    if not values:
        return {}
    ranked = sorted(values)
    p99 = ranked[min(int(0.99 * len(ranked)), len(ranked) - 1)]
    return {name: round(v, 2) for name, v in (("p50", statistics.median(ranked)), ("p99", p99), ("max", ranked[-1]))}


def lines(result: Result) -> list[str]:
    """Return what a person wants to read."""
    counts = f"{result.tally.line()}; {len(result.leaked)} leaked"
    said = [f"{result.seconds:.0f} s of load, {result.num_faults} faults: {counts}"]
    for kind, times in sorted(result.back_s.items()):
        back, pause = spread(times), spread(result.pause_s[kind])
        said.append(
            f"  {len(times):4} x {kind}: back after {back['p50']:.1f} s (max {back['max']:.1f}), "
            f"a new request answered after {pause.get('p50', 0):.1f} s (max {pause.get('max', 0):.1f})"
        )
    for role, figures in result.growth.items():
        rss, fds = figures["rss_mb"], figures["num_fds"]
        assert isinstance(rss, dict)
        assert isinstance(fds, dict)
        said.append(
            f"  {role}: {rss['first']:.0f} to {rss['last']:.0f} MB, {rss['slope_per_hour']:+.1f} MB an hour; "
            f"{fds['first']:.0f} to {fds['last']:.0f} descriptors"
        )
    said += [f"  leaked: {what}" for what in result.leaked]
    said += [f"  {problem}" for problem in result.tally.problems]
    said += [f"  broken: {result.broken}"] if result.broken else []
    said.append("all held" if result.is_good else "BROKEN")
    return said
