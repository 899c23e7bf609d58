"""The earlier places where the end of a text has occurred, longest match first.

Hash chains, as in LZ77 compressors (Deutsch 1996, RFC 1951): the last place of each pair of tokens, and for each
place the one before with the same pair. A token is added in constant time, and a search looks at no more than
`_MAX_CANDIDATES` places. Hashes may collide: every place is compared token by token.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

MIN_MATCH = 2
MAX_MATCH = 16  # longer matches count as this long
WINDOW = 8192
"""Tokens that are searched at least: from twice as many on, the oldest are dropped. A token takes about 16 bytes,
a request so at most 256 KiB."""
_MAX_CANDIDATES = 64
_MIN_SLOTS = 64


@dataclass(frozen=True, slots=True)
class Match:
    """The longest earlier occurrence of a text's end, the most recent one of equally long ones.

    Attributes:
        length: tokens that agree, MIN_MATCH to MAX_MATCH.
        num_agreeing, num_places: equally long occurrences, and how many of them the same token follows.
        continuation: the tokens that followed. Where they reach the end of the text they are repeated, as a period.
    """

    length: int
    num_agreeing: int
    num_places: int
    continuation: tuple[int, ...]


class SuffixIndex:
    """The tokens of one request, indexed by the pairs that they end."""

    __slots__ = ("_base", "_before", "_heads", "_mask", "_tokens", "_window")

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._base = 0  # position of the first token that is still held
        self._tokens = array("i")
        self._clear_chains(_MIN_SLOTS)

    def __len__(self) -> int:
        """Return the number of tokens of the text, dropped ones too."""
        return self._base + len(self._tokens)

    def token_at(self, position: int) -> int | None:
        """Return the token at a position of the text; None if it is not held."""
        index = position - self._base
        return self._tokens[index] if 0 <= index < len(self._tokens) else None

    def replace_from(self, prefix_len: int, tokens: Sequence[int]) -> None:
        """Keep the first `prefix_len` tokens of the text and append `tokens`, ids below 2**31.

        The cost grows with the new tokens; only where an old token changes, the index is built anew.
        """
        if not self._base <= prefix_len <= len(self):  # a text whose beginning is not held starts afresh
            self._base = prefix_len
            self._rebuild(array("i"))
        start = prefix_len - self._base
        known = self._tokens[start:]
        if known.tolist() != list(tokens[: len(known)]):
            self._rebuild(self._tokens[:start])
            known = self._tokens[start:]
        for token in tokens[len(known) :]:
            self._append(token)
        if len(self._tokens) >= 2 * self._window:
            self._base += len(self._tokens) - self._window
            self._rebuild(self._tokens[-self._window :])

    def find(self, num_tokens: int) -> Match | None:
        """Return the longest earlier occurrence of the text's end, with `num_tokens` of what followed; None if no
        MIN_MATCH tokens agree."""
        tokens, last = self._tokens, len(self._tokens) - 1
        best, place_of_best, first, num_agreeing, num_places = MIN_MATCH - 1, -1, -1, 0, 0
        place = self._before[last] if last >= 1 else -1
        for _ in range(_MAX_CANDIDATES):
            if place < 0:
                break
            # Of a place that matches as far as the best one, the tokens furthest back are the likeliest to differ.
            if place >= best - 1 and tokens[place - best + 1] == tokens[last - best + 1]:
                length = self._match_len(place, last)
                if length > best:
                    best, place_of_best, first, num_agreeing, num_places = length, place, tokens[place + 1], 1, 1
                elif length == best and place_of_best >= 0:
                    num_places += 1
                    num_agreeing += tokens[place + 1] == first
            place = self._before[place]
        if place_of_best < 0:
            return None
        return Match(best, num_agreeing, num_places, self._continuation(place_of_best + 1, num_tokens))

    def _match_len(self, place: int, last: int) -> int:
        tokens, length = self._tokens, 0
        while length < MAX_MATCH and length <= place and tokens[place - length] == tokens[last - length]:
            length += 1
        return length

    def _continuation(self, start: int, num_tokens: int) -> tuple[int, ...]:
        end = len(self._tokens)
        return tuple([self._tokens[start + i % (end - start)] for i in range(num_tokens)])

    def _append(self, token: int) -> None:
        self._tokens.append(token)
        if len(self._tokens) > len(self._heads):
            self._rebuild(self._tokens)
        else:
            self._link(len(self._tokens) - 1)

    def _link(self, place: int) -> None:
        if place == 0:
            self._before.append(-1)
            return
        slot = (self._tokens[place - 1] * 0x9E3779B1 ^ self._tokens[place] * 0x85EBCA6B) >> 7 & self._mask
        self._before.append(self._heads[slot])
        self._heads[slot] = place

    def _rebuild(self, tokens: array[int]) -> None:
        self._tokens = array("i", tokens)
        num_slots = _MIN_SLOTS
        while num_slots <= len(tokens):
            num_slots *= 2
        self._clear_chains(num_slots)
        for place in range(len(tokens)):
            self._link(place)

    def _clear_chains(self, num_slots: int) -> None:
        self._heads = array("i", [-1]) * num_slots  # by hash of a pair, the place of its last token
        self._before = array("i")  # by place, the place before with the same hash
        self._mask = num_slots - 1
