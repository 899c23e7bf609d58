"""The record of what one drafter holds of each request, and what it can be asked for next. Pure.

A book depends on neither scheduler nor event loop: any program that drives requests through a target can
keep one for each drafter. A drafter that returns gets an empty book, so nothing has to be undone when a
drafter is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from minedraft.core.ledger import KvLedger
from minedraft.messages import DraftCommand, DraftSpan, Features, Proposal
from minedraft.types import DraftMethod, RoundId, ScoreKind, SequenceSpec

MAX_LAG = 2
"""Tokens that the drafter lags behind after a round of its own drafts: the bonus token, and the last draft, which was
not fed back. After a round of looked up drafts, which it has not cached, it lags behind by all that it accepted."""


class BookRequest(Protocol):
    """The part of a request that the book reads: `tokens` are committed and only grow, `spec` never changes."""

    @property
    def id(self) -> int: ...

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def spec(self) -> SequenceSpec: ...


@dataclass(slots=True)
class _Entry:
    """cached_len: leading tokens that the drafter's KV holds. num_cached_drafts: drafts after them that it holds.
    left_behind: tokens of the last round, which the next draft makes up. checked_len: leading tokens whose ids were
    checked. is_barred: the request decodes without drafts."""

    cached_len: int = 0
    num_cached_drafts: int = 0
    left_behind: int = 0
    checked_len: int = 0
    is_barred: bool = False


class DraftBook:
    """One drafter's side of the requests. A drafter that reads the target's features has a `FeatureBook`; here is
    what it and the scheduler agree on.

    Args:
        kv: mirror of the drafter's KV.
        vocab_size: ids below this are tokens to the drafter. Its output layer may have fewer rows than
            the target's; a request with an id above them decodes without drafts.

    Attributes:
        max_lag: tokens that the drafter may lag behind after a round; a draft makes them up in passing.
        feature_layers: the layers of the target whose outputs the drafter reads.
        max_feature_rows: tokens of one round whose features fit in its messages.
    """

    max_lag = MAX_LAG
    feature_layers: tuple[int, ...] = ()
    max_feature_rows = 1 << 30  # no limit

    def __init__(self, kv: KvLedger, vocab_size: int) -> None:
        self.kv = kv
        self._vocab_size = vocab_size
        self._entries: dict[int, _Entry] = {}

    # What the drafter can be asked for

    def draft_len(self, request: BookRequest, wanted: int, budget: int) -> int:
        """Return the number of drafts to ask for, at most `wanted`; 0 if the drafter lags behind by more
        than the last round left, has no room in its KV, or does not know one of the request's tokens.

        Args:
            budget: tokens that the drafter may catch up with in this round.
        """
        committed_len = len(request.tokens)
        if not self._can_serve(request) or committed_len - self.cached_len(request.id) > self._lag_limit(request.id):
            return 0
        draft_len = min(wanted, self.kv.max_model_len - committed_len)
        return draft_len if draft_len > 0 and self.kv.can_reserve(request.id, committed_len + draft_len - 1) else 0

    def prefill_len(self, request: BookRequest, budget: int) -> int:
        """Return the number of committed tokens that the drafter should cache during the verify, at most
        `budget`; 0 for a lag that the last round left, which the next draft makes up.

        The last token is always left to the draft, which needs a token to start from.
        """
        behind = len(request.tokens) - self.cached_len(request.id)
        num_tokens = min(behind - 1, budget)
        if behind <= self._lag_limit(request.id) or num_tokens <= 0 or not self._can_serve(request):
            return 0
        return num_tokens if self.kv.can_reserve(request.id, self.cached_len(request.id) + num_tokens) else 0

    def plan_draft(self, request: BookRequest, draft_len: int) -> DraftSpan:
        """Reserve KV for `draft_len` drafts (see `draft_len`) and return the span to send."""
        committed_len = len(request.tokens)
        self.kv.reserve(request.id, committed_len + draft_len - 1)
        # At least one token, even if all are cached: a round that the verifier did not finish is repeated.
        return self._span(request, min(self.cached_len(request.id), committed_len - 1), committed_len, draft_len)

    def plan_prefill(self, request: BookRequest, num_tokens: int) -> DraftSpan:
        """Reserve KV for `num_tokens` more tokens (see `prefill_len`) and return the span to send."""
        start = self.cached_len(request.id)
        self.kv.reserve(request.id, start + num_tokens)
        return self._span(request, start, start + num_tokens, 0)

    # Features

    def wants_features(self, request: BookRequest, start: int, end: int, *, is_idle: bool = False) -> bool:
        """Whether the drafter needs the target's features of the positions `start` to `end` - 1. is_idle: nothing is
        drafted for the request at present."""
        return False

    def recompute_from(self, request: BookRequest, verifier_len: int, budget: int) -> int:
        """Return the length that the verifier should go on from, whose KV holds `verifier_len` tokens: less than these
        if it should run tokens again for the features that are missing.

        Args:
            budget: tokens of a round that may run again.
        """
        return verifier_len

    def is_recomputing(self, request_id: int) -> bool:
        """Whether the verifier runs tokens of the request again."""
        return False

    def deliver(self, request: BookRequest, features: Features) -> None:
        """Take features that the verifier computed. `request` has its tokens of before the round."""

    def drop_features(self) -> None:
        """Forget all features that the drafter has not taken: the verifier that holds them may be lost."""

    # Commands and their results

    def command(
        self, round_id: RoundId, spans: tuple[DraftSpan, ...], scores: ScoreKind = ScoreKind.NONE
    ) -> DraftCommand:
        """Return the command for `spans`, with all pending releases. Call `executed` or `refused` with it later."""
        return DraftCommand(round_id, spans, self.kv.take_releases(), scores=scores)

    def executed(self, command: DraftCommand, proposals: Sequence[Proposal] = ()) -> bool:
        """Record that the drafter executed a command, and what it proposed. Return whether that freed blocks."""
        for span in command.spans:
            if span.request_id in self._entries:
                entry = self._entries[span.request_id]
                entry.cached_len, entry.num_cached_drafts = span.committed_len, 0
        for proposal in proposals:
            if proposal.request_id in self._entries and proposal.source is not DraftMethod.NGRAM:
                # The last draft was proposed but not fed back, so its KV does not exist.
                self._entries[proposal.request_id].num_cached_drafts = max(len(proposal.tokens) - 1, 0)
        self.kv.acknowledge(command.released)
        return bool(command.released)

    def refused(self, command: DraftCommand, culprit: int | None) -> None:
        """Record that the drafter did not execute a command. The request `culprit` decodes without drafts
        from now on; if it is None, all requests of the command are introduced anew."""
        self.kv.return_releases(command.released)
        if culprit is not None and culprit in self._entries:
            self._entries[culprit].is_barred = True
            self.release(culprit)
            return
        for span in command.spans:
            self.release(span.request_id)

    def accepted(self, request_id: int, committed_len: int, accepted_len: int) -> None:
        """Record that of the drafts after `committed_len` tokens, `accepted_len` are committed."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.cached_len == committed_len:  # else this drafter did not propose them
            entry.cached_len += min(accepted_len, entry.num_cached_drafts)
            entry.num_cached_drafts = 0
            entry.left_behind = accepted_len + 1

    def cached_len(self, request_id: int) -> int:
        """Return the number of leading tokens of the request that the drafter's KV holds."""
        entry = self._entries.get(request_id)
        return 0 if entry is None else entry.cached_len

    def release(self, request_id: int) -> None:
        """Free the request's KV; the request can be introduced again."""
        if request_id in self._entries:
            self._entries[request_id].cached_len = 0
            self._entries[request_id].left_behind = 0
        self.kv.release(request_id)

    def forget(self, request_id: int) -> None:
        """Free the request's KV and drop its entry: the request has ended."""
        self.kv.release(request_id)
        self._entries.pop(request_id, None)

    # Inside

    def _lag_limit(self, request_id: int) -> int:
        return max(self.max_lag, self._entries[request_id].left_behind if request_id in self._entries else 0)

    def _can_serve(self, request: BookRequest) -> bool:
        # If it were introduced again before its release is acknowledged, the release would free its new KV.
        return self._knows(request) and not self.kv.is_leaving(request.id)

    def _knows(self, request: BookRequest) -> bool:
        entry = self._entries.get(request.id)
        if entry is None:
            entry = self._entries[request.id] = _Entry()
        num_tokens = len(request.tokens)
        if not entry.is_barred and num_tokens > entry.checked_len:
            entry.is_barred = max(request.tokens[entry.checked_len :]) >= self._vocab_size
            entry.checked_len = num_tokens
            if entry.is_barred:
                self.release(request.id)
        return num_tokens < self.kv.max_model_len and not entry.is_barred

    def _span(self, request: BookRequest, start: int, end: int, draft_len: int) -> DraftSpan:
        return DraftSpan(
            request_id=request.id,
            prefix_len=start,
            tokens=tuple(request.tokens[start:end]),
            draft_len=draft_len,
            spec=restrict(request.spec, self._vocab_size) if start == 0 else None,
        )


def restrict(spec: SequenceSpec, vocab_size: int) -> SequenceSpec:
    """Return the spec without token ids from `vocab_size` up, which the drafter does not know. This changes
    what is proposed, never what is accepted."""
    sampling = spec.sampling
    known = replace(
        sampling,
        logit_bias={token_id: bias for token_id, bias in sampling.logit_bias.items() if token_id < vocab_size},
        stop_token_ids=tuple(token_id for token_id in sampling.stop_token_ids if token_id < vocab_size),
    )
    stop_ids = tuple(token_id for token_id in spec.stop_ids if token_id < vocab_size)
    return replace(spec, sampling=known, stop_ids=stop_ids)
