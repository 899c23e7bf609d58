"""Checks a request's grammar before it is accepted: the workers, which follow it, then meet none that is wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable

from llguidance import LLMatcher, LLTokenizer

from minedraft.errors import InvalidRequest
from minedraft.text.tokenizer import Tokenizer

_COMPILE: dict[str, Callable[[str], str]] = {
    "json_schema": LLMatcher.grammar_from_json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "lark": LLMatcher.grammar_from_lark,
}


class GrammarCheck:
    """Compiles grammars for one tokenizer, which is taken over when the first grammar comes. For any thread."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._compiled: LLTokenizer | None = None
        self._lock = threading.Lock()

    def check(self, kind: str, text: str) -> None:
        """Raise InvalidRequest unless the grammar can be used.

        Args:
            kind: "json_schema", "regex" or "lark".
        """
        try:
            with self._lock:
                if self._compiled is None:
                    self._compiled = LLTokenizer(self._tokenizer.to_json())
        except ValueError as error:
            limit = f"the model's tokenizer is of a kind for which grammars are not known: {error}"
            raise InvalidRequest(kind, text, limit) from None
        try:
            problem = LLMatcher.validate_grammar(_COMPILE[kind](text), self._compiled)
        except ValueError as error:
            problem = str(error)
        if problem:
            raise InvalidRequest(kind, text, f"cannot be used: {problem}")
