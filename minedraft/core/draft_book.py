"""What one drafter holds of each request, and what it may be asked for next. Pure.

It needs no scheduler of ours and no event loop: whoever drives requests through a target can keep such a
book beside them, one for each drafter that it uses. A drafter that comes back starts with an empty book, so
nothing has to be undone when one is lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from minedraft.core.ledger import KvLedger
from minedraft.types import DraftCommand, DraftSpan, RoundId, SequenceSpec

MAX_LAG = 2
"""Tokens a round leaves the drafter behind: the bonus token, and the last draft, which was never fed back."""


class BookRequest(Protocol):
    """What the book must know of a request: `tokens` are committed and only grow, `spec` never changes."""

    @property
    def id(self) -> int: ...

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def spec(self) -> SequenceSpec: ...


@dataclass(slots=True)
class _Entry:
    """cached_len: leading tokens the drafter's KV holds. checked_len: tokens whose ids were looked at."""

    cached_len: int = 0
    checked_len: int = 0
    is_barred: bool = False


class DraftBook:
    """One drafter's side of the requests.

    Args:
        kv: mirror of the drafter's KV.
        vocab_size: ids below this are tokens to the drafter. Its output layer may have fewer rows than
            the target's; a request with an id above them decodes without drafts.
    """

    def __init__(self, kv: KvLedger, vocab_size: int) -> None:
        self.kv = kv
        self._vocab_size = vocab_size
        self._entries: dict[int, _Entry] = {}

    # What it may be asked for

    def draft_len(self, request: BookRequest, wanted: int) -> int:
        """Drafts to ask for, at most `wanted`; 0 while the drafter is behind by more than a round
        leaves it, where its KV has no room, or where it does not know a token."""
        committed_len = len(request.tokens)
        if not self._can_serve(request) or committed_len - self.cached_len(request.id) > MAX_LAG:
            return 0
        draft_len = min(wanted, self.kv.max_model_len - committed_len)
        return draft_len if draft_len > 0 and self.kv.can_reserve(request.id, committed_len + draft_len - 1) else 0

    def prefill_len(self, request: BookRequest, budget: int) -> int:
        """Committed tokens the drafter should cache meanwhile, at most `budget`. Those it is only a
        round behind wait for the draft, and so does the last one: a draft needs a token to start from."""
        behind = len(request.tokens) - self.cached_len(request.id)
        num_tokens = min(behind - 1, budget)
        if behind <= MAX_LAG or num_tokens <= 0 or not self._can_serve(request):
            return 0
        return num_tokens if self.kv.can_reserve(request.id, self.cached_len(request.id) + num_tokens) else 0

    def plan_draft(self, request: BookRequest, draft_len: int) -> DraftSpan:
        """Reserve KV for `draft_len` drafts (see `draft_len`) and return what to send."""
        committed_len = len(request.tokens)
        self.kv.reserve(request.id, committed_len + draft_len - 1)
        # At least one token, though all may be cached: a round that the verifier did not finish comes again.
        return self._span(request, min(self.cached_len(request.id), committed_len - 1), committed_len, draft_len)

    def plan_prefill(self, request: BookRequest, num_tokens: int) -> DraftSpan:
        """Reserve KV for `num_tokens` more tokens (see `prefill_len`) and return what to send."""
        start = self.cached_len(request.id)
        self.kv.reserve(request.id, start + num_tokens)
        return self._span(request, start, start + num_tokens, 0)

    # Commands, and what came of them

    def command(self, round_id: RoundId, spans: tuple[DraftSpan, ...]) -> DraftCommand:
        """The command for `spans`, which also tells the drafter what to free. `executed` or `refused` follows."""
        return DraftCommand(round_id, spans, self.kv.take_releases())

    def executed(self, command: DraftCommand) -> bool:
        """The drafter has cached the tokens of a command; whether blocks became free by it."""
        for span in command.spans:
            if span.request_id in self._entries:
                self._entries[span.request_id].cached_len = span.prefix_len + len(span.tokens)
        self.kv.acknowledge(command.released)
        return bool(command.released)

    def refused(self, command: DraftCommand, culprit: int | None) -> None:
        """The drafter has not executed a command. A request that it named decodes without drafts from
        now on; if it named none, all of them are introduced to it anew."""
        self.kv.return_releases(command.released)
        if culprit is not None and culprit in self._entries:
            self._entries[culprit].is_barred = True
            self.release(culprit)
            return
        for span in command.spans:
            self.release(span.request_id)

    def accepted(self, request_id: int, committed_len: int, num_drafts: int, accepted_len: int) -> None:
        """Of `num_drafts` drafts after `committed_len` tokens, `accepted_len` are committed now."""
        entry = self._entries.get(request_id)
        if entry is not None and entry.cached_len == committed_len:  # else this drafter did not make them
            # The last draft was proposed but never fed back, so its KV does not exist.
            entry.cached_len += min(accepted_len, max(num_drafts - 1, 0))

    def cached_len(self, request_id: int) -> int:
        """Leading tokens of the request that the drafter's KV holds."""
        entry = self._entries.get(request_id)
        return 0 if entry is None else entry.cached_len

    def release(self, request_id: int) -> None:
        """Free the request's KV; it can be introduced again."""
        if request_id in self._entries:
            self._entries[request_id].cached_len = 0
        self.kv.release(request_id)

    def forget(self, request_id: int) -> None:
        """The request has ended."""
        self.kv.release(request_id)
        self._entries.pop(request_id, None)

    # Inside

    def _can_serve(self, request: BookRequest) -> bool:
        entry = self._entries.get(request.id)
        if entry is None:
            entry = self._entries[request.id] = _Entry()
        num_tokens = len(request.tokens)
        if not entry.is_barred and num_tokens > entry.checked_len:
            entry.is_barred = max(request.tokens[entry.checked_len :]) >= self._vocab_size
            entry.checked_len = num_tokens
            if entry.is_barred:
                self.release(request.id)
        has_room = num_tokens < self.kv.max_model_len
        # Introduced again before its release is acknowledged, its new KV would be freed with the old.
        return has_room and not entry.is_barred and not self.kv.is_leaving(request.id)

    def _span(self, request: BookRequest, start: int, end: int, draft_len: int) -> DraftSpan:
        return DraftSpan(
            request_id=request.id,
            prefix_len=start,
            tokens=tuple(request.tokens[start:end]),
            draft_len=draft_len,
            spec=restrict(request.spec, self._vocab_size) if start == 0 else None,
        )


def restrict(spec: SequenceSpec, vocab_size: int) -> SequenceSpec:
    """The spec without the token ids that a drafter of `vocab_size` does not know. It changes what is
    proposed, never what is accepted."""
    sampling = spec.sampling
    known = replace(
        sampling,
        logit_bias={token_id: bias for token_id, bias in sampling.logit_bias.items() if token_id < vocab_size},
        stop_token_ids=tuple(token_id for token_id in sampling.stop_token_ids if token_id < vocab_size),
    )
    stop_ids = tuple(token_id for token_id in spec.stop_ids if token_id < vocab_size)
    return replace(spec, sampling=known, stop_ids=stop_ids)
