"""Drafting without a model and without KV: prompt lookup (Saxena 2023).

It searches prompt and output for the longest earlier occurrence of the text's end, and proposes the tokens that
followed. It costs almost nothing and pays for answers that repeat their prompt or themselves (code, summaries, tool
calls). Its drafts are not sampled: under REJECTION, q is 1 on the draft. What it proposes, and whether, depends only
on committed tokens and on how earlier proposals did, never on drafts that are not decided yet: the target accepts or
replaces a draft as it does any other, so the output law stays the target's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from minedraft.types import Acceptance, DraftMethod
from minedraft_workers.proposers.base import DraftRow
from minedraft_workers.proposers.suffix_index import Match, SuffixIndex
from minedraft_workers.pulse import PULSE

_LONGEST = (2, 3, 5, 8)  # longest match of each class but the last
# Share of first drafts accepted by class: measured with SmolLM2-135M over chats, code, summaries and tool calls.
_SINGLE = (0.53, 0.64, 0.68, 0.74, 0.88)  # the match occurs once
_AGREEING = (0.78, 0.77, 0.82, 0.95, 0.98)  # the same token follows each of its occurrences
_SPLIT = (0.22, 0.22, 0.31, 0.31, 0.50)  # different tokens do
_PRIOR_WEIGHT = 16.0  # proposals that what was measured elsewhere counts for
_MAX_WEIGHT = 1024.0  # proposals that are remembered
LEAST_RATE = 0.3
"""Share of first drafts that must be expected to stand: where few do, verifying them costs more than they save."""


class AcceptanceRate:
    """The share of first drafts that the target accepted, of late."""

    __slots__ = ("_num_accepted", "_num_proposed")

    def __init__(self, prior: float) -> None:
        self._num_accepted, self._num_proposed = prior * _PRIOR_WEIGHT, _PRIOR_WEIGHT

    @property
    def value(self) -> float:
        return self._num_accepted / self._num_proposed

    def count(self, is_accepted: bool) -> None:
        """Learn from a proposal."""
        if self._num_proposed >= _MAX_WEIGHT:
            self._num_accepted, self._num_proposed = self._num_accepted / 2, self._num_proposed / 2
        self._num_accepted += is_accepted
        self._num_proposed += 1


@dataclass(frozen=True, slots=True)
class _Proposed:
    """A proposal whose fate is not known yet: its first draft, the position of that, and the rate that learns it."""

    position: int
    draft: int
    rate: AcceptanceRate


class PromptLookup:
    """The lookup of all requests: an index of each one's text, and how the proposals of each class did."""

    def __init__(self) -> None:
        self._indexes: dict[int, SuffixIndex] = {}
        self._open: dict[int, _Proposed] = {}
        # A sampled answer follows the text less often than a greedy one.
        self._rates = {
            (acceptance, kind): [AcceptanceRate(rate) for rate in kind]
            for acceptance in Acceptance
            for kind in (_SINGLE, _AGREEING, _SPLIT)
        }

    def read(self, row: DraftRow) -> None:
        """Take the row's committed tokens, and learn from them what became of its last proposal."""
        request_id = row.state.request_id
        index = self._indexes.setdefault(request_id, SuffixIndex())
        known = min(len(index), row.prefix_len)
        # Between the two are drafts that were accepted, which only the state has.
        index.replace_from(known, [*row.state.tokens[known : row.prefix_len], *row.committed])
        proposed = self._open.get(request_id)
        if proposed is not None and proposed.position < len(index):
            proposed.rate.count(index.token_at(proposed.position) == proposed.draft)
            del self._open[request_id]

    def find(self, row: DraftRow, least_rate: float) -> bool:
        """Give the row its drafts, if the first one stands with a probability of `least_rate`; return whether it does.
        Call `read` before."""
        match = self._indexes[row.state.request_id].find(row.draft_len)
        if match is None or (rate := self._rate_of(match, row)).value < least_rate:
            return False
        row.drafts, row.source = list(match.continuation), DraftMethod.NGRAM
        if row.score_kind:
            row.scores = [rate.value] * len(row.drafts)
        self.note(row, rate)
        return True

    def find_ahead(self, row: DraftRow, least_rate: float) -> tuple[int, ...]:
        """Return the token that may follow the drafts in flight of a row that runs ahead, and the drafts after it; none
        if they stand with less than `least_rate`. Call `read` before."""
        index = self._indexes[row.state.request_id]
        index.replace_from(row.committed_len, row.in_flight)
        match = index.find(row.draft_len + 1)
        index.replace_from(row.committed_len, ())  # they may be rejected
        return () if match is None or self._rate_of(match, row).value < least_rate else tuple(match.continuation)

    def note(self, row: DraftRow, rate: AcceptanceRate) -> None:
        """Let `rate` learn what becomes of the row's drafts."""
        if row.drafts:
            self._open[row.state.request_id] = _Proposed(row.committed_len, row.drafts[0], rate)

    def release(self, request_id: int) -> None:
        self._indexes.pop(request_id, None)
        self._open.pop(request_id, None)

    def clear(self) -> None:
        """Forget every request; what was learned stays."""
        self._indexes.clear()
        self._open.clear()

    def _rate_of(self, match: Match, row: DraftRow) -> AcceptanceRate:
        kind = _AGREEING if match.num_agreeing == match.num_places else _SPLIT
        rates = self._rates[row.state.spec.acceptance, _SINGLE if match.num_places == 1 else kind]
        return rates[sum(match.length > longest for longest in _LONGEST)]


class NgramProposer:
    """Drafts by prompt lookup alone. It holds no KV and so has no blocks."""

    num_free_blocks = 0
    feature_layers: tuple[int, ...] = ()
    feature_size = 0
    graphs = None

    def __init__(self) -> None:
        self._lookup = PromptLookup()

    def propose(self, rows: Sequence[DraftRow]) -> int:
        for row in rows:
            PULSE.beat()
            row.state.replace_from(row.prefix_len, row.committed)
            self._lookup.read(row)
            if row.ahead is not None:
                self._run_ahead(row)
            elif row.draft_len:
                self._lookup.find(row, LEAST_RATE)
        return 0

    def _run_ahead(self, row: DraftRow) -> None:
        """Prepare the one branch that the text suggests: all drafts, the token after them, and what followed it."""
        token, *drafts = self._lookup.find_ahead(row, LEAST_RATE) or (0,)
        if not drafts:
            row.state.tokens.extend(row.in_flight)
            return
        branch = row.branch_off(len(row.in_flight), token, 0, row.draft_len)
        branch.drafts = drafts
        row.branches.append(branch)
        row.state.tokens.extend(branch.uncommitted[:-1])

    def release(self, request_id: int) -> None:
        self._lookup.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._lookup.clear()  # no limit on ids: it proposes only tokens of the text, which the target knows
