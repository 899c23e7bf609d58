"""The book of a drafter that reads features, alone and in the scheduler. The fake drafter refuses a span that lacks the
true feature of every token that needs one, so a gap or a zero anywhere fails these tests."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minedraft.core import events, feature_book
from minedraft.core.feature_book import MAX_RECOMPUTES, RECOMPUTE_PRICE, FeatureBook
from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.base import DraftOffer
from minedraft.core.request import NewRequest, Request
from minedraft.core.scheduler import Scheduler
from minedraft.engine.mirrors import make_book, make_ledger
from minedraft.errors import InvalidRequest, ProtocolError
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, Mode, RoundId
from tests.fakes.features import LAYERS, SIZE, features_of
from tests.fakes.workers import EPOCH, VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation, next_token

BLOCK_SIZE = 4
CONTEXT = 64


class FeatureBookMachine(RuleBasedStateMachine):
    """An engine of somebody else's, whose target runs any number of tokens of a request at a time."""

    @initialize(num_blocks=st.integers(2, 40), vocab_size=st.sampled_from([VOCAB_SIZE, VOCAB_SIZE - 7]))
    def start(self, num_blocks: int, vocab_size: int) -> None:
        self.drafter = FakeDrafter(num_blocks, BLOCK_SIZE, CONTEXT, lambda n: n % 4 != 0, vocab_size, True)
        self.book = FeatureBook(KvLedger(num_blocks, BLOCK_SIZE, CONTEXT), vocab_size, LAYERS, SIZE)
        self.live: dict[int, Request] = {}
        self.num_requests = self.num_rounds = 0
        self.will_refuse = False

    @rule(prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=40))
    def arrive(self, prompt: list[int]) -> None:
        self.num_requests += 1
        new = NewRequest(tuple(prompt), SamplingParams(max_new_tokens=200))
        self.live[self.num_requests] = Request.create(self.num_requests, new)

    @rule(draft_len=st.integers(1, 5), budget=st.integers(1, 30), num_rejected=st.integers(0, 5))
    def step(self, draft_len: int, budget: int, num_rejected: int) -> None:
        drafts, prefills = self._plan(draft_len, budget)
        proposals = self._ask(drafts, "draft")
        self._ask(prefills, "prefill")
        for request in self.live.values():
            request.verifier_len = self.book.recompute_from(request, request.verifier_len, budget)
            end = min(request.verifier_len + budget, len(request.tokens))
            wants = self.book.wants_features(request, request.verifier_len, end)
            known = list(request.tokens)
            if end == len(known):
                proposed = proposals.get(request.id, ())
                for draft in proposed[: max(len(proposed) - num_rejected, 0)]:
                    if draft != next_token(known):
                        break
                    known.append(draft)
                end = len(known)
                known.append(next_token(known))
                self.book.accepted(request.id, len(request.tokens), end - len(request.tokens))
            if wants:
                self.book.deliver(request, features_of(known[:end], request.verifier_len))
            request.tokens, request.verifier_len = known, end

    @rule()
    def refuse_the_next_command(self) -> None:
        self.will_refuse = True

    @rule()
    def the_verifier_is_lost(self) -> None:
        self.book.drop_features()
        for request in self.live.values():
            request.verifier_len = 0

    @precondition(lambda self: self.live)
    @rule(choice=st.integers(0, 20), is_preempted=st.booleans(), is_news_lost=st.booleans())
    def leave(self, choice: int, is_preempted: bool, is_news_lost: bool) -> None:
        self.will_refuse |= is_news_lost
        request_id = sorted(self.live)[choice % len(self.live)]
        if is_preempted:
            self.book.release(request_id)
            self.live[request_id].verifier_len = 0
            return
        del self.live[request_id]
        self.book.forget(request_id)

    @invariant()
    def the_book_promises_what_the_drafter_has_and_counts_what_it_holds(self) -> None:
        if not hasattr(self, "book"):
            return
        assert self.book.kv.num_free <= self.drafter.kv.pool.num_free
        held = self.book._held
        assert held.keys() <= self.live.keys()
        assert self.book._num_held == sum(piece.end - piece.start for pieces in held.values() for piece in pieces)
        for request_id, pieces in held.items():
            assert all(before.end >= after.start for before, after in pairwise(pieces)), "no gap is kept"
            assert pieces[0].start <= max(self.book._next(self.live[request_id]) - 1, 0)
            assert sum(p.end - p.start for p in pieces) <= 2 * len(self.live[request_id].tokens)

    def teardown(self) -> None:
        if hasattr(self, "book"):
            for request_id in self.live:
                self.book.forget(request_id)
            self.live.clear()
            self.will_refuse = False
            self._ask((), "draft")
            assert self.drafter.kv.pool.num_free == self.drafter.info.num_blocks
            assert self.book._num_held == 0

    def _plan(self, draft_len: int, budget: int) -> tuple[tuple[DraftSpan, ...], tuple[DraftSpan, ...]]:
        drafts, prefills = [], []
        for request in self.live.values():
            is_decoding = len(request.tokens) - request.verifier_len <= 1
            if is_decoding and (num_drafts := self.book.draft_len(request, draft_len, budget)):
                drafts.append(self.book.plan_draft(request, num_drafts))
            elif num_tokens := self.book.prefill_len(request, budget):
                prefills.append(self.book.plan_prefill(request, num_tokens))
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
        self.book.executed(command)
        return {proposal.request_id: proposal.tokens for proposal in reply.proposals}

    def _refusal(self, command: DraftCommand) -> None:
        if self.will_refuse:
            self.will_refuse = False
            error = InvalidRequest("tokens", "odd", "refused for the test")
            error.request_id = command.spans[-1].request_id if command.spans and self.num_rounds % 2 else None
            raise error


TestFeatureBookMachine = FeatureBookMachine.TestCase
TestFeatureBookMachine.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, derandomize=True, phases=(Phase.generate,)
)


class Service:
    """Scheduler and fakes, a whole round at a time."""

    def __init__(self, prefill_chunk: int = 64, drafter_blocks: int = 200, policy: NoneIn | None = None) -> None:
        self.verifier, self.drafter = FakeVerifier(200), FakeDrafter(drafter_blocks, reads_features=True)
        limits = SchedulerLimits(Mode.SD, 4, draft_len=3, prefill_chunk=prefill_chunk, max_model_len=128)
        self.scheduler = Scheduler(limits, make_ledger(self.verifier.info), None, policy)
        self.scheduler.attach_drafter(make_book(self.drafter.info))

    def add(self, prompt_len: int, max_new: int = 60, first: int = 1) -> Request:
        prompt = tuple((first + i) % VOCAB_SIZE for i in range(prompt_len))
        return self.scheduler.add(NewRequest(prompt, SamplingParams(max_new_tokens=max_new)))

    def replace_drafter(self) -> None:
        self.drafter = FakeDrafter(200, reads_features=True)
        self.scheduler.detach_drafter()
        self.scheduler.attach_drafter(make_book(self.drafter.info))

    def round(self, batch: Batch = Batch.A) -> VerifyCommand | None:
        """Run one round and return its verify command; None if there is nothing to do."""
        if (plan := self.scheduler.plan(batch)) is None:
            return None
        proposals = []
        for method, spans in (("draft", plan.drafts), ("prefill", plan.prefills)):
            if spans:
                command = plan.book.command(RoundId(EPOCH, batch, plan.number), spans)
                proposals += self.drafter.execute(command, method).proposals
                plan.book.executed(command)
        spans = self.scheduler.assemble(plan, proposals)
        released = self.scheduler.verifier_kv.take_releases()
        verify = VerifyCommand(RoundId(EPOCH, batch, plan.number), spans, released, plan.feature_layers)
        reply = self.verifier.execute(verify)
        self.scheduler.verifier_kv.acknowledge(released)
        self.scheduler.commit(plan, spans, reply.verdicts)
        return verify

    def rounds(self, num: int) -> list[VerifyCommand]:
        return [command for _ in range(num) if (command := self.round()) is not None]


def test_a_prompt_and_then_each_round_reach_the_drafter_once() -> None:
    service = Service(prefill_chunk=32)
    request = service.add(60)
    service.rounds(8)
    assert request.num_accepted > 0
    taken = [(span.features_start, span.committed_len - 1) for c in service.drafter.commands for span in c.spans]
    assert [start for start, _ in taken] == [0, *(end for _, end in taken[:-1])]
    kinds = [bool(span.draft_len) for c in service.drafter.commands for span in c.spans]
    assert kinds[:3] == [False, True, True], "a chunk while the next one is verified, the rest with the first draft"
    assert service.scheduler.book._num_held <= 2 * (3 + 1), "only the last rounds' features are kept"


def test_a_round_whose_draft_takes_a_prompt_counts_as_one_with_a_prompt() -> None:
    """Its draft takes longer than others, and must not be taken as what a draft costs."""
    service = Service()
    service.add(40)
    service.rounds(4)
    committed = [event for event in service.scheduler.take_events() if isinstance(event, events.RoundCommitted)]
    assert [event.is_prefill for event in committed] == [True, True, False, False]
    assert [bool(event.accepted) for event in committed] == [False, True, True, True]


def test_a_draft_whose_round_is_not_verified_is_asked_for_again_with_its_feature() -> None:
    service = Service()
    request = service.add(20)
    service.rounds(3)
    book, taken = service.scheduler.book, []
    for number in (101, 102):
        assert book.draft_len(request, 3, 64) == 3
        command = book.command(RoundId(EPOCH, Batch.A, number), (book.plan_draft(request, 3),))
        service.drafter.execute(command)
        book.executed(command)
        taken.append((command.spans[0].prefix_len, command.spans[0].tokens[-1]))
    assert taken[1] == (len(request.tokens) - 1, request.tokens[-1]), "the last token, with the feature before it"


def test_features_of_a_request_that_was_released_meanwhile_or_of_a_lost_verifier_are_not_kept() -> None:
    service = Service()
    request = service.add(20)
    service.rounds(3)
    book, start = service.scheduler.book, request.verifier_len
    assert book._num_held > 0
    assert book.wants_features(request, start, start + 1)
    book.release(request.id)
    assert book._num_held == 0
    book.deliver(request, features_of(request.tokens[: start + 1], start))
    assert book._num_held == 0, "nothing begins with what follows a gap"
    book.deliver(request, features_of(request.tokens, 0))
    assert book._num_held == len(request.tokens)
    service.scheduler.detach_verifier()
    assert book._num_held == 0, "they may lie in its memory"


def test_a_new_drafter_gets_its_features_from_the_verifier_and_drafts_on() -> None:
    service = Service()
    request = service.add(20)
    service.rounds(4)
    service.replace_drafter()
    before, tokens = request.num_drafted, list(request.tokens)
    again, first, *_ = service.rounds(6)
    assert (again.spans[0].prefix_len, again.spans[0].tokens) == (0, tuple(tokens)), "the whole request runs again"
    assert again.spans[0].sample, "and gets its next token with it"
    assert first.spans[0].drafts
    assert request.num_drafted > before
    assert request.tokens[20:] == continuation(request.tokens[:20], len(request.tokens) - 20)


def test_requests_take_turns_to_run_again_and_go_on_without_drafts_meanwhile() -> None:
    service = Service(prefill_chunk=32)
    requests = [service.add(30, 90, first=n) for n in range(4)]
    service.rounds(6)
    service.replace_drafter()
    at_once = []
    for command in service.rounds(16):
        again = [span for span in command.spans if len(span.tokens) > 1]
        at_once.append(len(again))
        assert sum(len(span.tokens) for span in again) <= 16, "half of a round is left to newcomers"
        assert all(span.sample for span in command.spans if span not in again)
        assert len(command.spans) == 4, "nobody sits a round out"
    assert set(at_once) == {0, 1}
    assert all(request.num_drafted > 0 for request in requests)


def test_newcomers_have_half_of_each_round_while_another_runs_again() -> None:
    service = Service(prefill_chunk=16)
    service.add(60)
    service.rounds(8)
    service.replace_drafter()
    service.add(24)
    command = service.round()
    assert [len(span.tokens) for span in command.spans] == [8, 8]


@pytest.mark.parametrize(("max_new", "is_worth"), [(60, True), (30, True), (10, False)])
def test_a_request_near_its_end_is_not_run_again(max_new: int, is_worth: bool) -> None:
    service = Service()
    request = service.add(40, max_new)
    service.rounds(2)
    service.replace_drafter()
    assert (len(request.tokens) - 1 <= RECOMPUTE_PRICE * request.remaining_len) is is_worth
    (command,) = service.rounds(1)
    assert (len(command.spans[0].tokens) > 1) is is_worth
    assert command.spans[0].wants_features is is_worth
    service.rounds(60)
    assert len(request.tokens) == 40 + max_new


def test_a_drafter_that_loses_features_again_and_again_is_served_a_few_times() -> None:
    service = Service()
    request = service.add(8, 100)
    num_again = 0
    for _ in range(12):
        (command,) = service.rounds(1)
        num_again += request.output_len > 1 and len(command.spans[0].tokens) > 1
        service.scheduler.book.release(request.id)
        service.scheduler.book.kv.acknowledge(service.scheduler.book.kv.take_releases())
        service.drafter.kv.release([request.id])
    assert num_again == MAX_RECOMPUTES


def test_features_of_all_requests_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_book, "_MAX_HELD_BYTES", 4 * SIZE * 50)
    monkeypatch.setattr(feature_book, "_MAX_MESSAGE_BYTES", 4 * SIZE * 40)
    service = Service(prefill_chunk=64, drafter_blocks=2)  # the drafter can hold nobody, so it takes nothing
    requests = [service.add(30, 90, first=n) for n in range(4)]
    for _ in range(8):
        command = service.round()
        assert sum(len(span.tokens) for span in command.spans if span.wants_features) <= 40, "they fit in a message"
        assert service.scheduler.book._num_held <= 50
    assert service.scheduler.book._num_held > 20
    assert all(request.output_len > 1 for request in requests)


class NoneIn:
    """A policy that wants no drafts in some rounds."""

    def __init__(self, rounds: range) -> None:
        self._rounds = rounds
        self.num_rounds = 0

    def draft_len(self, request: Request, batch_size: int, max_draft_len: int) -> int:
        return 0 if self.num_rounds in self._rounds else max_draft_len

    def select(self, offers: Sequence[DraftOffer]) -> Sequence[int]:
        return [offer.num_drafts for offer in offers]

    def observe(self, event: object, now_s: float) -> None:
        pass


@pytest.mark.parametrize("max_idle_lag", [256, 12])
def test_a_policy_that_wants_no_drafts_for_a_while_costs_a_long_gap_only(
    max_idle_lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_book, "MAX_IDLE_LAG", max_idle_lag)
    policy = NoneIn(range(4, 30))
    service = Service(policy=policy)
    service.add(10, 100)
    again = []
    for policy.num_rounds in range(34):
        command = service.round()
        again += [span for span in command.spans if len(span.tokens) > 1 and span.prefix_len]
    assert len(service.drafter.commands) >= 6
    assert service.drafter.commands[-1].spans[0].draft_len > 0, "it drafts again"
    assert len(again) == (max_idle_lag < 256), "what was not kept is computed again, and only that"
    assert all(span.prefix_len > 20 for span in again)


def test_without_drafts_no_features_are_asked_for() -> None:
    service = Service()
    terms = service.scheduler.limits.terms
    service.scheduler.reconfigure(service.scheduler.limits.lent(terms.__class__(Mode.AR, 4, 0)), "test")
    service.add(20)
    request = service.scheduler.add(NewRequest((1, 2, 3), SamplingParams(max_new_tokens=40, draft_len=0), stop_ids=()))
    commands = service.rounds(3)
    assert not any(span.wants_features or command.feature_layers for command in commands for span in command.spans)
    service.scheduler.reconfigure(service.scheduler.limits.lent(terms), "test")
    spans = [span for command in service.rounds(6) for span in command.spans]
    assert {span.request_id for span in spans if span.wants_features} == {1}, "the other request wants no drafts"
    assert request.num_drafted == 0
