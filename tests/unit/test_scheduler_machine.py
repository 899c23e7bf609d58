"""Random schedules of adds, aborts, stops, drafter loss and rounds of both batches in any order,
against workers that check every KV claim. Thousands of steps, no clock, no I/O."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minedraft.errors import InvalidRequest, Overloaded
from minedraft.ledger import KvLedger
from minedraft.request import NewRequest, Progress
from minedraft.rounds import RoundPlan
from minedraft.sampling_params import SamplingParams
from minedraft.scheduler import Scheduler, SchedulerLimits
from minedraft.types import (
    Batch,
    DraftCommand,
    DraftReply,
    FinishReason,
    Mode,
    Proposal,
    RoundId,
    VerifyCommand,
    VerifyReply,
)
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation


class InFlight:
    """A round of one batch, at the point it has reached."""

    def __init__(self, plan: RoundPlan) -> None:
        self.plan = plan
        self.proposals: tuple[Proposal, ...] | None = None
        self.draft_command: DraftCommand | None = None
        self.verify_command: VerifyCommand | None = None
        self.prefill_command: DraftCommand | None = None
        self.reply: VerifyReply | None = None


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        mode=st.sampled_from(Mode),
        max_batch_size=st.integers(1, 4),
        draft_len=st.integers(1, 5),
        prefill_chunk=st.sampled_from([3, 8, 64]),
        verifier_blocks=st.integers(16, 40),
        drafter_blocks=st.integers(2, 40),
        drafter_context=st.sampled_from([24, 64]),
        error_period=st.integers(1, 5),
    )
    def start(
        self,
        mode: Mode,
        max_batch_size: int,
        draft_len: int,
        prefill_chunk: int,
        verifier_blocks: int,
        drafter_blocks: int,
        drafter_context: int,
        error_period: int,
    ) -> None:
        self.verifier = FakeVerifier(verifier_blocks, 4, 64)
        self.drafter = FakeDrafter(drafter_blocks, 4, drafter_context, lambda n: n % error_period != 0)
        limits = SchedulerLimits(mode, max_batch_size, draft_len, prefill_chunk, max_waiting=6, max_model_len=64)
        self.scheduler = Scheduler(
            limits, KvLedger(verifier_blocks, 4, 64), KvLedger(drafter_blocks, 4, drafter_context)
        )
        self.in_flight: dict[Batch, InFlight] = {}
        self.output: dict[int, list[int]] = {}
        self.wanted: dict[int, NewRequest] = {}
        self.ended: dict[int, Progress] = {}

    # What clients do

    @rule(prompt=st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=30), max_new=st.integers(1, 30))
    def add(self, prompt: list[int], max_new: int) -> None:
        new = NewRequest(tuple(prompt), SamplingParams(max_new_tokens=max_new), stop_ids=(0,))
        try:
            request = self.scheduler.add(new)
        except Overloaded:
            assert len(self.scheduler.waiting) >= self.scheduler.limits.max_waiting
            return
        self.wanted[request.id] = new
        self.output[request.id] = []

    @rule(choice=st.integers(0, 10))
    def abort(self, choice: int) -> None:
        live = sorted(self.scheduler.requests)
        if live:
            self._take([p] if (p := self.scheduler.abort(live[choice % len(live)])) else [])

    @precondition(lambda self: self.scheduler.drafter is not None)
    @rule(really=st.integers(0, 30))
    def lose_drafter(self, really: int) -> None:
        if really == 0:
            self.scheduler.lose_drafter()

    @rule(mode=st.sampled_from(Mode), max_batch_size=st.integers(1, 4), draft_len=st.integers(1, 5))
    def reconfigure(self, mode: Mode, max_batch_size: int, draft_len: int) -> None:
        limits = replace(self.scheduler.limits, mode=mode, max_batch_size=max_batch_size, draft_len=draft_len)
        self.scheduler.reconfigure(limits)

    # What the pipeline does, one hop at a time

    @rule(batch=st.sampled_from(Batch))
    def advance(self, batch: Batch) -> None:
        flight = self.in_flight.get(batch)
        if flight is None:
            plan = self.scheduler.plan(batch)
            if plan is None and not self.scheduler.settle():
                self._flush()
            elif plan is not None:
                self.in_flight[batch] = InFlight(plan)
        elif flight.proposals is None:
            flight.proposals = self._draft(flight.plan, flight.plan.drafts).proposals if flight.plan.drafts else ()
        elif flight.verify_command is None:
            spans = self.scheduler.assemble(flight.plan, flight.proposals)
            released = self.scheduler.verifier.take_releases() if spans else ()
            flight.verify_command = VerifyCommand(RoundId(7, batch, flight.plan.number), spans, released)
        elif flight.reply is None and flight.verify_command.spans:
            flight.reply = self.verifier.execute(flight.verify_command)
            self.scheduler.verifier.acknowledge(flight.verify_command.released)
        else:
            self._commit(batch, flight)

    @rule()
    def run_until_idle(self) -> None:
        for _ in range(4000):
            if not self.scheduler.requests and not self.in_flight:
                break
            for batch in Batch:
                self.advance(batch)
        assert not self.scheduler.requests, "a request is stuck"
        self._flush()
        assert self.verifier.kv.pool.num_free == self.verifier.info.num_blocks
        if self.scheduler.drafter is not None:
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
        assert {r.id for r in seated} | {r.id for r in self.scheduler.waiting} == set(self.scheduler.requests)
        assert all(self.scheduler.batches.size(b) <= self.scheduler.limits.max_batch_size for b in Batch)

    @invariant()
    def ledgers_never_count_less_than_the_workers_use(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        pairs = [(self.scheduler.verifier, self.verifier.kv)]
        if self.scheduler.drafter is not None:
            pairs.append((self.scheduler.drafter, self.drafter.kv))
        for ledger, kv in pairs:
            assert ledger.pool.num_free <= kv.pool.num_free
            for owner in kv.pool.owners:
                assert ledger.pool.num_owned(owner) >= kv.pool.num_owned(owner)

    # Inside

    def _draft(self, plan: RoundPlan, spans: tuple) -> DraftReply:
        ledger = self.scheduler.drafter
        if ledger is None:
            return DraftReply(RoundId(7, plan.batch, plan.number), (), None, 0)
        command = DraftCommand(RoundId(7, plan.batch, plan.number), spans, ledger.take_releases())
        reply = self.drafter.execute(command)
        ledger.acknowledge(command.released)
        return reply

    def _commit(self, batch: Batch, flight: InFlight) -> None:
        prefilled = bool(flight.plan.prefills) and self.scheduler.drafter is not None
        if prefilled:
            self._draft(flight.plan, flight.plan.prefills)
        verdicts = flight.reply.verdicts if flight.reply else ()
        del self.in_flight[batch]
        self._take(self.scheduler.commit(flight.plan, flight.verify_command.spans, verdicts, prefilled=prefilled))
        if len(self.scheduler.batches.batches) == 2:
            surplus = self.scheduler.batches.size(batch) - self.scheduler.batches.size(batch.other)
            assert surplus <= 1, "a batch that has ended its round gives away what it has too many of"

    def _flush(self) -> None:
        if released := self.scheduler.verifier.take_releases():
            self.verifier.kv.release(released)
            self.scheduler.verifier.acknowledge(released)
        if self.scheduler.drafter and (released := self.scheduler.drafter.take_releases()):
            self.drafter.kv.release(released)
            self.scheduler.drafter.acknowledge(released)

    def _take(self, progress: list[Progress]) -> None:
        for item in progress:
            request_id = item.request.id
            assert request_id not in self.ended, "a request ends once"
            self.output[request_id].extend(item.token_ids)
            truth = continuation(self.wanted[request_id].prompt_token_ids, len(self.output[request_id]))
            assert self.output[request_id] == truth, "every committed token is the target's own"
            assert 0 not in self.output[request_id][:-1], "nothing follows a stop token"
            if item.is_final:
                self.ended[request_id] = item
                wanted = self.wanted[request_id].sampling.max_new_tokens
                if item.finish_reason is FinishReason.LENGTH:
                    assert len(self.output[request_id]) == wanted
                elif item.finish_reason is FinishReason.STOP:
                    assert self.output[request_id][-1] == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None, derandomize=True)


def test_a_request_that_can_never_fit_is_refused_with_the_numbers() -> None:
    scheduler = Scheduler(SchedulerLimits(max_model_len=64), KvLedger(4, 4, 64), None)
    with pytest.raises(InvalidRequest, match="16 tokens") as caught:
        scheduler.add(NewRequest(tuple(range(10)), SamplingParams(max_new_tokens=7)))
    assert caught.value.field == "max_new_tokens"
