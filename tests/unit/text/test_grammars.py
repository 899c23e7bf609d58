"""Compiled grammars: each is compiled once, parsers of one do not feel each other, and what cannot be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from llguidance import LLMatcher

from minedraft.errors import InvalidRequest
from minedraft.text import grammars
from minedraft.text.grammars import Grammars
from tests.support.tiny_models import write_tiny_tokenizer

EOS_ID = 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_tokenizer(folder)
    return folder / "tokenizer.json"


def test_a_grammar_is_compiled_once_and_the_tokenizer_read_once(
    tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_reads, compiled = 0, []

    def source() -> str:
        nonlocal num_reads
        num_reads += 1
        return tokenizer.read_text()

    def compile_one(tokenizer: object, grammar: str, log_level: int) -> LLMatcher:
        compiled.append(grammar)
        return LLMatcher(tokenizer, grammar, log_level=log_level)

    monkeypatch.setattr(grammars, "LLMatcher", compile_one)
    found = Grammars(source, [EOS_ID])
    assert num_reads == 0, "not before the first grammar"
    for _ in range(3):
        found.check("regex", "a+")
        found.start("regex", "a+")
        found.check("regex", "b+")
    assert (num_reads, len(compiled)) == (1, 2)


def test_parsers_of_one_grammar_do_not_feel_each_other(tokenizer: Path) -> None:
    found = Grammars(lambda: str(tokenizer), [EOS_ID])
    alone = Grammars(lambda: str(tokenizer), [EOS_ID])
    for kind, text in (("regex", "(ab|cd)*x"), ("json_schema", '{"enum": ["ab", "cd"]}'), ("lark", "start: /[ab]+/")):
        first = found.start(kind, text)
        beginning = first.compute_bitmask()
        for _ in range(4):
            [token, *_] = [i for i in range(3, 320) if first.validate_tokens([i]) == 1]
            assert first.consume_token(token)
        second = found.start(kind, text)
        assert second.compute_bitmask() == beginning == alone.start(kind, text).compute_bitmask()
        assert first.rollback(4)
        assert first.compute_bitmask() == beginning


def test_a_grammar_that_cannot_be_used_is_named_each_time(tokenizer: Path) -> None:
    found = Grammars(lambda: str(tokenizer), [EOS_ID])
    for kind, text in (("regex", "a(b"), ("json_schema", "{"), ("lark", "start: <|no_such_token|>")) * 2:
        with pytest.raises(InvalidRequest, match="cannot be used") as caught:
            found.check(kind, text)
        assert caught.value.field == kind


def test_a_tokenizer_that_llguidance_cannot_read_is_the_reason_given() -> None:
    found = Grammars(lambda: "{}", [EOS_ID])
    with pytest.raises(InvalidRequest, match="tokenizer is of a kind for which grammars are not known"):
        found.check("regex", "a")


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("regex", r"[^\s\S]"),
        ("lark", "start: start"),
        ("json_schema", '{"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}'),
    ],
)
def test_a_grammar_that_no_text_matches_is_refused_instead_of_answered_by_nothing(
    tokenizer: Path, kind: str, text: str
) -> None:
    found = Grammars(lambda: str(tokenizer), [EOS_ID])
    with pytest.raises(InvalidRequest, match="no text matches it"):
        found.check(kind, text)


def test_a_grammar_that_the_empty_text_matches_can_be_used(tokenizer: Path) -> None:
    Grammars(lambda: str(tokenizer), [EOS_ID]).check("regex", "a{0}")
