"""Random schedules of adds, aborts, stops, refusals, changes of mode, loss and return of workers, and rounds of both
batches in any order, against workers that check every claim, and every event against what has happened."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minedraft.core.ledger import KvLedger
from minedraft.core.limits import SchedulerLimits
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.core.request import NewRequest, RequestUpdate
from minedraft.core.rounds import RoundPlan
from minedraft.core.running_ahead import plan_runs
from minedraft.core.scheduler import Scheduler
from minedraft.engine.mirrors import make_book, make_ledger
from minedraft.errors import InternalError, InvalidRequest, Overloaded, ProtocolError, ReplaysExhausted
from minedraft.messages import DraftSpan, Proposal, VerifyCommand
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, FinishReason, LoanTerms, Mode, RoundId
from tests.fakes.policies import AnyDraftPolicy
from tests.fakes.workers import EPOCH, VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation, is_fifth
from tests.support.told import Told
from tests.unit.core.flights import InFlight, Refusal

RARELY = st.integers(0, 9).map(lambda n: n == 9)
# Prompts of one and two tokens, and answers of one, use one worker's budget and not the other's.
PROMPT_LENS = st.one_of(st.integers(1, 10), st.integers(1, 58))
OUTPUT_LENS = st.one_of(st.integers(1, 2), st.integers(3, 30))
SALTS = st.integers(1, VOCAB_SIZE - 1)
# What a request says of its own drafts, by its salt.
DRAFTING = ({}, {}, {}, {"draft_len": 1}, {"draft_len": 9}, {"speculate": False})


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        mode=st.sampled_from(Mode),
        max_batch_size=st.integers(1, 4),
        draft_len=st.integers(1, 5),
        extra_drafts=st.integers(0, 3),
        prefill_chunk=st.sampled_from([3, 8, 64]),
        verifier_blocks=st.integers(4, 40),
        drafter_blocks=st.integers(2, 40),
        drafter_context=st.sampled_from([24, 64]),
        drafter_vocab=st.sampled_from([VOCAB_SIZE, VOCAB_SIZE - 7, VOCAB_SIZE + 31]),
        error_period=st.integers(1, 5),
        reads_features=st.booleans(),
        branches=st.integers(1, 6),
        max_replays=st.integers(0, 3),
    )
    def start(
        self,
        mode: Mode,
        max_batch_size: int,
        draft_len: int,
        extra_drafts: int,
        prefill_chunk: int,
        verifier_blocks: int,
        drafter_blocks: int,
        drafter_context: int,
        drafter_vocab: int,
        error_period: int,
        reads_features: bool,
        branches: int,
        max_replays: int,
    ) -> None:
        self.verifier = FakeVerifier(verifier_blocks, 4, 64)
        self.make_drafter = lambda: FakeDrafter(
            drafter_blocks, 4, drafter_context, lambda n: n % error_period != 0, drafter_vocab, reads_features, is_fifth
        )
        limits = SchedulerLimits(mode, max_batch_size, draft_len, prefill_chunk, 6, 64, branches, False, extra_drafts)
        limits = replace(limits, max_replays=max_replays, max_steps=branches)  # each is of one mode alone
        policy = TetrisPolicy(AnyDraftPolicy(error_period), extra_drafts)
        self.scheduler = Scheduler(limits, make_ledger(self.verifier.info), None, policy)
        self.told = Told()
        # Of each batch, the round in flight and the one that follows it.
        self.in_flight: dict[Batch, list[InFlight]] = {batch: [] for batch in Batch}
        self.mailbox: list[InFlight] = []  # everything sent to the present verifier, in order
        self.output: dict[int, list[int]] = {}
        self.wanted: dict[int, NewRequest] = {}
        self.ended: dict[int, RequestUpdate] = {}
        self.refusal = Refusal(names_a_request=False)
        self.refusal.is_spent = True
        self.gain_drafter()

    # What clients do

    @rule(burst=st.lists(st.tuples(PROMPT_LENS, OUTPUT_LENS, SALTS), min_size=1, max_size=5))
    def add(self, burst: list[tuple[int, int, int]]) -> None:
        for prompt_len, max_new, salt in burst:
            prompt = tuple((salt * i) % VOCAB_SIZE for i in range(1, prompt_len + 1))
            self._add(prompt, SamplingParams(max_new_tokens=max_new, **DRAFTING[salt % len(DRAFTING)]))

    @rule(choice=st.integers(0, 10))
    def abort(self, choice: int) -> None:
        live = sorted(self.scheduler.requests)
        if live:
            self._take([p] if (p := self.scheduler.abort(live[choice % len(live)])) else [])

    @rule(choice=st.integers(0, 10), is_reading=st.booleans())
    def read(self, choice: int, is_reading: bool) -> None:
        """A client stops to read, or goes on."""
        live = sorted(self.scheduler.requests)
        if live:
            (self.scheduler.resume if is_reading else self.scheduler.pause)(live[choice % len(live)])

    # What happens to workers

    @precondition(lambda self: self.scheduler.book is not None)
    @rule(really=RARELY)
    def lose_drafter(self, really: bool) -> None:
        if really:
            self.scheduler.detach_drafter()

    @precondition(lambda self: self.scheduler.book is None)
    @rule()
    def gain_drafter(self) -> None:
        self.drafter = self.make_drafter()
        self.scheduler.attach_drafter(make_book(self.drafter.info))

    @precondition(lambda self: self.scheduler.has_verifier)
    @rule(really=RARELY)
    def lose_verifier(self, really: bool) -> None:
        if really:
            self._take(self.scheduler.detach_verifier())

    @precondition(lambda self: not self.scheduler.has_verifier)
    @rule(num_blocks=st.integers(4, 40))
    def gain_verifier(self, num_blocks: int) -> None:
        """Another process, perhaps with less memory; a round of the last one may still be in flight."""
        self.verifier = FakeVerifier(num_blocks, 4, 64)
        self.mailbox.clear()
        self.refusal.is_spent = True
        self._take(self.scheduler.attach_verifier(make_ledger(self.verifier.info)))

    @precondition(lambda self: self.refusal.is_spent)
    @rule(really=RARELY, of_drafter=st.booleans(), names_a_request=st.booleans())
    def refuse_next_command(self, really: bool, of_drafter: bool, names_a_request: bool) -> None:
        if really:
            self.refusal = Refusal(names_a_request)
            (self.drafter if of_drafter else self.verifier).refuse = self.refusal

    @rule(mode=st.sampled_from(Mode), max_batch_size=st.integers(1, 4), draft_len=st.integers(1, 5))
    def reconfigure(self, mode: Mode, max_batch_size: int, draft_len: int) -> None:
        self.scheduler.reconfigure(self.scheduler.limits.lent(LoanTerms(mode, max_batch_size, draft_len)), "test")

    @rule(batch=st.sampled_from(Batch))
    def curtail(self, batch: Batch) -> None:
        if self.in_flight[batch]:
            self.verifier.curtail(self.in_flight[batch][-1].plan.number)

    # What the pipeline does, one hop at a time

    @rule(batch=st.sampled_from(Batch))
    def follow(self, batch: Batch) -> None:
        flights = self.in_flight[batch]
        if len(flights) == 1 and (plan := self.scheduler.follow(flights[0].plan)) is not None:
            assert plan.follows
            flights.append(InFlight(plan))

    @rule(batch=st.sampled_from(Batch))
    def advance_follower(self, batch: Batch) -> None:
        """It is sent and executed after the round that it follows, perhaps before that is committed."""
        first, *others = self.in_flight[batch] or [None]
        if others and self.scheduler.is_current(first.plan):
            follower = others[0]
            if first.verify_command is not None and follower.verify_command is None:
                self._send(batch, follower, ())
            elif first.is_executed and not follower.is_executed:
                self._verify(follower)

    @rule(batch=st.sampled_from(Batch))
    def advance(self, batch: Batch) -> None:
        if not self.in_flight[batch]:
            plan = self.scheduler.plan(batch)
            if plan is None:
                self._flush()
            else:
                self.in_flight[batch].append(InFlight(plan))
            return
        flight = self.in_flight[batch][0]
        if not self.scheduler.is_current(flight.plan):
            self.in_flight[batch].pop(0)
            self._take(self.scheduler.lose_round(flight.plan))
        elif flight.proposals is None:
            flight.proposals = self._ask_drafter(flight.plan, flight.plan.drafts, "draft")
        elif flight.verify_command is None:
            self._send(batch, flight, flight.proposals)
        elif not flight.is_executed:
            self._verify(flight)
        else:
            self._commit(batch, flight)

    @rule()
    def run_until_idle(self) -> None:
        if not self.scheduler.has_verifier:
            self.gain_verifier(40)
        for request_id in list(self.scheduler.requests):
            self.scheduler.resume(request_id)
        for _ in range(4000):
            if not self.scheduler.requests and not any(self.in_flight.values()):
                break
            for batch in Batch:
                self.follow(batch)
                self.advance(batch)
        assert not self.scheduler.requests, "a request is stuck"
        self._flush()
        assert self.scheduler.is_settled
        assert self.verifier.kv.pool.num_free == self.verifier.info.num_blocks
        if self.scheduler.book is not None:
            assert self.drafter.kv.pool.num_free == self.drafter.info.num_blocks

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            self.run_until_idle()

    # Always true

    @invariant()
    def batches_are_disjoint_and_bounded(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        seated = [r for b in self.scheduler.batches.batches for r in self.scheduler.batches.members(b)]
        assert len({r.id for r in seated}) == len(seated)
        assert {r.id for r in seated} | self._unseated == set(self.scheduler.requests)
        if self.scheduler.is_settled:
            limits = self.scheduler.limits
            assert all(self.scheduler.batches.size(b) <= limits.max_batch_size for b in Batch)
            assert limits.num_batches == 2 or not self.scheduler.batches.size(Batch.B)

    @invariant()
    def what_it_says_has_happened_is_what_has(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for event in self.scheduler.take_events():
            self.told.observe(event)
        assert self.told.seats == {r.id: b for b in Batch for r in self.scheduler.batches.members(b)}
        assert self.told.waiting == {r.id for r in self.scheduler.room.queue}
        assert self.told.paused == set(self.scheduler.room.paused)
        assert self.told.ended.keys() == self.ended.keys()
        assert all(self.told.ended[i].reason is update.finish_reason for i, update in self.ended.items())
        assert all((self.told.ended[i].error == "") is (update.error is None) for i, update in self.ended.items())
        assert self.told.num_tokens == sum(map(len, self.output.values()))
        assert self.told.in_flight == {f.plan.number for flights in self.in_flight.values() for f in flights}

    @invariant()
    def ledgers_never_count_less_than_the_workers_use(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        pairs = [(self.scheduler.verifier_kv, self.verifier.kv)] if self.scheduler.has_verifier else []
        if self.scheduler.book is not None:
            pairs.append((self.scheduler.book.kv, self.drafter.kv))
        for ledger, kv in pairs:
            assert ledger.pool.num_free <= kv.pool.num_free
            for owner in kv.pool.owners:
                assert ledger.pool.num_owned(owner) >= kv.pool.num_owned(owner)

    # Inside

    @property
    def _unseated(self) -> set[int]:
        return {r.id for r in self.scheduler.room.queue} | set(self.scheduler.room.paused)

    def _add(self, prompt: tuple[int, ...], sampling: SamplingParams) -> None:
        new = NewRequest(prompt, sampling, stop_ids=(0, VOCAB_SIZE - 1))
        try:
            request = self.scheduler.add(new)
        except Overloaded:
            assert len(self._unseated) >= self.scheduler.limits.max_waiting
            return
        except InvalidRequest:
            assert not self.scheduler.verifier_kv.fits(len(prompt) + sampling.output_limit), "refused though it fits"
            return
        self.wanted[request.id] = new
        self.output[request.id] = []

    def _ask_drafter(self, plan: RoundPlan, spans: tuple[DraftSpan, ...], method: str) -> tuple[Proposal, ...]:
        book = plan.book
        if not spans or book is None or book is not self.scheduler.book:
            return ()
        for span in spans:
            limit = self.wanted[span.request_id].sampling.draft_limit(16)
            assert limit >= max(span.draft_len, 1), "a request gets the drafts that it allows"
        command = book.command(RoundId(EPOCH, plan.batch, plan.number), spans)
        drafter = self.drafter
        before = self.refusal.is_spent
        try:
            reply = drafter.execute(command, method)
        except ProtocolError as error:
            if self.refusal.is_spent is before:  # not told to: the scheduler sent what it must not
                raise
            book.refused(command, error.request_id)
            return ()
        book.executed(command, reply.proposals)
        return reply.proposals

    def _send(self, batch: Batch, flight: InFlight, proposals: tuple[Proposal, ...]) -> None:
        spans = self.scheduler.assemble(flight.plan, proposals)
        released = self.scheduler.verifier_kv.take_releases() if spans else ()
        flight.proposals = proposals
        flight.verify_command = VerifyCommand(
            RoundId(EPOCH, batch, flight.plan.number), spans, released, flight.plan.feature_layers
        )
        self.mailbox.append(flight)

    def _verify_mail(self) -> None:
        """Execute what was sent in a chain of rounds: a release that is sent later must not come before it."""
        for flight in self.mailbox:
            is_in_chain = any(len(flights) > 1 and flight in flights for flights in self.in_flight.values())
            if (is_in_chain or flight.plan.follows) and not flight.is_executed:
                self._execute(flight)

    def _verify(self, flight: InFlight) -> None:
        self._verify_mail()
        if not flight.is_executed:
            self._execute(flight)

    def _execute(self, flight: InFlight) -> None:
        command, verifier = flight.verify_command, self.verifier
        before = self.refusal.is_spent
        try:
            flight.reply = verifier.execute(command)
        except ProtocolError as error:
            if self.refusal.is_spent is before:
                raise
            self.scheduler.verifier_kv.return_releases(command.released)
            flight.refusal = error
            return
        self.scheduler.verifier_kv.acknowledge(command.released)

    def _commit(self, batch: Batch, flight: InFlight) -> None:
        plan, runs = flight.plan, plan_runs(flight.plan, flight.verify_command.spans)
        self._ask_drafter(plan, plan.prefills + runs, "prefill")
        verdicts = flight.reply.verdicts if flight.reply else ()
        self.in_flight[batch].pop(0)
        if (refusal := flight.refusal) is not None:
            self._take(self.scheduler.abandon(flight.plan, refusal.request_id, InternalError(str(refusal))))
            return
        self._take(self.scheduler.commit(flight.plan, flight.verify_command.spans, verdicts))
        if self.scheduler.limits.num_batches == 2:
            surplus = self.scheduler.batches.size(batch) - self.scheduler.batches.size(batch.other)
            assert surplus <= 1, "a batch that has ended its round gives away what it has too many of"
        elif batch is Batch.B and self.scheduler.batches.size(Batch.B):
            assert not self.scheduler.batches.has_seat(), "a closed batch gives its members away while there are seats"

    def _flush(self) -> None:
        self._verify_mail()
        if self.scheduler.has_verifier and (released := self.scheduler.verifier_kv.take_releases()):
            self.verifier.kv.release(released)
            self.scheduler.verifier_kv.acknowledge(released)
        if self.scheduler.book and (released := self.scheduler.book.kv.take_releases()):
            self.drafter.kv.release(released)
            self.scheduler.book.kv.acknowledge(released)

    def _check_error(self, item: RequestUpdate) -> None:
        num_replays, most = item.request.num_replays, self.scheduler.limits.max_replays
        if isinstance(item.error, ReplaysExhausted):
            assert num_replays == most + 1, "not sooner, and not later"
        else:
            assert num_replays <= most or item.error is not None or item.finish_reason is FinishReason.ABORT
            assert item.error is None or "refused for the test" in str(item.error) or "came back" in str(item.error)

    def _take(self, progress: list[RequestUpdate]) -> None:
        for item in progress:
            request_id = item.request.id
            assert request_id not in self.ended, "a request ends once"
            self.output[request_id].extend(item.token_ids)
            truth = continuation(self.wanted[request_id].prompt_token_ids, len(self.output[request_id]))
            assert self.output[request_id] == truth, "every committed token is the target's own"
            stop_ids = self.wanted[request_id].stop_ids
            assert not set(stop_ids) & set(self.output[request_id][:-1]), "nothing follows a stop token"
            if item.is_final:
                self.ended[request_id] = item
                self._check_error(item)
                wanted = self.wanted[request_id].sampling.max_new_tokens
                if item.finish_reason is FinishReason.LENGTH:
                    assert len(self.output[request_id]) == wanted
                elif item.finish_reason is FinishReason.STOP:
                    assert self.output[request_id][-1] in stop_ids


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking takes longer than a test may; the schedule is printed as it is
)


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(SchedulerLimits(max_model_len=64), KvLedger(4, 4, 64), None)
    with pytest.raises(InvalidRequest, match="16 tokens") as caught:
        scheduler.add(NewRequest(tuple(range(10)), SamplingParams(max_new_tokens=7)))
    assert caught.value.field == "max_new_tokens"
