"""The pipeline with workers that answer when the test lets them, one call at a time, in any order.

A machine with a real event loop and no clock: after each step it lets the loop run until nothing moves.
When no worker has anything to do and a request is still live, somebody was not woken.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from copy import deepcopy
from dataclasses import replace
from typing import Any

import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from minedraft.core.counters import Counters
from minedraft.core.limits import SchedulerLimits
from minedraft.core.liveness.patience import DraftPatience
from minedraft.core.request import NewRequest
from minedraft.errors import InvalidRequest, MineDraftError, Overloaded, ReplaysExhausted, Unavailable, WorkerLost
from minedraft.messages import TokenLogprobs
from minedraft.output import RequestUsage
from minedraft.sampling_params import SamplingParams
from minedraft.types import Batch, FinishReason, LoanTerms, Mode
from tests.fakes.policies import AnyDraftPolicy, RestlessMode
from tests.fakes.workers import VOCAB_SIZE, FakeDrafter, FakeVerifier, continuation
from tests.support.counted import CountedPipeline

RARELY = st.integers(0, 9).map(lambda n: n == 9)
PROMPT_LENS = st.one_of(st.integers(1, 3), st.integers(4, 20))
OUTPUT_LENS = st.one_of(st.integers(1, 2), st.integers(10, 20))
SALTS = st.integers(1, VOCAB_SIZE - 1)


class Recorder:
    """The sink of one request; checks every token as it comes."""

    def __init__(self, prompt: tuple[int, ...], may_fail: Callable[[MineDraftError], bool]) -> None:
        self.prompt = prompt
        self.may_fail = may_fail
        self.tokens: list[int] = []
        self.has_ended = False

    def on_tokens(self, token_ids: tuple[int, ...], logprobs: tuple[TokenLogprobs, ...], num_forced: int) -> bool:
        self.tokens.extend(token_ids)
        return False

    def on_finish(self, reason: FinishReason | None, error: MineDraftError | None, usage: RequestUsage) -> None:
        assert not self.has_ended, "a request ends once"
        assert error is None or self.may_fail(error), f"nothing failed, and yet: {error}"
        assert self.tokens == continuation(self.prompt, len(self.tokens))
        self.has_ended = True


class Impatience(DraftPatience):
    limit_s = 0.0


class PipelineMachine(RuleBasedStateMachine):
    @initialize(
        mode=st.sampled_from(Mode),
        max_batch_size=st.integers(1, 3),
        draft_len=st.integers(1, 4),
        prefill_chunk=st.sampled_from([3, 8, 64]),
        verifier_blocks=st.integers(6, 14),  # one request fits, two or three seldom do
        drafter_blocks=st.integers(2, 24),
        has_drafter=st.booleans(),
        is_restless=st.booleans(),
        reads_features=st.booleans(),
        max_replays=st.integers(0, 3),
        max_steps=st.integers(1, 5),
        seed=st.integers(0, 1 << 30),
    )
    def start(
        self,
        mode: Mode,
        max_batch_size: int,
        draft_len: int,
        prefill_chunk: int,
        verifier_blocks: int,
        drafter_blocks: int,
        has_drafter: bool,
        is_restless: bool,
        reads_features: bool,
        max_replays: int,
        max_steps: int,
        seed: int,
    ) -> None:
        self.order = random.Random(seed)
        self.loop = asyncio.SelectorEventLoop()
        self.gates: list[asyncio.Future[None]] = []
        self.verifier, self.drafter = (
            FakeVerifier(verifier_blocks, 4, 64),
            FakeDrafter(drafter_blocks, 4, 64, reads_features=reads_features),
        )
        for worker in (self.verifier, self.drafter):
            worker.hold = self._knock
        limits = SchedulerLimits(mode, max_batch_size, draft_len, prefill_chunk, max_waiting=6, max_model_len=64)
        limits = replace(limits, max_replays=max_replays, max_steps=max_steps)
        self.num_losses, self.has_stopped_waiting = 0, False
        self.mode_policy = RestlessMode(3 + seed % 20) if is_restless else None
        self.pipeline = CountedPipeline(
            limits,
            self.verifier,
            self.drafter if has_drafter else None,
            draft_policy=AnyDraftPolicy(1 + seed % 5),
            mode_policy=self.mode_policy,
            verifier_returns=True,
        )
        self.before = Counters()
        self.recorders: dict[int, Recorder] = {}
        self._run(self.pipeline.__aenter__())

    @rule(burst=st.lists(st.tuples(PROMPT_LENS, OUTPUT_LENS, SALTS), min_size=1, max_size=4))
    def submit(self, burst: list[tuple[int, int, int]]) -> None:
        for prompt_len, max_new, salt in burst:
            prompt = tuple((salt * i) % VOCAB_SIZE for i in range(1, prompt_len + 1))
            recorder = Recorder(prompt, self._may_fail)
            try:
                request_id = self.pipeline.submit(NewRequest(prompt, SamplingParams(max_new_tokens=max_new)), recorder)
            except (Overloaded, InvalidRequest):
                continue
            except Unavailable:
                assert self.has_stopped_waiting
                continue
            self.recorders[request_id] = recorder
        self._settle()

    @rule(num_calls=st.integers(1, 12))
    def let_calls_through(self, num_calls: int) -> None:
        for _ in range(num_calls):
            if self.gates:
                gate = self.gates.pop(self.order.randrange(len(self.gates)))
                if not gate.done():  # nobody waits for a late drafter's command any more
                    gate.set_result(None)
                self._settle()

    @rule(really=RARELY)
    def abort(self, really: bool) -> None:
        live = sorted(self.pipeline.scheduler.requests)
        if live and really:
            self.pipeline.abort(self.order.choice(live))
            self._settle()

    @precondition(lambda self: self.pipeline.drafter is not None)
    @rule(really=RARELY)
    def lose_drafter(self, really: bool) -> None:
        if really:
            self.drafter.error = WorkerLost("drafter: connection closed")
            self.pipeline.lose_drafter(self.drafter.error)
            self._settle()

    @precondition(lambda self: self.pipeline.drafter is None and self.drafter.error is not None)
    @rule()
    def gain_drafter(self) -> None:
        num_blocks, reads_features = self.drafter.info.num_blocks, bool(self.drafter.info.feature_size)
        self.drafter = FakeDrafter(num_blocks, 4, 64, reads_features=reads_features)
        self.drafter.hold = self._knock
        self.pipeline.gain_drafter(self.drafter)
        self._settle()

    @rule(is_patient=st.sampled_from([True, True, True, False]))
    def wait_for_drafts(self, is_patient: bool) -> None:
        """A drafter that is not waited for at all is late with every command, and asked again when it has answered."""
        self.pipeline._drafting.patience = DraftPatience() if is_patient else Impatience()

    @precondition(lambda self: self.pipeline.has_verifier)
    @rule(really=RARELY, is_noticed=st.booleans())
    def lose_verifier(self, really: bool, is_noticed: bool) -> None:
        """Its next command says so, or the owner of its link does before that."""
        if really:
            self.num_losses += 1
            self.verifier.error = WorkerLost("verifier: connection closed")
            if is_noticed:
                self.pipeline.lose_verifier(self.verifier.error)
            self._settle()

    @precondition(lambda self: not self.pipeline.has_verifier)
    @rule()
    def gain_verifier(self) -> None:
        self.verifier = FakeVerifier(self.verifier.info.num_blocks, 4, 64)
        self.verifier.hold = self._knock
        self.pipeline.gain_verifier(self.verifier)
        self.has_stopped_waiting = False
        self._settle()

    @precondition(lambda self: not self.pipeline.has_verifier)
    @rule(really=RARELY)
    def stop_waiting(self, really: bool) -> None:
        """The verifier stays away for too long; requests end, and new ones are refused."""
        if really:
            self.has_stopped_waiting = True
            self.pipeline.stop_waiting(WorkerLost("verifier: away for too long"))
            assert not self.pipeline.scheduler.requests
            self._settle()

    @rule(mode=st.sampled_from(Mode), max_batch_size=st.integers(1, 3), draft_len=st.integers(1, 4))
    def reconfigure(self, mode: Mode, max_batch_size: int, draft_len: int) -> None:
        terms = LoanTerms(mode, max_batch_size, draft_len)
        self.pipeline.reconfigure(self.pipeline.scheduler.limits.lent(terms))
        self._settle()

    @invariant()
    def counters_never_go_backwards(self) -> None:
        if hasattr(self, "pipeline"):
            now = deepcopy(self.pipeline.counters)
            assert now.finished >= self.before.finished
            assert now.output_tokens >= self.before.output_tokens
            assert now.past_links.wire_bytes >= self.before.past_links.wire_bytes
            assert all(now.rounds[batch] >= self.before.rounds[batch] for batch in Batch)
            self.before = now

    @rule()
    def finish_everything(self) -> None:
        for _ in range(1000):
            self.pipeline._drafting.patience = DraftPatience()
            if not self.gates and self.pipeline.has_verifier:
                break
            if not self.pipeline.has_verifier:
                self.gain_verifier()
            self.let_calls_through(12)
        self._check_idle()

    def teardown(self) -> None:
        if hasattr(self, "pipeline"):
            try:
                self.finish_everything()
            finally:
                self._run(self.pipeline.__aexit__(None, None, None))
                self.loop.close()

    def _may_fail(self, error: MineDraftError) -> bool:
        if isinstance(error, ReplaysExhausted):
            return self.num_losses > self.pipeline.scheduler.limits.max_replays
        return self.has_stopped_waiting and "away for too long" in str(error)

    def _check_idle(self) -> None:
        live = {r.id: (r.batch, len(r.tokens)) for r in self.pipeline.scheduler.requests.values()}
        assert self.pipeline.failure is None
        assert self.pipeline.scheduler.is_settled
        assert not live, f"no worker has anything to do, and these wait: {live}"
        assert all(recorder.has_ended for recorder in self.recorders.values())
        assert self.verifier.kv.pool.num_free == self.verifier.info.num_blocks
        if self.pipeline.drafter is not None:
            assert self.drafter.kv.pool.num_free == self.drafter.info.num_blocks

    def _knock(self) -> asyncio.Future[None]:
        gate = self.loop.create_future()
        self.gates.append(gate)
        return gate

    def _settle(self) -> None:
        async def turns() -> None:
            while True:
                await asyncio.sleep(0)
                if not self.loop._ready:  # nobody but this has anything to run
                    return

        self._run(turns())

    def _run(self, work: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(work)


TestPipelineMachine = PipelineMachine.TestCase
TestPipelineMachine.settings = settings(
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking takes longer than a test may; the schedule is printed as it is
)
