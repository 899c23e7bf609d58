"""A worker's state of one request between rounds, besides its KV."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from minedraft.types import SequenceSpec

if TYPE_CHECKING:
    from minedraft_workers.sampling.guides import Guide


@dataclass(frozen=True, slots=True)
class HeldBranch:
    """A branch of a request that a worker holds beside the request: its KV, and its tokens after `committed_len`
    committed ones, all of them cached."""

    kv_id: int
    committed_len: int
    tokens: tuple[int, ...]


class SequenceState:
    """A request's parameters and committed tokens, with the token counts that penalties need.

    Change `tokens` only with `replace_from` or by appending: the counts and the guide are updated incrementally, so
    that the cost of a round grows with its new tokens and not with the history.

    Attributes:
        bias_ids, bias_values: int64 and float32 [n], the request's logit bias.
        stop_ids: int64 [m], masked until `min_new_tokens`.
        branches: of the last run ahead, all but the first, which is in `tokens`.
        guide: what the request's grammar allows next; None until it is asked, and without a grammar.
    """

    __slots__ = (
        "_counted_len",
        "_counts",
        "_seen_ids",
        "_slots",
        "bias_ids",
        "bias_values",
        "branches",
        "guide",
        "request_id",
        "spec",
        "stop_ids",
        "tokens",
    )

    def __init__(self, request_id: int, spec: SequenceSpec, tokens: Sequence[int] = ()) -> None:
        self.request_id = request_id
        self.spec = spec
        self.tokens: list[int] = list(tokens)  # prompt + output, without drafts
        bias = spec.sampling.logit_bias
        self.bias_ids = np.fromiter(bias.keys(), dtype=np.int64, count=len(bias))
        self.bias_values = np.fromiter(bias.values(), dtype=np.float32, count=len(bias))
        self.stop_ids = np.array(spec.stop_ids, dtype=np.int64)
        self.branches: Sequence[HeldBranch] = ()
        self.guide: Guide | None = None
        self._counted_len = 0  # how many of `tokens` are in the counts
        self._slots: dict[int, int] = {}  # token id -> index in the two arrays
        self._seen_ids = array("q")
        self._counts = array("f")

    def replace_from(self, prefix_len: int, tokens: Sequence[int]) -> None:
        """Keep the first `prefix_len` tokens and append `tokens`.

        Raises:
            ValueError: `prefix_len` is negative or more than the tokens known.
        """
        if not 0 <= prefix_len <= len(self.tokens):
            raise ValueError(f"prefix_len {prefix_len} is beyond the {len(self.tokens)} tokens known")
        # Committed tokens are usually resent unchanged; the counts then stay valid.
        counted = self.tokens[prefix_len : self._counted_len]
        if counted != list(tokens[: len(counted)]):
            self._forget_counts()
        self.tokens[prefix_len:] = tokens
        if self.guide is not None:
            self.guide.keep(prefix_len)

    def length_of(self, branch: int) -> int:
        """Return the number of tokens that are cached of a branch, by its number in the last run ahead; 0 is the
        request itself."""
        if branch == 0:
            return len(self.tokens)
        held = self.branches[branch - 1]
        return held.committed_len + len(held.tokens)

    def take_branch(self, branch: int) -> None:
        """Become a branch (0: stay the request itself), and forget the others."""
        if branch:
            held = self.branches[branch - 1]
            self.replace_from(held.committed_len, held.tokens)
        self.branches = ()

    def seen_tokens(self, extra: Sequence[int] = ()) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Return the distinct token ids of prompt + output + `extra` (drafts before a position), int64 [n], and
        how often each occurs in output + `extra`, float32 [n]."""
        if len(self.tokens) < self._counted_len:
            self._forget_counts()
        for index in range(self._counted_len, len(self.tokens)):
            self._count(self.tokens[index], index >= self.spec.prompt_len)
        self._counted_len = len(self.tokens)
        ids = np.array(self._seen_ids, dtype=np.int64)
        counts = np.array(self._counts, dtype=np.float32)
        if extra:
            new_ids = list(dict.fromkeys(token for token in extra if token not in self._slots))
            slot_of_new = {token: len(ids) + offset for offset, token in enumerate(new_ids)}
            ids = np.concatenate([ids, np.array(new_ids, dtype=np.int64)])
            counts = np.concatenate([counts, np.zeros(len(new_ids), dtype=np.float32)])
            for token in extra:
                counts[self._slots[token] if token in self._slots else slot_of_new[token]] += 1
        return ids, counts

    def _count(self, token: int, is_output: bool) -> None:
        slot = self._slots.setdefault(token, len(self._seen_ids))
        if slot == len(self._seen_ids):
            self._seen_ids.append(token)
            self._counts.append(0.0)
        if is_output:
            self._counts[slot] += 1

    def _forget_counts(self) -> None:
        self._counted_len = 0
        self._slots.clear()
        del self._seen_ids[:]
        del self._counts[:]
