"""Grammars: which tokens may come next, as masks over the logits of every position, drafted ones too.

The target's law at a position, given the tokens before it, is that of the allowed tokens alone, so acceptance needs no
rule of its own: a draft that the grammar does not allow has probability 0 there. The drafter masks its own logits in
the same way, so that its drafts are worth verifying. llguidance does the parsing (10 microseconds a mask).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from minedraft.models.generation_config import read_eos_ids
from minedraft.text.grammars import Grammars
from minedraft.types import SequenceSpec


class Guide:
    """What the grammar of one request allows after tokens of its output.

    A place is named by `tokens`, the prompt and the output so far, and `extra`, tokens after them that are not part of
    the output yet. Parsing goes on from the place before, back or forward. The cost of a move grows with the tokens
    that are new since then and not with the output: `tokens` are those of the call before, save from where `keep`
    said, and more after them.

    Args:
        matcher: at the beginning.
        ends: ids of the tokens that end an output.
        start: where in `tokens` the output begins.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int], start: int) -> None:
        self._matcher = matcher
        self._ends = ends
        self._start = start
        self._taken: list[int] = []
        self._num_kept = 0  # how many of those are the output's for sure

    def keep(self, length: int) -> None:
        """Take note that `tokens` may differ from now on after the first `length`."""
        self._num_kept = min(self._num_kept, max(length - self._start, 0))

    def move_to(self, tokens: Sequence[int], extra: Sequence[int] = ()) -> bool:
        """Go to a place. Return False if the grammar does not allow its tokens; the place is then before the first
        that it does not."""
        num_same, num_output = self._num_kept, self._num_output(tokens)
        wanted = [*tokens[self._start + num_same :], *extra]
        for taken, token in zip(self._taken[num_same:], wanted, strict=False):
            if taken != token:
                break
            num_same += 1
        if not self._go_back_to(num_same):
            self._num_kept = num_same = 0
            wanted = [*tokens[self._start :], *extra]
        is_allowed = all(self._take(token) for token in wanted[num_same - self._num_kept :])
        self._num_kept = min(len(self._taken), num_output)
        return is_allowed

    def _num_output(self, tokens: Sequence[int]) -> int:
        return max(len(tokens) - self._start, 0)

    def _go_back_to(self, num_taken: int) -> bool:
        """Return False where the matcher cannot, and goes to the beginning instead."""
        num_back = len(self._taken) - self._has_ended - num_taken
        can = num_back <= 0 or self._matcher.rollback(num_back)
        if not can:
            self._matcher.reset()
        del self._taken[num_taken if can else 0 :]
        return can

    @property
    def _has_ended(self) -> bool:
        """Whether the last token that was taken ends the output; the matcher has not seen it."""
        return bool(self._taken) and self._taken[-1] in self._ends

    def _take(self, token: int) -> bool:
        if self._has_ended:
            return False
        may = self._matcher.is_accepting() if token in self._ends else self._matcher.try_consume_tokens([token]) == 1
        if may:
            self._taken.append(token)
        return may

    def count_allowed(self, tokens: Sequence[int], drafts: Sequence[int]) -> int:
        """Return how many of the drafts after `tokens` the grammar allows."""
        self.move_to(tokens, drafts)
        return max(len(self._taken) - self._num_output(tokens), 0)

    def forced_after(self, tokens: Sequence[int], extra: Sequence[int], most: int) -> tuple[int, ...]:
        """Return the tokens, at most `most`, that follow a place with certainty: each time the grammar allows one
        token alone, which may be one that ends the output."""
        if not self.move_to(tokens, extra):
            return ()
        start = len(self._taken)
        while not self._has_ended and (only := self._only_token()) is not None and len(self._taken) - start < most:
            if not self._take(only):
                break
        return tuple(self._taken[start:])

    def _only_token(self) -> int | None:
        """Return the token that must come next; None if there is a choice."""
        if found := self._matcher.compute_ff_tokens():
            return int(found[0])
        if not self._matcher.is_stopped():  # the text may go on
            return None
        return next(iter(self._ends)) if len(self._ends) == 1 else None

    def allowed(self, num_columns: int) -> npt.NDArray[np.bool_]:
        """Return which token ids may come next, bool [num_columns]; all once the output has ended."""
        if self._has_ended:
            return np.ones(num_columns, dtype=np.bool_)
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(words, bitorder="little")[:num_columns].astype(np.bool_)
        return bits if len(bits) == num_columns else np.pad(bits, (0, num_columns - len(bits)))


class Guides:
    """Makes the guides of requests.

    Args:
        folder: of a model with the target's tokenizer, which is read when the first guide is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._ends = frozenset(read_eos_ids(folder))
        self._grammars = Grammars(lambda: str(folder / "tokenizer.json"), self._ends)

    def make(self, spec: SequenceSpec) -> Guide:
        """Return the guide of a request with a grammar, at the beginning of its output.

        Raises:
            InvalidRequest: the grammar cannot be used.
        """
        assert spec.sampling.grammar is not None, "called for requests with a grammar"
        return Guide(self._grammars.start(*spec.sampling.grammar), self._ends, spec.prompt_len)
