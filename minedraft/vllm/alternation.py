"""The alternation of two groups, as an engine's scheduler drives it: whose turn it is, with which drafts.

It knows vLLM's requests by the few fields of `EngineRequest` only. A step is `begin`, the engine's own scheduling,
`admit`, the forward, `finish`; the engine may begin the next step before it finishes this one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass
from typing import Protocol

from minedraft.types import Batch
from minedraft.vllm.desk import Drafts, Newcomer, StepOutcome, StepReport
from minedraft.vllm.groups import Groups

_BLOCKED_S = 0.001  # a step that waits longer counts as blocked
# Steps that do not wait at all after one that has waited in vain: so a drafter that hangs costs few waits.
_FIRST_IMPATIENT, _MOST_IMPATIENT = 4, 64


class EngineRequest(Protocol):
    """The fields of vLLM's `Request` that are read here."""

    request_id: str
    is_prefill_chunk: bool
    max_tokens: int
    resumable: bool
    num_prompt_tokens: int

    @property
    def all_token_ids(self) -> Sequence[int]: ...


def is_ours(drafts: Sequence[int]) -> bool:
    """Whether drafts in vLLM's list came from our drafter: placeholders of other proposers are -1."""
    return bool(drafts) and drafts[0] >= 0


class Reporting(Protocol):
    """Where reports go, and drafts come from."""

    def send(self, report: StepReport) -> futures.Future[Mapping[str, Drafts]]: ...


@dataclass(slots=True)
class Turn:
    """What a step verifies.

    Attributes:
        names: the decoding requests whose turn it is; the others rest.
        drafts: the drafts of those that have some.
        began_s: when the forward began.
    """

    batch: Batch
    names: frozenset[str]
    drafts: Mapping[str, tuple[int, ...]]
    began_s: float = 0.0


@dataclass(slots=True)
class StepCounts:
    """Sums over all steps so far.

    Attributes:
        num_steps: steps with a forward. num_drafted: those in which drafts were verified.
        num_blocked: those that waited for drafts, for `exposed_s` seconds together: drafting that nothing hid.
        num_late: those that gave up waiting.
        verify_s: seconds of the forwards. num_moves: requests that changed their group.
    """

    num_steps: int = 0
    num_drafted: int = 0
    num_blocked: int = 0
    num_late: int = 0
    num_moves: int = 0
    exposed_s: float = 0.0
    verify_s: float = 0.0


class Alternation:
    """Lets two groups of an engine's requests take turns.

    Args:
        wait_s: seconds that a step waits for drafts before it goes on without them.
    """

    def __init__(
        self, groups: Groups, link: Reporting, wait_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.counts = StepCounts()
        self._groups = groups
        self._link = link
        self._wait_s = wait_s
        self._clock = clock
        self._committed: dict[str, int] = {}  # tokens that the drafter's side knows of each request
        self._asked: dict[Batch, futures.Future[Mapping[str, Drafts]]] = {}
        self._finished_s = 0.0
        self._num_impatient = 0  # steps that do not wait, because one has waited in vain
        self._next_impatient = _FIRST_IMPATIENT

    def begin(self, requests: Mapping[str, EngineRequest], running: Iterable[EngineRequest]) -> Turn:
        """Choose whose turn it is, and wait for the drafts.

        Args:
            requests: all requests of the engine by id. running: those that have KV.
        """
        decoding = {request.request_id for request in running if not request.is_prefill_chunk}
        for name in self._groups:
            if name not in decoding:
                self._groups.leave(name)
        batch = self._groups.next_turn()
        self._send_changes(batch, self._drop_ended(requests), ())
        names = self._groups.members(batch)
        drafts = self._take(batch) if names else {}
        fitting = {
            name: drafts[name].tokens
            for name in names
            if name in drafts and drafts[name].committed_len == len(requests[name].all_token_ids)
        }
        return Turn(batch, frozenset(names), fitting, self._clock())

    def admit(self, turn: Turn, requests: Mapping[str, EngineRequest], names: Iterable[str]) -> None:
        """Report requests that the engine begins with, so that the drafter reads their prompts meanwhile.

        Args:
            turn: what `begin` returned for this step. names: of those whose first tokens are in this step.
        """
        newcomers = []
        for name in names:
            request = requests[name]
            # The tokens of a session that goes on can be taken back; it is decoded without drafts.
            if name not in self._committed and not request.resumable:
                tokens = tuple(request.all_token_ids)
                newcomers.append(Newcomer(name, tokens, request.num_prompt_tokens, request.max_tokens))
                self._committed[name] = len(tokens)
        if newcomers:
            self._link.send(StepReport(turn.batch, tuple(newcomers)))
        turn.began_s = self._clock()

    def finish(
        self,
        turn: Turn,
        requests: Mapping[str, EngineRequest],
        scheduled: Collection[str],
        drafted: Mapping[str, Sequence[int]],
        preempted: Collection[str] = (),
    ) -> None:
        """Take in what the step gave, and have the group drafted for.

        Args:
            turn: what `begin` returned for this step. scheduled: requests of the step.
            drafted: the drafts that were verified, by request.
            preempted: requests that lost their KV.
        """
        batch, now_s = turn.batch, self._clock()
        # A forward that was sent while another one ran began when that one ended.
        verify_s, self._finished_s = now_s - max(turn.began_s, self._finished_s), now_s
        if not scheduled:
            self._send_changes(batch, (), preempted)
            return
        outcomes = [self._outcome(requests[name], drafted.get(name, ())) for name in scheduled if name in requests]
        is_prefill = any(name not in turn.names for name in scheduled)
        for outcome in outcomes:
            if outcome.tokens and outcome.name not in self._groups:
                self._groups.join(outcome.name, drafted_next=batch)
        ended = self._drop_ended(requests)
        for name in (*ended, *preempted):
            self._groups.leave(name)
        self.counts.num_moves += len(self._groups.rebalance(batch))
        report = StepReport(
            batch,
            outcomes=tuple([outcome for outcome in outcomes if outcome.name in self._committed and outcome.tokens]),
            preempted=tuple([name for name in preempted if name in self._committed]),
            ended=ended,
            wanted=tuple([name for name in self._groups.members(batch) if name in self._committed]),
            verify_s=verify_s,
            is_prefill=is_prefill,
            num_active=self._groups.num_active,
        )
        self.counts.num_steps += 1
        self.counts.num_drafted += any(outcome.num_drafts for outcome in outcomes)
        self.counts.verify_s += verify_s
        self._asked[batch] = self._link.send(report)

    def _outcome(self, request: EngineRequest, drafts: Sequence[int]) -> StepOutcome:
        name = request.request_id
        known_len = self._committed.get(name, request.num_prompt_tokens)
        tokens = tuple(request.all_token_ids[known_len:])
        if name in self._committed:
            self._committed[name] = known_len + len(tokens)
        # Drafts that break a grammar are -1 in the engine's list; a step that ended early has fewer tokens.
        num_drafts = sum([token >= 0 for token in drafts]) if tokens else 0
        return StepOutcome(name, tokens, num_drafts, max(min(len(tokens) - 1, num_drafts), 0))

    def _drop_ended(self, requests: Mapping[str, EngineRequest]) -> tuple[str, ...]:
        """Forget the requests that the engine no longer has, and return them."""
        ended = tuple([name for name in self._committed if name not in requests])
        for name in ended:
            del self._committed[name]
        return ended

    def _send_changes(self, batch: Batch, ended: tuple[str, ...], preempted: Collection[str]) -> None:
        """Report what happened outside a forward."""
        for name in (*ended, *preempted):
            self._groups.leave(name)
        known = tuple([name for name in preempted if name in self._committed])
        if ended or known:
            self._link.send(StepReport(batch, preempted=known, ended=ended))

    def _take(self, batch: Batch) -> Mapping[str, Drafts]:
        asked = self._asked.pop(batch, None)
        if asked is None:
            return {}
        began_s = self._clock()
        wait_s, self._num_impatient = (0.0 if self._num_impatient else self._wait_s), max(self._num_impatient - 1, 0)
        try:
            drafts = asked.result(wait_s)
        except futures.TimeoutError:
            self.counts.num_late += 1
            if wait_s:
                self._next_impatient = min(2 * self._next_impatient, _MOST_IMPATIENT)
                self._num_impatient = self._next_impatient
            return {}
        else:
            if drafts:
                self._num_impatient, self._next_impatient = 0, _FIRST_IMPATIENT
            return drafts
        finally:
            waited_s = self._clock() - began_s
            self.counts.exposed_s += waited_s
            self.counts.num_blocked += waited_s > _BLOCKED_S
