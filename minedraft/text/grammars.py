"""Compiled grammars of requests.

Scheduler and workers each compile a grammar: what llguidance makes of it cannot be sent to another process. A worker
follows it. The scheduler refuses one that cannot be used before the request is accepted, and for that it compiles it
too: llguidance's `validate_grammar` takes as long (26 ms for 64,000 characters of JSON schema, 0.1 ms for 200), and
without the tokenizer it lets unknown special tokens pass. So that a schema which comes again and again costs once,
the last ones are kept: a copy of a compiled grammar takes a microsecond.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from functools import lru_cache

from llguidance import LLMatcher, LLTokenizer

from minedraft.errors import InvalidRequest

_COMPILE: dict[str, Callable[[str], str]] = {
    "json_schema": LLMatcher.grammar_from_json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "lark": LLMatcher.grammar_from_lark,
}
_MAX_KEPT = 32  # of the largest grammars each takes 1 to 3 MB, of usual ones 0.1 MB


class Grammars:
    """Compiles grammars for one tokenizer, and keeps those used last. For any thread.

    Args:
        source: returns the text or the path of the tokenizer's JSON file; called when the first grammar comes.
        ends: ids of the tokens that end an output.
    """

    def __init__(self, source: Callable[[], str], ends: Collection[int]) -> None:
        self._source = source
        self._ends = sorted(ends) or None
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._compiled = lru_cache(_MAX_KEPT)(self._compile)

    def check(self, kind: str, text: str) -> None:
        """Raise InvalidRequest unless the grammar can be used.

        Args:
            kind: "json_schema", "regex" or "lark".
        """
        self._compiled(kind, text)

    def start(self, kind: str, text: str) -> LLMatcher:
        """Return a parser at the beginning of a text of the grammar; arguments and errors are those of `check`."""
        return self._compiled(kind, text).deep_copy()

    def _compile(self, kind: str, text: str) -> LLMatcher:
        """Return a parser that stays at the beginning: what is kept depends on no output."""
        try:
            matcher = LLMatcher(self._take_tokenizer(kind, text), _COMPILE[kind](text), log_level=0)
        except ValueError as error:
            raise InvalidRequest(kind, text, f"cannot be used: {error}") from None
        if problem := matcher.get_error() or _why_empty(matcher):
            raise InvalidRequest(kind, text, f"cannot be used: {problem}")
        return matcher

    def _take_tokenizer(self, kind: str, text: str) -> LLTokenizer:
        with self._lock:
            if self._tokenizer is None:
                try:
                    self._tokenizer = LLTokenizer(self._source(), eos_token=self._ends)
                except ValueError as error:
                    limit = f"the model's tokenizer is of a kind for which grammars are not known: {error}"
                    raise InvalidRequest(kind, text, limit) from None
            return self._tokenizer


def _why_empty(matcher: LLMatcher) -> str:
    """Return what is wrong with a grammar without a first token: its answer would be empty, which it does not allow."""
    first = matcher.deep_copy()
    first.compute_bitmask()
    return "no text matches it" if first.is_stopped() and not matcher.is_accepting() else ""
