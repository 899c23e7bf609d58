"""The frames of `minedraft top` at the widths of terminals, and over a restart of the service."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console, RenderableType

from minedraft.cli.top import Frames
from minedraft.cli.top_view import Throughput, render_frame, sparkline
from minedraft.errors import Unavailable
from minedraft.output import BatchState, FaultState, ServiceStatus, WorkerState

STATUS = ServiceStatus(
    state="degraded",
    mode="minedraft",
    is_mode_auto=True,
    draft_len=16,
    is_draft_len_auto=True,
    max_batch_size=8,
    num_waiting=2,
    batches=(BatchState("A", 4, 1234, 512, 0.591, 1.164), BatchState("B", 8, 1233, 1033, 0.5, 1.0)),
    workers=(
        WorkerState("drafter", "lost", "a-small-model", "cpu:0", restarts=1),
        WorkerState("verifier", "ready", "a-big-model", "cpu:1", num_blocks=64, num_free_blocks=52, busy=0.83,
                    step_ms=9.53, num_queued=1),
    ),
    uptime_s=7200.0,
    tokens_per_s=412.7,
    output_tokens=1000,
    overlap_efficiency=0.93,
    mode_reason="expected tokens/s at 7 in flight: " + "ar 690, minedraft 425 (k 2.0), " * 4,
    errors={"OVERLOADED": 4},
    faults={"drafter_lost": 1, "stale_proposals": 3},
    recent_faults=(FaultState("drafter_lost", 3.2),),
)  # fmt: skip


def printed(frame: RenderableType, width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(frame)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [80, 120])
def test_a_frame_shows_both_batches_and_workers_in_the_width_that_there_is(width: int) -> None:
    history = Throughput()
    for n in range(200):
        history.add(replace(STATUS, uptime_s=float(n), output_tokens=400 * n))
    lines = printed(render_frame(STATUS, "unix:/run/minedraft.sock", history, width), width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines[2:]), "only the head and the reason may be cut"
    text = "\n".join(lines)
    assert "degraded  mode minedraft (auto)  m = 8  k <= 16  up 2.0 h" in lines[0]
    rows = [line.split() for line in lines]
    assert ["A", "■■■■····", "4/8", "512", "59%", "1.16", "1234"] in rows
    assert ["waiting", "2"] in rows
    assert any(row[:2] == ["drafter", "lost"] for row in rows)
    verifier = next(row for row in rows if row[:2] == ["verifier", "ready"])
    assert verifier[3:8] == ["83%", "1", "9.5", "ms", "12/64"]
    assert ("a-big-model" in text) is (width == 120)
    assert "400.0 tokens/s" in text
    assert "drafter_lost 1 (3 s ago), stale_proposals 3" in text
    assert "OVERLOADED 4" in text
    assert lines[-3].endswith("exposed 0.0 s"), "one line"


def test_a_sparkline_is_of_the_last_values_and_as_high_as_the_largest() -> None:
    assert sparkline([9, 0, 4, 8], 3) == "▁▅█"
    assert sparkline([0, 0], 5) == "▁▁"
    assert sparkline([], 5) == ""


def test_frames_go_on_over_a_restart_of_the_service() -> None:
    answers = [
        replace(STATUS, uptime_s=10.0, output_tokens=100),
        replace(STATUS, uptime_s=11.0, output_tokens=150),
        Unavailable("connection refused"),
        replace(STATUS, uptime_s=0.5, output_tokens=0),  # another process: its counts begin anew
        replace(STATUS, uptime_s=1.5, output_tokens=70),
    ]

    def ask() -> ServiceStatus:
        answer = answers.pop(0)
        if isinstance(answer, Unavailable):
            raise answer
        return answer

    frames = Frames(ask, "unix:/x")
    seen = ["\n".join(printed(frames.next(80), 80)) for _ in range(5)]
    assert "50.0 tokens/s" in seen[1]
    assert "no answer from unix:/x, trying again: connection refused" in seen[2]
    assert "50.0 tokens/s" in seen[2], "the last frame stays"
    assert "no answer" not in seen[3]
    assert "70.0 tokens/s" in seen[4]
    assert "most 70" in seen[4]
