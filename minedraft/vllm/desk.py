"""What the drafter is asked for and what is learnt from its answers: the side of the plugin that knows rounds. Pure.

The engine reports every step (`StepReport`); the desk keeps a copy of the requests' tokens, the drafter's book, and
the policy that sets the number of drafts. Requests have vLLM's names outside and numbers inside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from minedraft.core import events
from minedraft.core.draft_book import DraftBook
from minedraft.core.policy.base import DraftPolicy
from minedraft.core.policy.forecast.experience import Experience
from minedraft.core.policy.guarded import GuardedDraftPolicy
from minedraft.core.request import Request
from minedraft.core.round_stats import RoundStats
from minedraft.messages import DraftCommand, DraftReply, DraftSpan, Timing
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, FinishReason, Mode, RoundId, SequenceSpec

PREFILL_TOKENS = 256  # committed tokens that one command has the drafter cache
INLINE_TOKENS = 8  # tokens of a request that a draft waits for; one that lacks more is left out until they are cached


@dataclass(frozen=True, slots=True)
class Newcomer:
    """A request that the target begins with. output_limit: tokens that it can have after the prompt."""

    name: str
    tokens: tuple[int, ...]
    prompt_len: int
    output_limit: int


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a step gave a request: its new tokens, of which the first `accepted_len` were drafts."""

    name: str
    tokens: tuple[int, ...]
    num_drafts: int = 0
    accepted_len: int = 0


@dataclass(frozen=True, slots=True)
class StepReport:
    """What happened to the requests since the last report, and for which of them drafts are wanted.

    Attributes:
        batch: the group that was verified, for which `wanted` names the requests to draft for.
        preempted: requests that lost their KV in the target; they come back.
        verify_s: seconds from the begin of the forward to its tokens; 0 without a forward.
        is_prefill: whether prompt tokens were in the forward.
        num_active: groups that have requests afterwards.
    """

    batch: Batch
    newcomers: tuple[Newcomer, ...] = ()
    outcomes: tuple[StepOutcome, ...] = ()
    preempted: tuple[str, ...] = ()
    ended: tuple[str, ...] = ()
    wanted: tuple[str, ...] = ()
    verify_s: float = 0.0
    is_prefill: bool = False
    num_active: int = 1


@dataclass(frozen=True, slots=True)
class Drafts:
    """Drafts that follow the first `committed_len` tokens of a request."""

    committed_len: int
    tokens: tuple[int, ...]


class DraftDesk:
    """Turns reports into commands for the drafter. It works without a drafter as well: nothing is drafted then.

    Args:
        draft_len: most drafts of a request. policy: how many of them to ask for. experience: what it learns from.
        mode: MINEDRAFT if two groups take turns, SD for one.
        on_failure: called with what the policy did wrong, which is replaced then.

    Attributes:
        stats: statistics of the recent rounds.
        tried, accepted: drafts that were verified and accepted so far, by position.
    """

    def __init__(
        self,
        draft_len: int,
        policy: DraftPolicy,
        experience: Experience,
        mode: Mode,
        on_failure: Callable[[str], None] = lambda cause: None,
    ) -> None:
        self.stats = RoundStats()
        self.tried = [0] * draft_len
        self.accepted = [0] * draft_len
        self._draft_len = draft_len
        self._policy = policy
        self._guarded = GuardedDraftPolicy(policy, on_failure)
        self._experience = experience
        self._book: DraftBook | None = None
        self._epoch = 0
        self._requests: dict[str, Request] = {}
        self._names: dict[int, str] = {}
        self._busy: set[int] = set()  # requests with a command on its way
        self._open: dict[Batch, int] = {}  # the number of a group's present round
        self._num_rounds = self._num_requests = 0
        self._publish(events.ModeChanged(mode, 0, draft_len, "settings"), 0.0)

    @property
    def book(self) -> DraftBook | None:
        """The present drafter's book; None while there is no drafter."""
        return self._book

    @property
    def num_busy(self) -> int:
        """Requests that have a command on its way."""
        return len(self._busy)

    def attach(self, book: DraftBook, epoch: int) -> None:
        """Draft with a drafter that knows no request."""
        self._book, self._epoch = book, epoch
        self._busy.clear()

    def detach(self) -> None:
        """Go on without a drafter."""
        self._book = None
        self._busy.clear()

    # Reports

    def take_in(self, report: StepReport, now_s: float) -> None:
        """Record what happened."""
        for newcomer in report.newcomers:
            self._admit(newcomer)
        judged = [self._commit(outcome) for outcome in report.outcomes if outcome.name in self._requests]
        if report.verify_s and report.batch in self._open:
            self._end_round(report, [pair for pair in judged if pair[0]], now_s)
        for name in report.preempted:
            if name in self._requests and self._book is not None:
                self._book.release(self._requests[name].id)
        for name in report.ended:
            self._forget(name, now_s)

    def _admit(self, newcomer: Newcomer) -> None:
        self._num_requests += 1
        sampling = SamplingParams(max_new_tokens=max(newcomer.output_limit, 1))
        # The drafter proposes its likeliest tokens: the target takes every draft as certain, whatever its own sampling.
        spec = SequenceSpec(sampling, newcomer.prompt_len, 0, Acceptance.GREEDY)
        self._requests[newcomer.name] = Request(self._num_requests, list(newcomer.tokens), spec)
        self._names[self._num_requests] = newcomer.name

    def _commit(self, outcome: StepOutcome) -> tuple[int, int]:
        request = self._requests[outcome.name]
        committed_len = len(request.tokens)
        request.tokens.extend(outcome.tokens)
        if outcome.num_drafts:
            request.num_rounds += 1
            request.num_drafted += outcome.num_drafts
            request.num_accepted += outcome.accepted_len
            for position in range(outcome.num_drafts):
                self.tried[position] += 1
                self.accepted[position] += position < outcome.accepted_len
            if self._book is not None:
                self._book.accepted(request.id, committed_len, outcome.accepted_len)
        return outcome.num_drafts, outcome.accepted_len

    def _end_round(self, report: StepReport, judged: Sequence[tuple[int, int]], now_s: float) -> None:
        number, num_tokens = self._open.pop(report.batch), sum([len(outcome.tokens) for outcome in report.outcomes])
        timing = Timing(busy_ns=round(report.verify_s * 1e9))
        self._publish(events.Verified(report.batch, number, timing), now_s)
        committed = events.RoundCommitted(
            report.batch,
            number,
            len(report.outcomes),
            num_tokens,
            tuple(judged),
            report.is_prefill,
            report.num_active,
        )
        self._publish(committed, now_s)

    def _forget(self, name: str, now_s: float) -> None:
        if (request := self._requests.pop(name, None)) is None:
            return
        del self._names[request.id]
        self._busy.discard(request.id)
        if self._book is not None:
            self._book.forget(request.id)
        self._publish(events.RequestEnded(request.id, request.output_len, FinishReason.STOP), now_s)

    # Commands

    def nearly_ready(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return those requests of which the drafter lacks a few tokens, but more than a draft makes up."""
        lacking = [(request, book.prefill_len(request, PREFILL_TOKENS)) for book, request in self._idle(names)]
        return tuple([self._names[request.id] for request, size in lacking if 0 < size <= INLINE_TOKENS])

    def plan_prefill(self, names: Iterable[str], budget: int) -> DraftCommand | None:
        """Return a command that has the drafter cache at most `budget` tokens of these requests; None for nothing."""
        spans = []
        for book, request in self._idle(names):
            num_tokens = book.prefill_len(request, budget)
            if num_tokens > 0:
                spans.append(book.plan_prefill(request, num_tokens))
                budget -= num_tokens
        return self._command(Batch.A, tuple(spans)) if spans else None

    def plan_draft(self, batch: Batch, names: Sequence[str], now_s: float) -> DraftCommand | None:
        """Begin a round of a group. Return the command that drafts for it; None if no request can have drafts."""
        spans = []
        for book, request in self._idle(names):
            most = min(self._draft_len, request.remaining_len - 1)
            request.batch = batch
            wanted = self._guarded.draft_len(request, len(names), most) if most > 0 else 0
            draft_len = book.draft_len(request, min(wanted, most), PREFILL_TOKENS) if wanted > 0 else 0
            if draft_len:
                spans.append(book.plan_draft(request, draft_len))
        if batch in self._open:
            self._publish(events.RoundAbandoned(batch, self._open[batch]), now_s)
        command = self._command(batch, tuple(spans)) if spans else None
        if command is None:
            self._num_rounds += 1
        number = self._open[batch] = self._num_rounds
        lens = [span.draft_len for span in spans]
        self._publish(events.RoundPlanned(batch, number, len(names), 0, sum(lens), max(lens, default=0)), now_s)
        return command

    def executed(self, command: DraftCommand, reply: DraftReply, now_s: float) -> dict[str, Drafts]:
        """Record the answer to a command. Return the drafts in it."""
        if self._book is None or command.round.epoch != self._epoch:
            return {}
        self._busy.difference_update([span.request_id for span in command.spans])
        self._book.executed(command, reply.proposals)
        is_prefill = not any(span.draft_len for span in command.spans)
        self._publish(events.Drafted(command.round.batch, command.round.number, reply.timing, is_prefill), now_s)
        known = [proposal for proposal in reply.proposals if proposal.request_id in self._names]
        return {self._names[each.request_id]: Drafts(each.committed_len, each.tokens) for each in known}

    def refused(self, command: DraftCommand, culprit: int | None) -> None:
        """Record that a command was not executed; see `DraftBook.refused`."""
        if self._book is not None and command.round.epoch == self._epoch:
            self._busy.difference_update([span.request_id for span in command.spans])
            self._book.refused(command, culprit)

    def _idle(self, names: Iterable[str]) -> list[tuple[DraftBook, Request]]:
        """Return the book with each of the requests that have no command on its way; nothing without a drafter."""
        if (book := self._book) is None:
            return []
        requests = [self._requests[name] for name in names if name in self._requests]
        return [(book, request) for request in requests if request.id not in self._busy]

    def _command(self, batch: Batch, spans: tuple[DraftSpan, ...]) -> DraftCommand:
        assert self._book is not None, "no spans are planned without a drafter"
        self._num_rounds += 1
        self._busy.update([span.request_id for span in spans])
        return self._book.command(RoundId(self._epoch, batch, self._num_rounds), spans)

    def _publish(self, event: events.Event, now_s: float) -> None:
        self._experience.observe(event, now_s)
        self._policy.observe(event, now_s)
        self.stats.observe(event, now_s)
