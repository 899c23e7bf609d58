"""Which servers run together, and what the user is told before each step."""

from __future__ import annotations

from pathlib import Path

from minedraft.models.catalogue import Pair
from scripts.lib.vllm.comparison import SLOW, Comparison
from scripts.lib.vllm.course import Course, Step
from scripts.lib.vllm.memory import together
from scripts.lib.vllm.ways import Way

SIZES = {Way.AR: 4, Way.OWN: 5, Way.SERIAL: 4, Way.ALTERNATING: 4}


def test_servers_that_fit_run_together() -> None:
    (only,) = together(list(SIZES), SIZES, 17)
    assert set(only) == set(SIZES)
    assert only[-1] is Way.ALTERNATING, "which shows the answer"


def test_the_ways_that_are_compared_most_closely_are_never_parted() -> None:
    assert together(list(SIZES), SIZES, 12) == [[Way.AR, Way.SERIAL, Way.ALTERNATING], [Way.OWN]]
    assert together(list(SIZES), SIZES, 9) == [[Way.SERIAL, Way.ALTERNATING], [Way.OWN, Way.AR]]
    assert together(list(SIZES), SIZES, 1) == [[Way.SERIAL, Way.ALTERNATING], [Way.AR], [Way.OWN]]
    assert together([Way.AR], SIZES, 1) == [[Way.AR]]


def test_a_half_that_nobody_asked_for_is_measured_serially_only(tmp_path: Path) -> None:
    ways = [Way.AR, Way.SERIAL, Way.ALTERNATING]
    (tmp_path / "model.safetensors").write_bytes(bytes(1000))
    comparison = Comparison(Pair(tmp_path, tmp_path), ways, [4], 3, "bfloat16", 16, 2, 0.8)
    steps = comparison.steps(ways)
    assert [step.label for step in steps[:5]] == [
        "starting vLLM: ar, serial, alternating",
        "serial, 2 in flight, repeat 1",
        "ar, 4 in flight, repeat 1",
        "serial, 4 in flight, repeat 1",
        "alternating, 4 in flight, repeat 1",
    ]
    assert [step.label for step in steps if SLOW in step.label][-1] == f"alternating{SLOW}, 4 in flight, repeat 2"
    assert not [step for step in comparison.steps([Way.AR]) if SLOW in step.label]


def test_the_time_left_is_that_of_the_steps_ahead_without_a_way_that_has_failed() -> None:
    steps = [Step("one", 10.0, Way.AR), Step("two", 20.0, Way.OWN), Step("three", 30.0, Way.SERIAL)]
    told: list[tuple[str, float]] = []
    course = Course(list(steps), lambda label, left_s: told.append((label, left_s)))
    with course.step(steps[0]):
        pass
    course.drop(Way.OWN)
    with course.step(steps[2]):
        pass
    assert told[0] == ("one", 60.0)
    label, left_s = told[1]
    assert label == "three"
    assert left_s < 30.0, "the first one took no time"
