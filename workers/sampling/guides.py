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
from minedraft.sampling_params import SamplingParams
from minedraft.text.grammars import Grammars


class Guide:
    """What the grammar of one request allows after tokens of its output.

    Args:
        ends: ids of the tokens that end an output.
    """

    def __init__(self, matcher: LLMatcher, ends: frozenset[int]) -> None:
        self._matcher = matcher
        self._ends = ends
        self._taken: list[int] = []

    def move_to(self, tokens: Sequence[int]) -> bool:
        """Go to the place after these output tokens. Return False if the grammar does not allow them; the place is
        then before the first that it does not."""
        num_same = 0
        for taken, token in zip(self._taken, tokens, strict=False):
            if taken != token:
                break
            num_same += 1
        if num_same < len(self._taken):
            num_back = len(self._taken) - self._has_ended - num_same
            if num_back and not self._matcher.rollback(num_back):
                self._matcher.reset()
                num_same = 0
            del self._taken[num_same:]
        return all(self._take(token) for token in tokens[num_same:])

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

    def count_allowed(self, output: Sequence[int], drafts: Sequence[int]) -> int:
        """Return how many of the drafts after an output the grammar allows."""
        self.move_to([*output, *drafts])
        return max(len(self._taken) - len(output), 0)

    def forced_after(self, output: Sequence[int], most: int) -> tuple[int, ...]:
        """Return the tokens, at most `most`, that follow an output with certainty: at each of their places the grammar
        allows one token alone, which may be one that ends the output."""
        if not self.move_to(output):
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

    def make(self, sampling: SamplingParams) -> Guide:
        """Return the guide of a request with a grammar, at the beginning of its output.

        Raises:
            InvalidRequest: the grammar cannot be used.
        """
        assert sampling.grammar is not None, "called for requests with a grammar"
        return Guide(self._grammars.start(*sampling.grammar), self._ends)
