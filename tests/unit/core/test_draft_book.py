"""The drafter's book without our scheduler, as another engine's scheduler uses it: no event loop, requests of its
own kind, one drafter. The drafter checks every claim of the book against what it was really sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minedraft.core.draft_book import MAX_LAG, DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import Branch, DraftCommand, DraftSpan, Proposal, RunAhead
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, DraftMethod, RoundId, SequenceSpec
from tests.fakes.workers import EPOCH, VOCAB_SIZE, FakeDrafter, next_token

BLOCK_SIZE = 4
CONTEXT = 48


@dataclass
class EngineRequest:
    """A request of somebody else's: the target's engine appends to `tokens`."""

    id: int
    tokens: list[int]
    spec: SequenceSpec = field(
        default_factory=lambda: SequenceSpec(SamplingParams(), prompt_len=1, seed=0, acceptance=Acceptance.GREEDY)
    )


class BookMachine(RuleBasedStateMachine):
    @initialize(num_blocks=st.integers(2, 30), vocab_size=st.sampled_from([VOCAB_SIZE, VOCAB_SIZE - 7]))
    def start(self, num_blocks: int, vocab_size: int) -> None:
        self.drafter = FakeDrafter(
            num_blocks, BLOCK_SIZE, CONTEXT, lambda n: n % 4 != 0, vocab_size, False, lambda n: n % 5 == 0
        )
        self.book = DraftBook(KvLedger(num_blocks, BLOCK_SIZE, CONTEXT), vocab_size, can_run_ahead=True)
        self.live: dict[int, EngineRequest] = {}
        self.num_requests = self.num_rounds = self.num_drafted = 0
        self.will_refuse = False
        self.max_draft_len = 0

    @rule(prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20))
    def arrive(self, prompt: list[int]) -> None:
        self.num_requests += 1
        self.live[self.num_requests] = EngineRequest(self.num_requests, list(prompt))

    @rule(
        draft_len=st.integers(1, 5),
        budget=st.integers(1, 30),
        num_rejected=st.integers(0, 5),
        num_branches=st.integers(0, 5),
    )
    def step(self, draft_len: int, budget: int, num_rejected: int, num_branches: int) -> None:
        """One step of the engine: drafts where some are ready or the book offers some, prompts and runs ahead
        meanwhile, then its target's say."""
        ready = {r.id: prepared.tokens for r in self.live.values() if (prepared := self.book.ready(r)) is not None}
        drafts, prefills = self._plan(draft_len, budget, ready)
        proposals = ready | self._ask(drafts, "draft")
        runs = []
        if num_branches:
            in_prefill = {span.request_id for span in prefills}
            others = [r for r in self.live.values() if r.id not in in_prefill]
            runs = [self.book.plan_run(r, proposals.get(r.id, ()), draft_len, num_branches) for r in others]
        self._ask((*prefills, *[run for run in runs if run is not None]), "prefill")
        for request in self.live.values():
            proposed = proposals.get(request.id, ())
            committed_len, accepted_len = len(request.tokens), 0
            for draft in proposed[: max(len(proposed) - num_rejected, 0)]:
                if draft != next_token(request.tokens):
                    break
                request.tokens.append(draft)
                accepted_len += 1
            request.tokens.append(next_token(request.tokens))
            if self.book.judged(request.id, self.num_rounds, accepted_len, request.tokens[-1]) is None:
                self.book.accepted(request.id, committed_len, accepted_len)

    @rule()
    def refuse_the_next_command(self) -> None:
        self.will_refuse = True

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 20), is_preempted=st.booleans(), is_news_lost=st.booleans())
    def leave(self, choice: int, is_preempted: bool, is_news_lost: bool) -> None:
        """The command that should tell the drafter may be refused."""
        self.will_refuse |= is_news_lost
        request_id = sorted(self.live)[choice % len(self.live)]
        if is_preempted:
            self.book.release(request_id)
            return
        del self.live[request_id]
        self.book.forget(request_id)

    @invariant()
    def the_book_never_promises_what_the_drafter_has_not(self) -> None:
        if not hasattr(self, "book"):
            return
        assert self.book.kv.num_free <= self.drafter.kv.pool.num_free
        for request in self.live.values():
            cached_len = self.book.cached_len(request.id)
            assert cached_len == 0 or self._held(request.id)[:cached_len] == request.tokens[:cached_len]
            if (ready := self.book.ready(request)) is not None:
                assert self._held(request.id) == [*request.tokens, *ready.tokens[:-1]]

    def teardown(self) -> None:
        if hasattr(self, "book"):
            for request_id in self.live:
                self.book.forget(request_id)
            self.live.clear()
            self.will_refuse = False
            self._ask((), "draft")
            assert self.drafter.kv.pool.num_free == self.drafter.info.num_blocks

    def _held(self, request_id: int) -> list[int]:
        """Return the tokens that the drafter has cached, of the branch that the next span will name."""
        state = self.drafter.kv.requests.find(DraftSpan(request_id, 0, (0,), 0))
        branch = self.book.branch(request_id)
        if branch == 0:
            return list(state.tokens)
        held = state.branches[branch - 1]
        return [*state.tokens[: held.committed_len], *held.tokens]

    def _plan(
        self, draft_len: int, budget: int, ready: Mapping[int, tuple[int, ...]]
    ) -> tuple[tuple[DraftSpan, ...], tuple[DraftSpan, ...]]:
        drafts, prefills = [], []
        for request in self.live.values():
            if request.id in ready:
                continue
            if num_drafts := self.book.draft_len(request, draft_len, budget):
                assert len(request.tokens) - self.book.cached_len(request.id) <= max(MAX_LAG, self.max_draft_len + 1)
                self.max_draft_len = max(self.max_draft_len, num_drafts)
                drafts.append(self.book.plan_draft(request, num_drafts))
            elif num_tokens := self.book.prefill_len(request, budget):
                prefills.append(self.book.plan_prefill(request, num_tokens))
                budget -= num_tokens
        return tuple(drafts), tuple(prefills)

    def _ask(self, spans: tuple[DraftSpan, ...], method: str) -> dict[int, tuple[int, ...]]:
        self.num_rounds += 1
        command = self.book.command(RoundId(EPOCH, Batch.A, self.num_rounds), spans)
        self.drafter.refuse = self._refusal
        try:
            reply = self.drafter.execute(command, method)
        except ProtocolError as error:
            if "for the test" not in str(error):  # the book asked for what cannot be done
                raise
            self.book.refused(command, error.request_id)
            return {}
        self.book.executed(command, reply.proposals)
        return {proposal.request_id: proposal.tokens for proposal in reply.proposals if proposal.branch is None}

    def _refusal(self, command: DraftCommand) -> None:
        if self.will_refuse:
            self.will_refuse = False
            error = InvalidRequest("tokens", "odd", "refused for the test")
            error.request_id = command.spans[-1].request_id if command.spans and self.num_rounds % 2 else None
            raise error


TestBookMachine = BookMachine.TestCase
TestBookMachine.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, phases=(Phase.generate,)
)


@pytest.mark.parametrize(
    ("source", "num_proposed", "accepted_len", "lag"),
    [
        (DraftMethod.MODEL, 3, 3, MAX_LAG),
        (DraftMethod.MODEL, 3, 2, 1),
        (DraftMethod.NGRAM, 3, 3, 4),
        (DraftMethod.NGRAM, 3, 0, 1),
    ],
)
def test_the_next_draft_makes_up_what_a_round_left(
    source: DraftMethod, num_proposed: int, accepted_len: int, lag: int
) -> None:
    """The bonus token, the last draft of a model, and all drafts that were looked up."""
    book, request = DraftBook(KvLedger(16, BLOCK_SIZE, CONTEXT), VOCAB_SIZE), EngineRequest(1, [5, 6, 7])
    assert book.draft_len(request, 3, 10) == 0, "nothing is cached yet"
    assert book.prefill_len(request, 10) == 2, "the last token waits for the draft"
    book.executed(book.command(RoundId(1, Batch.A, 1), (book.plan_prefill(request, 2),)))
    assert book.draft_len(request, 3, 10) == 3
    command = book.command(RoundId(1, Batch.A, 2), (book.plan_draft(request, 3),))
    book.executed(command, [Proposal(1, 3, tuple(range(8, 8 + num_proposed)), source=source)])
    request.tokens += range(8, 8 + accepted_len + 1)
    book.accepted(1, committed_len=3, accepted_len=accepted_len)
    assert len(request.tokens) - book.cached_len(1) == lag
    assert book.draft_len(request, 3, 10) == 3
    assert book.prefill_len(request, 10) == 0
    assert book.plan_draft(request, 3).tokens == tuple(request.tokens[-lag:])


def test_drafts_that_were_not_verified_are_cached_no_less() -> None:
    book, request = DraftBook(KvLedger(16, BLOCK_SIZE, CONTEXT), VOCAB_SIZE), EngineRequest(1, [5])
    assert book.draft_len(request, 4, 10) == 4
    book.executed(book.command(RoundId(1, Batch.A, 1), (book.plan_draft(request, 4),)), [Proposal(1, 1, (6, 7, 8, 9))])
    request.tokens += [6, 7, 10]  # two of the four were verified, and accepted
    book.accepted(1, committed_len=1, accepted_len=2)
    assert book.cached_len(1) == 3


@pytest.mark.parametrize("is_draft", [True, False])
def test_a_request_released_while_its_command_is_on_its_way_is_introduced_anew(is_draft: bool) -> None:
    """Another engine preempts whenever it likes. What the command caches goes with the next one: a book that took
    it for cached would send a span without the request's settings, be refused, and bar the request from drafts."""
    book, request = DraftBook(KvLedger(16, BLOCK_SIZE, CONTEXT), VOCAB_SIZE), EngineRequest(1, [5, 6, 7])
    assert book.draft_len(request, 3, 2) == 0
    span = book.plan_draft(request, 3) if is_draft else book.plan_prefill(request, 2)
    first = book.command(RoundId(1, Batch.A, 1), (span,))
    book.release(1)
    book.executed(first, [Proposal(1, 3, (8, 9, 10))] if is_draft else [])
    assert book.cached_len(1) == 0
    assert book.draft_len(request, 3, 10) == 0, "its release is on its way"
    second = book.command(RoundId(1, Batch.B, 2), ())
    assert second.released == (1,)
    book.executed(second)
    assert book.prefill_len(request, 10) == 2
    anew = book.plan_prefill(request, 2)
    assert (anew.spec, anew.tokens) == (request.spec, (5, 6))


def test_drafts_are_ready_only_for_the_verdict_that_they_were_prepared_for() -> None:
    for accepted_len, bonus, number, came_true in [
        (1, 8, 2, True),
        (0, 9, 2, True),
        (0, 8, 2, False),
        (1, 9, 2, False),
        (1, 8, 3, None),
    ]:
        book, request = DraftBook(KvLedger(32, BLOCK_SIZE, CONTEXT), VOCAB_SIZE, True), EngineRequest(1, [5, 6])
        assert book.prefill_len(request, 9) == 0, "two tokens are for the run itself"
        run = book.plan_run(request, (7,), 2, 3)
        assert run == DraftSpan(1, 0, (5, 6, 7), 2, request.spec, ahead=RunAhead(1, 3))
        command = book.command(RoundId(1, Batch.A, 2), (run,))
        first, second = Proposal(1, 4, (20, 21), branch=Branch(1, 8)), Proposal(1, 3, (30, 31), branch=Branch(0, 9))
        book.executed(command, (first, second))
        assert book.ready(request) is None
        assert book.judged(1, number, accepted_len, bonus) is came_true
        request.tokens += [*(7,) * accepted_len, bonus]
        ready = book.ready(request)
        assert (ready is not None) is (came_true is True)
        if ready is not None:
            assert ready == (Proposal(1, 4, (20, 21)) if accepted_len else Proposal(1, 3, (30, 31)))
            assert book.cached_len(1) == len(request.tokens)
            following = book.plan_run(request, ready.tokens, 2, 3)
            assert following is not None
            assert following.branch == (0 if accepted_len else 1), "its place in the reply"
            request.tokens.append(1)
            assert book.ready(request) is None, "the request has gone on without them"
        book.forget(1)
        assert book.judged(1, number, accepted_len, bonus) is None
