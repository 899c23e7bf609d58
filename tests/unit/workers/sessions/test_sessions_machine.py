"""Any order of handshakes, commands, refusals and departures of several schedulers on one drafter: each session does,
bit for bit, what a drafter of its own with as many KV blocks would do."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
from hypothesis import Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from minedraft.errors import MineDraftError, StaleRound, WorkerInUse
from minedraft.messages import DraftCommand, DraftSpan, RunAhead, WorkerInfo
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.executor import Executor
from minedraft_workers.proposers.combined import CombinedProposer
from minedraft_workers.proposers.draft_model import ModelProposer
from minedraft_workers.rounds.actors import REFUSALS, Executed
from minedraft_workers.rounds.runtime import WorkerRuntime
from minedraft_workers.rounds.session import Session
from tests.support.in_process import load_executor, make_info
from tests.support.tiny_models import make_tiny_model

NUM_SESSIONS = 3
SHARE = 12
VOCAB_SIZE = 300
GREEDY = SequenceSpec(SamplingParams(), 1, 0, Acceptance.GREEDY)
REQUEST_IDS = st.integers(1, 3)
TOKENS = st.lists(st.integers(1, VOCAB_SIZE - 1), min_size=1, max_size=9).map(tuple)


@cache
def models() -> tuple[list[Executor], list[Executor]]:
    """Return the parts of one model, and as many whole ones of the same weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_tiny_model(Path(folder) / "model", layers=1)
        parts = load_executor(path, num_blocks=NUM_SESSIONS * SHARE + 1).divide(NUM_SESSIONS)
        return parts, [load_executor(path, num_blocks=SHARE) for _ in range(NUM_SESSIONS)]


def make_actor(model: Executor) -> DrafterActor:
    model.release_all()
    return DrafterActor(CombinedProposer(ModelProposer(model)), make_info(Role.DRAFTER, model))


class Sessions(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.parts, own = models()
        self.actors = [make_actor(model) for model in self.parts]
        self.alone = [make_actor(model) for model in own]  # what each session is to be like
        self.loop = asyncio.new_event_loop()
        first, *others = self.actors
        self.runtime = self.loop.run_until_complete(self._start(first, others))
        self.infos: dict[int, WorkerInfo] = {}  # of the sessions that have a scheduler
        self.epochs: set[int] = set()
        self.lengths: dict[tuple[int, int], int] = {}  # committed tokens of (session, request)
        self.round = 0

    async def _start(self, first: DrafterActor, others: list[DrafterActor]) -> WorkerRuntime:
        return WorkerRuntime(first, others=others)

    def teardown(self) -> None:
        assert self.runtime.stop(10)
        self.loop.close()

    def _do(self, session: Session, task: Callable[[DrafterActor], Any], command: DraftCommand) -> None:
        """Execute a command in a session and in the drafter of its own, and compare."""
        number = session.number
        outcome = self.loop.run_until_complete(self._submit(session, command.round, lambda: task(self.actors[number])))
        try:
            expected: object = task(self.alone[number]).rows
        except REFUSALS as error:
            expected = str(error)
        if isinstance(outcome, MineDraftError):
            assert str(outcome) == expected
        else:
            assert outcome.rows == expected
            assert outcome.num_free_blocks == self.alone[number].num_free_blocks
            for span in command.spans:
                self.lengths[number, span.request_id] = span.committed_len

    async def _submit(self, session: Session, round_id: RoundId, task: Callable[[], Any]) -> Executed[Any]:
        result: Any = await session.submit("draft", round_id, task)
        return result

    @rule(vocab_size=st.sampled_from([0, VOCAB_SIZE // 2]))
    def handshake(self, vocab_size: int) -> None:
        tenancy = self.runtime.tenancy
        if len(self.infos) == NUM_SESSIONS:
            try:
                tenancy.find_free()
                raise AssertionError("one scheduler too many")
            except WorkerInUse:
                return
        number = tenancy.find_free()
        assert number not in self.infos, "the session of somebody else"
        info = self.loop.run_until_complete(self._begin(number, vocab_size))
        assert info.num_blocks == SHARE
        assert info.epoch not in self.epochs
        tenancy.announce(number, f"scheduler {info.epoch}", info.epoch)
        assert tenancy.move_in(info.epoch) == number
        self.alone[number].reset(vocab_size)
        self.infos[number] = info
        self.epochs.add(info.epoch)

    async def _begin(self, number: int, vocab_size: int) -> WorkerInfo:
        return self.runtime.sessions[number].start_epoch(vocab_size)

    @precondition(lambda self: self.infos)
    @rule(data=st.data(), tokens=TOKENS, draft_len=st.integers(0, 4), seed=st.integers(0, 1), runs=st.booleans())
    def draft(self, data: st.DataObject, tokens: tuple[int, ...], draft_len: int, seed: int, runs: bool) -> None:
        number = data.draw(st.sampled_from(sorted(self.infos)))
        request_id = data.draw(REQUEST_IDS)
        length = self.lengths.get((number, request_id))
        spec = None
        if length is None:
            params = SamplingParams(temperature=float(seed), seed=seed or None)
            acceptance = Acceptance.COUPLED if seed else Acceptance.GREEDY
            spec, length = SequenceSpec(params, len(tokens), seed, acceptance), 0
        span = DraftSpan(request_id, length, tokens, draft_len, spec)
        if runs and draft_len and len(tokens) > 2:
            span = replace(span, ahead=RunAhead(1, 2))
        self._draft(number, (span,))

    @precondition(lambda self: self.infos)
    @rule(data=st.data(), kind=st.sampled_from(["unknown", "beyond", "too long"]))
    def wrong(self, data: st.DataObject, kind: str) -> None:
        """A command that is refused, in one session."""
        number = data.draw(st.sampled_from(sorted(self.infos)))
        span = {
            "unknown": DraftSpan(99, 0, (1,), 1),
            "beyond": DraftSpan(1, 500, (1,), 1),
            "too long": DraftSpan(
                7, 0, (1,) * (SHARE * 4 + 1), 1, SequenceSpec(SamplingParams(), 1, 0, Acceptance.GREEDY)
            ),
        }[kind]
        self._draft(number, (span,))

    @precondition(lambda self: self.infos)
    @rule(data=st.data(), request_id=REQUEST_IDS)
    def release(self, data: st.DataObject, request_id: int) -> None:
        number = data.draw(st.sampled_from(sorted(self.infos)))
        self.lengths.pop((number, request_id), None)
        self._draft(number, (), released=(request_id,))

    def _draft(self, number: int, spans: tuple[DraftSpan, ...], released: tuple[int, ...] = ()) -> None:
        self.round += 1
        command = DraftCommand(RoundId(self.infos[number].epoch, Batch.A, self.round), spans, released)
        self._do(self.runtime.sessions[number], lambda actor: actor.draft(command), command)

    @precondition(lambda self: self.infos)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.infos)))
        session, info = self.runtime.sessions[number], self.infos.pop(number)
        self.loop.run_until_complete(self._end(session))
        self.runtime.tenancy.move_out(number)
        self.alone[number].reset(0)
        self.lengths = {key: length for key, length in self.lengths.items() if key[0] != number}
        try:
            session.submit("draft", RoundId(info.epoch, Batch.A, self.round + 1), lambda: None)  # type: ignore[arg-type,return-value]
            raise AssertionError("a command of an epoch that has passed")
        except StaleRound:
            pass

    async def _end(self, session: Session) -> None:
        session.end()
        await session.submit_release(session.epoch, ())  # behind the reset

    @invariant()
    def blocks_are_in_the_share_of_their_owner(self) -> None:
        for number, actor in enumerate(self.actors):
            if number not in self.infos:
                assert actor.num_free_blocks == SHARE, "all is free when the scheduler has gone"
        taken = [blocks_of(model) for model in self.parts]
        for number, blocks in enumerate(taken):
            assert all(number * SHARE <= block < (number + 1) * SHARE for block in blocks)
            assert len(blocks) == len(set(blocks)) == SHARE - self.actors[number].num_free_blocks


def blocks_of(model: Executor) -> list[int]:
    pool = model._tables.pool
    return [block for owner in pool.owners for block in pool.table(owner)]


TestSessions = Sessions.TestCase
TestSessions.settings = settings(
    max_examples=15,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    phases=(Phase.generate,),  # shrinking takes longer than a test may
)
