"""The trace file: its format, that it is whole whatever happens, and that it stays bounded."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minedraft.core import events
from minedraft.errors import ConfigError
from minedraft.messages import LinkStats, Timing
from minedraft.observe.trace import TraceFile, Tracer
from minedraft.observe.trace_reader import Note, read_trace
from minedraft.types import Batch, Mode, Role
from tests.support.processes import until
from tests.unit.observe.trace_format import check_trace

MS = 1_000_000
EVENTS: list[tuple[float, events.Event]] = [
    (10.0, events.ModeChanged(Mode.MINEDRAFT, 4, 3, "start")),
    (10.0, events.RoundPlanned(Batch.A, 1, 2, num_prompt_tokens=7, num_drafts=5)),
    (10.1, events.Drafted(Batch.A, 1, Timing(busy_ns=30 * MS, start_ns=10_020 * MS), is_prefill=False)),
    (10.2, events.Drafted(Batch.B, 2, Timing(busy_ns=30 * MS, start_ns=10_050 * MS), is_prefill=True)),
    (10.2, events.Drafted(Batch.B, 2, Timing(busy_ns=1 * MS, start_ns=10_090 * MS), is_prefill=False, is_ahead=True)),
    (10.2, events.Verified(Batch.A, 1, Timing(2_500, forward_ns=90 * MS, busy_ns=100 * MS, start_ns=10_060 * MS))),
    (10.2, events.RoundCommitted(Batch.A, 1, 2, 3, ((3, 2), (2, 0)), is_prefill=False, num_active=2)),
    (10.3, events.WorkerLeft(Role.DRAFTER, "drafter: killed", LinkStats())),
    (10.4, events.RoundAbandoned(Batch.B, 2)),
    (10.5, events.CoresChanged(Role.VERIFIER, (0, 1), Timing(busy_ns=MS, start_ns=10_400 * MS))),
]


def traced(path: Path, happened=EVENTS, **options) -> list[dict]:
    tracer = Tracer(path, 'a "title"', **options)
    for now_s, event in happened:
        tracer.observe(event, now_s)
    tracer.close()
    records = json.loads(path.read_text())
    check_trace(records)
    return records


def test_a_trace_has_every_command_count_and_note_in_the_standard_format(tmp_path: Path) -> None:
    records = traced(tmp_path / "t.json")
    by_name = {record["name"]: record for record in records}
    verify = by_name["verify A"]
    assert (verify["ts"], verify["dur"], verify["cat"]) == (60_000.0, 100_000.0, "batch A")
    sizes = {"round": 1, "requests": 2, "prompt tokens": 7, "drafts": 5}
    assert verify["args"] == {**sizes, "queued us": 2, "forwards us": 90_000}
    assert {
        "draft A",
        "prefill B",
        "run ahead B",
        "change of cores",
        "mode minedraft",
        "drafter_dead",
    } <= by_name.keys()
    assert by_name["drafter_dead"]["args"] == {"cause": "drafter: killed"}
    assert by_name["tokens of a round"]["args"] == {"output": 3, "accepted": 2, "rejected": 3}
    assert by_name["batch A"]["args"] == {"requests": 2}
    lanes = {r["tid"]: r["args"]["name"] for r in records if r["name"] == "thread_name"}
    assert lanes == {1: "verifier", 2: "drafter", 3: "modes and faults"}


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    traced(tmp_path / "t.json")
    trace = read_trace(tmp_path / "t.json")
    assert trace.title == 'a "title"'
    bars = [(bar.role, bar.batch, bar.number, bar.is_prefill) for bar in trace.bars]
    assert bars == [
        (Role.DRAFTER, Batch.A, 1, False),
        (Role.DRAFTER, Batch.B, 2, True),
        (Role.VERIFIER, Batch.A, 1, False),
        (Role.DRAFTER, Batch.B, 2, False),
    ]
    assert math.isclose(trace.bars[2].end_s, 0.160)
    assert Note(0.0, "mode", "mode minedraft") in trace.notes
    assert [note.text for note in trace.notes if note.category == "fault"] == ["drafter_dead", "round 2 given up"]


def test_the_file_is_whole_after_every_write_and_readable_if_one_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    file = TraceFile(path, ['{"name":"process_name","ph":"M","pid":1,"args":{"name":"x"}}'])
    assert len(json.loads(path.read_text())) == 1
    note = {"name": "n", "cat": "mode", "ph": "i", "ts": 1.5, "pid": 1, "tid": 3, "s": "t", "args": {}}
    for count in range(2, 5):
        file.append([json.dumps(note)])
        assert len(json.loads(path.read_text())) == count
    whole = path.read_text()
    path.write_text(whole[:-20])  # as after a crash of the machine
    assert len(read_trace(path).notes) == 2
    file.close()


KILLED = """
import sys, itertools
from pathlib import Path
from minedraft.core import events
from minedraft.messages import Timing
from minedraft.observe.trace import Tracer
from minedraft.types import Batch
tracer = Tracer(Path(sys.argv[1]), "x")
for n in itertools.count():
    tracer.observe(events.Verified(Batch(n % 2), n, Timing(busy_ns=900, start_ns=n * 1000)), 0.0)
"""


def test_the_trace_of_a_killed_process_can_be_read(tmp_path: Path) -> None:
    """A kill in the middle of a write cuts it at a page's end: the last record may be torn, and no other."""
    path = tmp_path / "t.json"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(path)])
    try:
        until(lambda: path.exists() and path.stat().st_size > 100_000, 60, "no trace")
    finally:
        process.kill()
        process.wait()
    assert len(read_trace(path).bars) >= path.read_text().count('"verify ') - 1 > 100


def test_a_full_file_is_renamed_and_another_one_begins(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    verifies = [
        (n / 10, events.Verified(Batch.A, n, Timing(busy_ns=100 * MS, start_ns=n * 100 * MS))) for n in range(200)
    ]
    traced(path, verifies, max_bytes=4_000)
    check_trace(json.loads((tmp_path / "t.json.1").read_text()))
    assert "the trace goes on" in path.read_text()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["t.json", "t.json.1"]


def test_the_trace_of_a_run_that_was_killed_is_kept_beside_that_of_the_next(tmp_path: Path) -> None:
    traced(tmp_path / "t.json", EVENTS[:1])
    traced(tmp_path / "t.json", EVENTS)
    assert [note.text for note in read_trace(tmp_path / "t.json.1").notes] == ["mode minedraft"]


def test_a_disk_that_fills_up_leaves_a_whole_file(tmp_path: Path, caplog, monkeypatch) -> None:
    path = tmp_path / "t.json"
    tracer = Tracer(path, "x")
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if len(data) > 100:
            real(fd, data[:50], offset)  # a part of it
            raise OSError(28, "No space left on device")
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    for now_s, event in EVENTS:
        tracer.observe(event, now_s)
    tracer.close()
    assert len(json.loads(path.read_text())) == 7, "the names alone"
    assert [record.message for record in caplog.records] == ["the trace ends here: [Errno 28] No space left on device"]
    tracer.observe(*EVENTS[0][::-1])  # is dropped


def test_a_file_that_is_no_trace_is_named(tmp_path: Path) -> None:
    for text in ("", "{}", "[1]", '[{"name": "x"}]', "not json"):
        (tmp_path / "f").write_text(text)
        with pytest.raises(ConfigError, match="is not a trace"):
            read_trace(tmp_path / "f")
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_trace(tmp_path / "absent")


def test_a_trace_that_cannot_be_written_is_a_wrong_setting(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trace is .*: cannot be written: No such file or directory"):
        Tracer(tmp_path / "absent" / "t.json", "x")
