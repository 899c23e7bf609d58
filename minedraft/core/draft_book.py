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
from minedraft.core.running_ahead import Run
from minedraft.messages import DraftCommand, DraftSpan, Features, Proposal, RunAhead
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
    """cached_len: leading tokens that the drafter's KV holds, in the branch `branch` of the last run ahead, which the
    next span names. num_cached_drafts: drafts after them that it holds. left_behind: tokens of the last round, which
    the next draft makes up. checked_len: leading tokens whose ids were checked. is_barred: the request decodes without
    drafts. run: the last run ahead. ready: the drafts of its branch that came true."""

    cached_len: int = 0
    branch: int = 0
    num_cached_drafts: int = 0
    left_behind: int = 0
    checked_len: int = 0
    is_barred: bool = False
    run: Run | None = None
    ready: Proposal | None = None

    def drop(self) -> None:
        """The drafter holds nothing of the request any more."""
        self.cached_len = self.branch = self.num_cached_drafts = self.left_behind = 0
        self.run = self.ready = None


class DraftBook:
    """One drafter's side of the requests. A drafter that reads the target's features has a `FeatureBook`; here is
    what it and the scheduler agree on.

    Args:
        kv: mirror of the drafter's KV.
        vocab_size: ids below this are tokens to the drafter. Its output layer may have fewer rows than
            the target's; a request with an id above them decodes without drafts.
        can_run_ahead: whether the drafter can go on from tokens that are not verified.

    Attributes:
        max_lag: tokens that the drafter may lag behind after a round; a draft makes them up in passing.
        feature_layers: the layers of the target whose outputs the drafter reads.
        max_feature_rows: tokens of one round whose features fit in its messages.
    """

    max_lag = MAX_LAG
    feature_layers: tuple[int, ...] = ()
    max_feature_rows = 1 << 30  # no limit

    def __init__(self, kv: KvLedger, vocab_size: int, can_run_ahead: bool = False) -> None:
        self.kv = kv
        self.can_run_ahead = can_run_ahead
        self._vocab_size = vocab_size
        self._entries: dict[int, _Entry] = {}

    # What the drafter can be asked for

    def draft_len(self, request: BookRequest, wanted: int, budget: int) -> int:
        """Return the number of drafts to ask for, at most `wanted`; 0 if the drafter lags behind by more
        than the last round left, has no room in its KV, or does not know one of the request's tokens.

        Args:
            budget: tokens that the drafter may catch up with in this round. Here it changes nothing: the lag has a
                limit of its own.
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

    def plan_run(
        self, request: BookRequest, drafts: Sequence[int], draft_len: int, num_branches: int
    ) -> DraftSpan | None:
        """Reserve KV and return the span to send while the verifier checks `drafts`: `draft_len` more drafts after each
        of `num_branches` branches, or of fewer if memory is short. None if the drafter cannot run ahead now."""
        committed_len, kv = len(request.tokens), self.kv
        start = min(self.cached_len(request.id), committed_len - 1)
        if not self._can_serve(request) or committed_len - start > self._lag_limit(request.id):
            return None
        num_tokens = committed_len + len(drafts) + draft_len  # with the token of the branch, without the last draft
        # A fork begins inside a block; its tokens end where a draft would have been the next to be fed.
        num_each = kv.pool.num_blocks_for(kv.pool.block_size - 1 + draft_len)
        while num_branches and not kv.can_reserve(request.id, num_tokens, num_extra=num_each * (num_branches - 1)):
            num_branches -= 1
        if not num_branches:
            return None
        kv.reserve(request.id, num_tokens, num_each * (num_branches - 1))
        span = self._span(request, start, committed_len, draft_len)
        return replace(span, tokens=(*span.tokens, *drafts), ahead=RunAhead(len(drafts), num_branches))

    def ready(self, request: BookRequest) -> Proposal | None:
        """Return the drafts that were prepared for the request's next round; None if there are none."""
        entry = self._entries.get(request.id)
        proposal = None if entry is None else entry.ready
        return proposal if proposal is not None and proposal.committed_len == len(request.tokens) else None

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
            if (entry := self._staying(span.request_id)) is not None:
                entry.cached_len, entry.num_cached_drafts, entry.branch = span.committed_len, 0, 0
                entry.run = entry.ready = None
                if span.ahead is not None:
                    prepared = tuple([proposal for proposal in proposals if proposal.request_id == span.request_id])
                    entry.run = Run(command.round.number, span.committed_len, prepared)
        for proposal in proposals:
            is_cached = proposal.branch is None and proposal.source is not DraftMethod.NGRAM
            if is_cached and (entry := self._staying(proposal.request_id)) is not None:
                # The last draft was proposed but not fed back, so its KV does not exist.
                entry.num_cached_drafts = max(len(proposal.tokens) - 1, 0)
        self.kv.acknowledge(command.released)
        return bool(command.released)

    def refused(self, command: DraftCommand, culprit: int | None) -> None:
        """Record that the drafter did not execute a command. The request `culprit` decodes without drafts
        from now on; if it is None, all requests of the command are introduced anew, and else those whose branches the
        drafter may have settled already."""
        self.kv.return_releases(command.released)
        names_one = culprit is not None and culprit in self._entries
        if culprit is not None and names_one:
            self._entries[culprit].is_barred = True
            self.release(culprit)
        for span in command.spans:
            if not names_one or span.branch or span.ahead is not None:
                self.release(span.request_id)

    def accepted(self, request_id: int, committed_len: int, accepted_len: int, num_more: int = 1) -> None:
        """Record that of the drafts after `committed_len` tokens, `accepted_len` are committed, and `num_more` tokens
        after them."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.cached_len == committed_len:  # else this drafter did not propose them
            entry.cached_len += min(accepted_len, entry.num_cached_drafts)
            entry.num_cached_drafts = 0
            entry.left_behind = accepted_len + num_more

    def judged(self, request_id: int, number: int, accepted_len: int, bonus_token: int) -> bool | None:
        """Record the verdict of round `number` on a request: `accepted_len` drafts and then `bonus_token`.

        Returns:
            Whether a branch that the drafter prepared in this round came true; None if it prepared none.
        """
        entry = self._entries.get(request_id)
        if entry is None or entry.run is None or entry.run.number != number:
            return None
        run, entry.run = entry.run, None
        entry.cached_len = run.committed_len + accepted_len
        branch = run.find(accepted_len, bonus_token)
        if branch is None:
            return False if run.proposals else None
        entry.cached_len += 1
        entry.branch, entry.ready = branch, run.drafts_of(branch)
        entry.num_cached_drafts = max(len(entry.ready.tokens) - 1, 0)
        return True

    def cached_len(self, request_id: int) -> int:
        """Return the number of leading tokens of the request that the drafter's KV holds."""
        entry = self._entries.get(request_id)
        return 0 if entry is None else entry.cached_len

    def branch(self, request_id: int) -> int:
        """Return which branch of the request's last run ahead it is whose tokens `cached_len` counts."""
        entry = self._entries.get(request_id)
        return 0 if entry is None else entry.branch

    def release(self, request_id: int) -> None:
        """Free the request's KV; the request can be introduced again."""
        if request_id in self._entries:
            self._entries[request_id].drop()
        self.kv.release(request_id)

    def forget(self, request_id: int) -> None:
        """Free the request's KV and drop its entry: the request has ended."""
        self.kv.release(request_id)
        self._entries.pop(request_id, None)

    # Inside

    def _staying(self, request_id: int) -> _Entry | None:
        """Return the entry of a request; None for one that was released while a command for it was on its way: what
        that command cached goes with the next one."""
        return None if self.kv.is_leaving(request_id) else self._entries.get(request_id)

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
            branch=self.branch(request.id),
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
