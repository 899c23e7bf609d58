"""Features of the fake target: two numbers that tell the position and all tokens up to it, so that a drafter which is
given anything else than the features of its own tokens notices."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from minedraft.errors import InvalidRequest
from minedraft.messages import DraftSpan, Features, Tensor

LAYERS = (1, 3)
SIZE = len(LAYERS)
_MODULUS = 8_388_593  # a float32 holds every smaller number


def feature(tokens: Sequence[int]) -> tuple[float, float]:
    """Return the feature of the last of `tokens`."""
    digest = 0
    for token in tokens:
        digest = (digest * 131 + token + 1) % _MODULUS
    return float(len(tokens) - 1), float(digest)


def features_of(tokens: Sequence[int], start: int) -> Features:
    """Return the features of the positions from `start` to the last of `tokens`."""
    rows = [feature(tokens[: position + 1]) for position in range(start, len(tokens))]
    data = struct.pack(f"<{SIZE * len(rows)}f", *[number for row in rows for number in row])
    return Features(start, Tensor("float32", (len(rows), SIZE), data))


def check_features(span: DraftSpan, tokens: Sequence[int]) -> None:
    """Raise InvalidRequest unless the span has the true features of every position that its tokens need, in
    pieces that follow or overlap each other, none in vain. tokens: of the request, those of the span included."""
    wanted = range(span.features_start, span.committed_len - 1)
    seen: set[int] = set()
    for piece in span.features:
        rows = {piece.start + i: row for i, row in enumerate(struct.iter_unpack(f"<{SIZE}f", piece.states.data))}
        is_apart = piece.start > max(seen, default=span.features_start - 1) + 1
        wrong = [at for at in rows if at in wanted and rows[at] != feature(tokens[: at + 1])]
        if wrong or is_apart or not (set(rows) - seen) & set(wanted):
            raise InvalidRequest(
                "features", wrong or "a piece apart or in vain", f"must be those of positions {wanted}"
            )
        seen |= set(rows)
    if missing := set(wanted) - seen:
        error = InvalidRequest("features", sorted(missing), "are missing")
        error.request_id = span.request_id
        raise error
