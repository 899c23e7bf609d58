"""Events of the service as records of a trace, in the Trace Event Format that Perfetto and chrome://tracing read.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
A lane for each worker holds its commands, named by batch; a third one holds faults and changes of the mode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from minedraft.core import events
from minedraft.messages import Timing
from minedraft.observe.faults import fault_of
from minedraft.types import Batch, Role

PROCESS = 1
LANES = {Role.VERIFIER: 1, Role.DRAFTER: 2}
NOTES_LANE = 3
BATCH_CATEGORIES = {batch: f"batch {batch.name}" for batch in Batch}
_COLOURS = {Batch.A: "rail_response", Batch.B: "rail_idle"}  # chrome://tracing's blue and orange

TRACED = (
    events.RoundPlanned,
    events.Drafted,
    events.Verified,
    events.RoundCommitted,
    events.RoundAbandoned,
    events.RequestPreempted,
    events.RequestEnded,
    events.ProposalsDropped,
    events.CommandFailed,
    events.WorkerJoined,
    events.WorkerLeft,
    events.ModeChanged,
    events.CoresChanged,
    events.DraftingSuspended,
    events.DraftingResumed,
    events.PolicyReplaced,
)


class TraceRecords:
    """Makes the records of one trace, whose time begins with its first event. Those that come with every round are
    put together without a JSON encoder, which would take three times as long."""

    def __init__(self) -> None:
        self._origin_ns: int | None = None
        self._plans: dict[int, events.RoundPlanned] = {}  # of rounds that have not ended

    def of(self, event: events.Event, now_s: float) -> Iterator[str]:
        """Yield the records of an event, each a JSON object. now_s: on the scheduler's monotonic clock."""
        if self._origin_ns is None:
            self._origin_ns = round(now_s * 1e9)
        match event:
            case events.RoundPlanned():
                self._plans[event.number] = event
            case events.Drafted():
                kind = "run ahead" if event.is_ahead else "prefill" if event.is_prefill else "draft"
                yield self._command(Role.DRAFTER, kind, event.batch, event.number, event.timing)
            case events.Verified():
                yield self._command(Role.VERIFIER, "verify", event.batch, event.number, event.timing, event.num_steps)
            case events.CoresChanged():
                args = f'"args":{{"cores":{len(event.cores)}}}'
                yield self._span(event.role, "change of cores", "control", event.timing, args)
            case events.RoundCommitted():
                self._plans.pop(event.number, None)
                yield from self._counts(event, now_s)
            case events.RoundAbandoned():
                self._plans.pop(event.number, None)
                yield self._note(f"round {event.number} given up", "fault", now_s)
            case events.ModeChanged():
                sizes = {"m": event.max_batch_size, "k": event.draft_len, "why": event.why}
                yield self._note(f"mode {event.mode.value}", "mode", now_s, sizes)
            case events.WorkerJoined():
                yield self._note(f"{event.info.role.value} joined", "worker", now_s, {"model": event.info.model_name})
            case events.DraftingResumed():
                yield self._note("drafting tried again" if event.is_trial else "drafting resumed", "mode", now_s)
            case events.RequestPreempted():
                yield self._note(f"request {event.request_id} preempted", "request", now_s)
            case _:
                if (fault := fault_of(event)) is not None:
                    yield self._note(fault[0], "fault", now_s, {"cause": fault[1]})

    def note(self, text: str, now_s: float) -> str:
        """Return a record that says something about the trace itself."""
        return self._note(text, "trace", now_s)

    def _command(self, role: Role, kind: str, batch: Batch, number: int, timing: Timing, num_steps: int = 1) -> str:
        args = f'"round":{number}' if num_steps == 1 else f'"round":{number},"steps":{num_steps}'
        if (plan := self._plans.get(number)) is not None:
            args += (
                f',"requests":{plan.num_requests},"prompt tokens":{plan.num_prompt_tokens},"drafts":{plan.num_drafts}'
                f',"queued us":{timing.queue_ns // 1000},"forwards us":{timing.forward_ns // 1000}'
            )
        name, look = f"{kind} {batch.name}", f'"cname":"{_COLOURS[batch]}"'
        return self._span(role, name, BATCH_CATEGORIES[batch], timing, f'{look},"args":{{{args}}}')

    def _span(self, role: Role, name: str, category: str, timing: Timing, rest: str) -> str:
        start_us = self._us(timing.start_ns)
        return (
            f'{{"name":"{name}","cat":"{category}","ph":"X","ts":{start_us:.3f},"dur":{timing.busy_ns / 1e3:.3f},'
            f'"pid":{PROCESS},"tid":{LANES[role]},{rest}}}'
        )

    def _counts(self, event: events.RoundCommitted, now_s: float) -> Iterator[str]:
        verified = accepted = 0
        for num_drafts, accepted_len in event.accepted:
            verified += num_drafts
            accepted += accepted_len
        place = f'"ph":"C","ts":{self._us(round(now_s * 1e9)):.3f},"pid":{PROCESS}'
        yield f'{{"name":"{BATCH_CATEGORIES[event.batch]}",{place},"args":{{"requests":{event.num_requests}}}}}'
        tokens = f'"output":{event.num_output_tokens},"accepted":{accepted},"rejected":{verified - accepted}'
        yield f'{{"name":"tokens of a round",{place},"args":{{{tokens}}}}}'

    def _note(self, name: str, category: str, now_s: float, args: dict[str, Any] | None = None) -> str:
        place = {"ph": "i", "ts": self._us(round(now_s * 1e9)), "pid": PROCESS, "tid": NOTES_LANE, "s": "t"}
        return _record({"name": name, "cat": category, **place, "args": args or {}})

    def _us(self, moment_ns: int) -> float:
        return (moment_ns - (self._origin_ns or 0)) / 1e3


def lane_names(title: str) -> Iterator[str]:
    """Yield the records that name the process and its lanes; they come first in a trace."""
    lanes = {lane: role.value for role, lane in LANES.items()} | {NOTES_LANE: "modes and faults"}
    yield _record({"name": "process_name", "ph": "M", "pid": PROCESS, "args": {"name": title}})
    for lane, name in lanes.items():
        place = {"ph": "M", "pid": PROCESS, "tid": lane}
        yield _record({"name": "thread_name", **place, "args": {"name": name}})
        yield _record({"name": "thread_sort_index", **place, "args": {"sort_index": lane}})


def _record(record: dict[str, Any]) -> str:
    return json.dumps(record, separators=(",", ":"))
