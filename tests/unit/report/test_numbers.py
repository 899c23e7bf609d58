"""Which numbers of a text are measurements, and how a value is written in the form of one."""

from __future__ import annotations

import pytest

from scripts.lib.report.numbers import StaleFact, find_numbers, write_like


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("It keeps 0.66 of 1,898 tokens/s, 17 % less, 5.43x as fast.", ["0.66", "1,898", "17", "5.43"]),
        ("A step takes 20ms, a verify 60-75 ms.", ["20", "60", "75"]),
        ("EAGLE-3 and GPT-4", []),
        ("SmolLM2-135M on an H100 in bfloat16, avx512_bf16, 1.5B, p99, V2: names", []),
        ("`-k 3` and `` a `4` b `` are code, as is `one\nover 2 lines`", []),
        ("[12 of them](docs/13.md) at https://example.org/14", ["12"]),
        ("with k = 2 or 3 and m = 4", []),
        ("1. first of 7\n2. second", ["7"]),
        ("seen <!-- not 5 --> and 6", ["6"]),
        ("version 5.23.0, a 16-bit number, 4+4", ["5.23.0", "16", "4", "4"]),
    ],
)
def test_numbers_of_prose_are_found_and_names_code_and_links_are_not(text: str, numbers: list[str]) -> None:
    assert [number.literal for number in find_numbers(text)] == numbers
    assert [text[number.start : number.end] for number in find_numbers(text)] == numbers


def test_a_fact_is_no_measurement_wherever_its_line_breaks() -> None:
    text = "16 streams at a time need 16 ms; 16\nstreams at once, 116 streams"
    assert [number.literal for number in find_numbers(text, ["16 streams"])] == ["16", "116"]


def test_a_fact_that_the_text_does_not_have_is_refused() -> None:
    with pytest.raises(StaleFact, match="17 streams"):
        find_numbers("16 streams", ["17 streams"])


@pytest.mark.parametrize(
    ("literal", "value", "written"),
    [
        ("0.33", 0.3357, "0.34"),
        ("12", 11.81, "12"),
        ("1,898", 2001.4, "2,001"),
        ("1421", 1421.4, "1421"),
        ("5.23", "5.24.1", "5.24"),
    ],
)
def test_a_value_is_written_with_as_many_decimals(literal: str, value: float | str, written: str) -> None:
    assert write_like(literal, value) == written


@pytest.mark.parametrize("value", [None, [1], True])
def test_what_is_no_number_is_not_written(value: object) -> None:
    with pytest.raises(TypeError, match="is no number"):
        write_like("1", value)
