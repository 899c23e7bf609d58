"""What a forward is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ForwardSpan:
    """One request's part of a forward: keep `prefix_len` cached tokens, append `tokens` (one or more).

    num_logits: logits are computed for the last `num_logits` positions of `tokens` (0 = cache only).
    """

    request_id: int
    prefix_len: int
    tokens: Sequence[int]
    num_logits: int
