import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.text.tokenizer import StopFinder


def _run(stop: tuple[str, ...], pieces: list[str]) -> tuple[str, bool]:
    finder = StopFinder(stop)
    shown = ""
    for piece in pieces:
        text, found = finder.push(piece)
        shown += text
        if found:
            return shown, True
    return shown + finder.flush(), False


@pytest.mark.parametrize(
    ("stop", "pieces", "shown", "found"),
    [
        (("END",), ["abc END def"], "abc ", True),
        (("END",), ["abc E", "N", "D"], "abc ", True),
        (("END",), ["abc EN"], "abc EN", False),
        (("aab",), ["aaa", "ab"], "aa", True),
        (("\n\n", "\n"), ["a\n", "\nb"], "a", True),
        (("bcd", "c"), ["ab", "cd"], "ab", True),
        (("abc", "bc"), ["xabc"], "x", True),
        ((), ["anything"], "anything", False),
    ],
)
def test_text_is_cut_at_the_first_stop_string(stop, pieces, shown, found):
    assert _run(stop, pieces) == (shown, found)


def test_only_a_possible_beginning_is_held_back():
    finder = StopFinder(("STOP",))
    assert finder.push("go ST") == ("go ", False)
    assert finder.push("ART") == ("START", False)


def test_nothing_is_shown_after_a_stop_string():
    finder = StopFinder(("x",))
    assert finder.push("ax") == ("a", True)
    assert finder.push("b") == ("", True)
    assert finder.flush() == ""


@settings(max_examples=150, deadline=None)
@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3).map(tuple),
    pieces=st.lists(st.text("abc", max_size=4), max_size=8),
)
def test_the_result_does_not_depend_on_how_the_text_was_split(stop, pieces):
    assert _run(stop, pieces) == _run(stop, list("".join(pieces)))
