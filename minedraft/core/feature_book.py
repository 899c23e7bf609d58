"""The book of a drafter that reads the target's features, as an EAGLE head does. Pure.

Position i of the head takes token i + 1 with the feature of token i, and proposes token i + 2. So `cached_len` counts
the leading tokens that the head has taken, each but the first with a feature; its KV has one entry less. Drafts leave
nothing behind: their KV came from the head's own states, and the next span computes it again with the target's.

Features come with the verdicts and stay here until the drafter has taken them. What is missing, because the drafter is
new or a command of its failed, only the verifier can compute: it runs the tokens again, as chunks of a prompt, and
stores the KV that it has already. A request waits for that without drafts; the one whose turn it is gets no tokens
meanwhile. So it is done where it pays, for few requests at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from minedraft.core.draft_book import BookRequest, DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.messages import DraftCommand, DraftSpan, Features, Proposal
from minedraft.sampling_params import MAX_DRAFT_LEN

RECOMPUTE_PRICE = 2
"""Tokens that may run again for each output token that a request still lacks. A token of a prompt's chunk costs half
a millisecond on the embedded machine; a token without drafts one or more, of which drafts save about half."""

MAX_RECOMPUTES = 3
"""Times that tokens of one request run again. A drafter that loses features again and again must not cost more."""

MAX_IDLE_LAG = 256
"""Tokens whose features are kept for a request that drafts nothing at present. If it drafts again, later ones are
computed again."""

_ITEM_BYTES = 4  # of the larger dtype
_MAX_MESSAGE_BYTES = 12 << 20  # of features, in a message that may have 16 MiB
_MAX_HELD_BYTES = 256 << 20  # of all requests


class FeatureBook(DraftBook):
    """One drafter's side of the requests, and the features that it has not taken yet.

    A request has at most its own tokens' features here: four bytes times `feature_size` for each, or half of it, and
    nothing of what the drafter has taken but the last round. All requests have at most 256 MiB together: beyond that no
    more are asked for, and those that are missing then are computed again later.

    Args:
        layers: of the target, whose outputs the drafter reads. feature_size: numbers of all of them for one token.
    """

    max_lag = MAX_DRAFT_LEN + 1

    def __init__(self, kv: KvLedger, vocab_size: int, layers: tuple[int, ...], feature_size: int) -> None:
        super().__init__(kv, vocab_size)
        self.feature_layers = layers
        self.max_feature_rows = max(_MAX_MESSAGE_BYTES // (_ITEM_BYTES * feature_size), 2)
        self._max_held = max(_MAX_HELD_BYTES // (_ITEM_BYTES * feature_size), self.max_feature_rows)
        self._num_held = 0  # positions, over all requests
        self._held: dict[int, list[Features]] = {}  # by request; each piece begins at or before the last one's end
        self._recomputing: dict[int, int] = {}  # by request, the tokens that run again
        self._num_recomputes: dict[int, int] = {}

    # What the drafter can be asked for

    def draft_len(self, request: BookRequest, wanted: int, budget: int) -> int:
        """Return as `DraftBook.draft_len`; 0 also while features of the request's tokens are missing."""
        committed_len = len(request.tokens)
        if committed_len < 2 or not self._can_serve(request) or self.features_len(request) < committed_len - 1:
            return 0
        if committed_len - self.cached_len(request.id) > max(self.max_lag, budget):
            return 0
        draft_len = min(wanted, self.kv.max_model_len - committed_len)
        return draft_len if draft_len > 0 and self.kv.can_reserve(request.id, committed_len + draft_len - 2) else 0

    def prefill_len(self, request: BookRequest, budget: int) -> int:
        """Return as `DraftBook.prefill_len`: tokens whose features are here."""
        start = self.cached_len(request.id)
        behind = min(self.features_len(request) + 1, len(request.tokens) - 1) - start
        num_tokens = min(behind, budget)
        if behind <= self.max_lag or start + num_tokens < 2 or num_tokens <= 0 or not self._can_serve(request):
            return 0
        return num_tokens if self.kv.can_reserve(request.id, start + num_tokens - 1) else 0

    def plan_draft(self, request: BookRequest, draft_len: int) -> DraftSpan:
        """Reserve KV for `draft_len` drafts (see `draft_len`) and return the span to send."""
        committed_len = len(request.tokens)
        self.kv.reserve(request.id, committed_len + draft_len - 2)
        return self._span(request, self._next(request), committed_len, draft_len)

    def plan_prefill(self, request: BookRequest, num_tokens: int) -> DraftSpan:
        """Reserve KV for `num_tokens` more tokens (see `prefill_len`) and return the span to send."""
        start = self.cached_len(request.id)
        self.kv.reserve(request.id, start + num_tokens - 1)
        return self._span(request, start, start + num_tokens, 0)

    # Features

    def features_len(self, request: BookRequest) -> int:
        """Return the number of leading positions whose features the drafter has taken or can be sent."""
        held = self._held.get(request.id)  # they follow each other from the next span's first on
        return held[-1].end if held else max(self._next(request) - 1, 0)

    def wants_features(self, request: BookRequest, start: int, end: int, *, is_idle: bool = False) -> bool:
        is_next = start <= self.features_len(request) < end
        if is_idle and end - self.cached_len(request.id) > MAX_IDLE_LAG:
            return False
        return is_next and self._knows(request) and self._num_held + end - start <= self._max_held

    def recompute_from(self, request: BookRequest, verifier_len: int, budget: int) -> int:
        """Return the first position whose feature is missing, if a request that decodes is to have it computed now;
        otherwise `verifier_len`."""
        if len(request.tokens) - verifier_len > 1:  # its tokens are running, perhaps again
            return verifier_len
        self._recomputing.pop(request.id, None)
        start = self.features_len(request)
        num_missing = verifier_len - start
        num_tokens = len(request.tokens)
        if num_missing <= 0 or not self._is_worth(request, num_missing) or not self._can_serve(request):
            return verifier_len
        if self._recomputing and sum(self._recomputing.values()) + num_missing > budget:
            return verifier_len
        if self._num_held + num_missing > self._max_held or not self.kv.can_reserve(request.id, num_tokens):
            return verifier_len
        self._recomputing[request.id] = num_missing
        self._num_recomputes[request.id] = self._num_recomputes.get(request.id, 0) + 1
        return start

    def is_recomputing(self, request_id: int) -> bool:
        return request_id in self._recomputing

    def deliver(self, request: BookRequest, features: Features) -> None:
        end = self.features_len(request)
        if request.id not in self._entries or not features.start <= end < features.end:
            return
        self._held.setdefault(request.id, []).append(features)
        self._num_held += features.end - features.start

    def drop_features(self) -> None:
        for request_id in list(self._held):
            self._drop(request_id)

    # Commands and their results

    def executed(self, command: DraftCommand, proposals: Sequence[Proposal] = ()) -> bool:
        """Record as `DraftBook.executed`, and drop the features that the drafter has taken."""
        for span in command.spans:
            held = self._held.get(span.request_id, ())
            # The last one is kept: the same draft is asked for again if the verifier does not finish the round.
            self._keep(span.request_id, [piece for piece in held if piece.end > span.committed_len - 2])
        return super().executed(command, proposals)

    def accepted(self, request_id: int, committed_len: int, accepted_len: int, num_more: int = 1) -> None:
        """Record nothing: the drafter takes accepted drafts again, with the target's features."""

    def release(self, request_id: int) -> None:
        self._drop(request_id)
        self._recomputing.pop(request_id, None)
        super().release(request_id)

    def forget(self, request_id: int) -> None:
        self._drop(request_id)
        self._recomputing.pop(request_id, None)
        self._num_recomputes.pop(request_id, None)
        super().forget(request_id)

    # Inside

    def _next(self, request: BookRequest) -> int:
        """Return the index of the first token of the next draft's span; a draft has at least one."""
        return max(min(self.cached_len(request.id), len(request.tokens) - 1), 0)

    def _is_worth(self, request: BookRequest, num_missing: int) -> bool:
        remaining_len = request.spec.prompt_len + request.spec.sampling.output_limit - len(request.tokens)
        has_turns = self._num_recomputes.get(request.id, 0) < MAX_RECOMPUTES
        return has_turns and num_missing <= RECOMPUTE_PRICE * remaining_len

    def _span(self, request: BookRequest, start: int, end: int, draft_len: int) -> DraftSpan:
        span = super()._span(request, start, end, draft_len)
        position, last, pieces = span.features_start, end - 1, []
        for piece in self._held.get(request.id, ()):
            if position < piece.end and position < last:
                pieces.append(piece)
                position = piece.end
        return replace(span, features=tuple(pieces))

    def _keep(self, request_id: int, pieces: list[Features]) -> None:
        self._drop(request_id)
        if pieces:
            self._held[request_id] = pieces
            self._num_held += _num_positions(pieces)

    def _drop(self, request_id: int) -> None:
        self._num_held -= _num_positions(self._held.pop(request_id, ()))


def _num_positions(pieces: Iterable[Features]) -> int:
    return sum([piece.end - piece.start for piece in pieces])
