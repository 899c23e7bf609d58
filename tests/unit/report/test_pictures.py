"""Pictures know what they show: another figure asks for another picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.lib.report.pictures import Line, Panel, draw, is_of


def _panels(last: float = 3.0) -> list[Panel]:
    lines = (Line("sd", (1, 2, 4), (1.0, 2.0, last)), Line("minedraft", (2, 4), (1.5, 2.5)))
    return [Panel("a pair", "in flight", "tokens/s", lines, y_level=1.0)]


@pytest.mark.slow
def test_a_picture_shows_its_figures_and_no_others(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    assert not is_of(path, _panels())
    draw(path, _panels())
    assert is_of(path, _panels())
    assert not is_of(path, _panels(last=3.1))
    first = path.read_bytes()
    draw(path, _panels())
    assert path.read_bytes() == first
    assert b">minedraft<" in first
