"""The picture of a trace: where its bars lie, what its caption says, which part is shown by default."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from click.testing import CliRunner

from minedraft.cli.timeline import timeline
from minedraft.core import events
from minedraft.errors import ConfigError
from minedraft.messages import Timing
from minedraft.observe.picture import Box, Words, caption, draw_trace, to_svg
from minedraft.observe.timeline import Bar, middle, shares
from minedraft.observe.trace import Tracer
from minedraft.observe.trace_reader import Note, Trace
from minedraft.types import Batch, Role

D, V = Role.DRAFTER, Role.VERIFIER
# In ten seconds the verifier is busy for 6 (A 4, B 2), the drafter for 5 (A 2, B 3), and both for 3.
BARS = (
    Bar(D, Batch.A, 1, 0.0, 2.0),
    Bar(V, Batch.A, 1, 2.0, 6.0),
    Bar(D, Batch.B, 2, 3.0, 6.0),
    Bar(V, Batch.B, 2, 8.0, 10.0),
)
TRACE = Trace("tiny & co", BARS, (Note(7.0, "fault", "drafter_lost"),))


def test_shares_add_up_to_the_window() -> None:
    found = shares(BARS, 0.0, 10.0)
    assert found.busy[V] == {Batch.A: pytest.approx(0.4), Batch.B: pytest.approx(0.2)}
    assert found.busy[D] == {Batch.A: pytest.approx(0.2), Batch.B: pytest.approx(0.3)}
    assert (found.idle(V), found.idle(D), found.both) == (pytest.approx(0.4), pytest.approx(0.5), pytest.approx(0.3))
    part = shares(BARS, 5.0, 9.0)  # bars are cut at its ends
    assert part.busy[V] == {Batch.A: pytest.approx(0.25), Batch.B: pytest.approx(0.25)}
    assert part.both == pytest.approx(0.25)


def test_the_caption_says_how_busy_each_worker_was() -> None:
    assert caption(shares(BARS, 0.0, 10.0)) == (
        "verifier: busy 60.0% (A 40%, B 20%), idle 40.0%; drafter: busy 50.0% (A 20%, B 30%), idle 50.0%\n"
        "both at the same time: 30.0%"
    )


def test_bars_lie_where_they_were_in_the_colour_of_their_batch() -> None:
    shapes = draw_trace(TRACE, 0.0, 10.0)
    boxes = [shape for shape in shapes if isinstance(shape, Box)]
    lanes = [box for box in boxes if box.width == 1005.0 and box.height > 1]
    assert len({box.y for box in lanes}) == 2
    verify_a = next(box for box in boxes if math.isclose(box.x, 80 + 201.0) and box.y == lanes[0].y)
    assert math.isclose(verify_a.width, 402.0 - 0.5)
    colours = {box.colour for box in boxes if box.y == lanes[0].y and box not in lanes}
    assert colours == {"#2b6cb0", "#dd6b20"}
    assert any(isinstance(shape, Words) and shape.text == "drafter_lost" for shape in shapes)
    root = ET.fromstring(to_svg(shapes))
    texts = [element.text for element in root if element.tag.endswith("text")]
    assert "tiny & co" in texts
    assert {"verifier", "drafter", "batch A", "batch B"} <= set(texts)


def test_the_middle_is_of_a_time_in_which_both_worked() -> None:
    alone = [Bar(V, Batch.A, n, float(n), n + 0.9) for n in range(100)]
    drafts = [Bar(D, Batch.B, n, n + 0.1, n + 0.8) for n in range(80, 90)]
    begin_s, end_s = middle([*alone, *drafts], 4)
    assert 80 <= begin_s < end_s <= 90
    assert end_s - begin_s == pytest.approx(3.9)
    assert middle(alone, 4) == (48.0, pytest.approx(51.9))


def test_a_window_without_a_command_is_refused() -> None:
    with pytest.raises(ConfigError, match="no command of a worker"):
        draw_trace(TRACE, 20.0, 30.0)


def write_trace(path: Path) -> None:
    tracer = Tracer(path, "tiny")
    for n in range(30):
        start_ns = n * 10_000_000
        tracer.observe(events.Drafted(Batch(n % 2), n, Timing(busy_ns=4_000_000, start_ns=start_ns), False), 0.0)
        verify = Timing(busy_ns=5_000_000, start_ns=start_ns + 4_000_000)
        tracer.observe(events.Verified(Batch(n % 2), n, verify), 0.0)
    tracer.close()


def test_the_command_draws_a_window_and_prints_its_shares(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.json")
    done = CliRunner().invoke(timeline, [str(tmp_path / "run.json"), "--from", "0.1", "--to", "0.2", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["shown"]["verifier"]["idle"] == pytest.approx(0.5)
    assert found["shown"]["drafter"]["idle"] == pytest.approx(0.6)
    assert found["shown"]["both"] == pytest.approx(0)
    ET.parse(tmp_path / "run.svg")


def test_the_command_names_what_is_wrong(tmp_path: Path) -> None:
    write_trace(tmp_path / "run.json")

    def refused(*more: str) -> str:
        error = CliRunner().invoke(timeline, [str(tmp_path / "run.json"), *more]).exception
        assert isinstance(error, ConfigError)
        return str(error)

    assert "must end in .svg or .png" in refused("-o", "run.gif")
    assert "must be after --from" in refused("--from", "2", "--to", "1")


def test_a_png_is_drawn_of_the_same_shapes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    write_trace(tmp_path / "run.json")
    done = CliRunner().invoke(timeline, [str(tmp_path / "run.json"), "-o", str(tmp_path / "run.png")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
