"""Commands of several decode steps: what each further forward is asked for, and what comes back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from minedraft.errors import MemoryExhausted, NumericError
from minedraft.messages import TokenLogprobs, Verdict, VerifyCommand, VerifySpan
from minedraft.types import Batch, RoundId
from minedraft_workers.rounds.actors import Work
from minedraft_workers.rounds.stepping import run_steps

ROUND = RoundId(3, Batch.A, 9)


class Model:
    """Its token after n tokens is 10 n; `judge` may make another verdict of one."""

    def __init__(self, judge: Callable[[Verdict], Verdict] = lambda verdict: verdict) -> None:
        self.spans: list[list[tuple[int, int, tuple[int, ...]]]] = []
        self.released: list[tuple[int, ...]] = []
        self._judge = judge

    def __call__(self, command: VerifyCommand) -> Work[Verdict]:
        self.spans.append([(span.request_id, span.prefix_len, span.tokens) for span in command.spans])
        self.released.append(command.released)
        return Work(tuple(self._judge(self._verdict(span)) for span in command.spans), forward_ns=5)

    def _verdict(self, span: VerifySpan) -> Verdict:
        token = 10 * span.committed_len
        return Verdict(span.request_id, span.committed_len, 0, (token,), (TokenLogprobs(-float(token)),))


def run(model: Model, *steps: int, is_curtailed: Callable[[], bool] = lambda: False) -> Work[Verdict]:
    spans = tuple(VerifySpan(n, n, (7,), num_steps=number) for n, number in enumerate(steps, start=1))
    return run_steps(model, VerifyCommand(ROUND, spans, released=(99,)), is_curtailed)


def tokens_of(work: Work[Verdict]) -> list[tuple[int, ...]]:
    return [verdict.tokens for verdict in work.rows]


def test_each_further_step_caches_the_token_before_it() -> None:
    model = Model()
    work = run(model, 3, 1, 2)
    assert model.spans == [
        [(1, 1, (7,)), (2, 2, (7,)), (3, 3, (7,))],
        [(1, 2, (20,)), (3, 4, (40,))],
        [(1, 3, (30,))],
    ]
    assert tokens_of(work) == [(20, 30, 40), (30,), (40, 50)]
    assert [verdict.committed_len for verdict in work.rows] == [2, 3, 4]
    assert [verdict.cached_len for verdict in work.rows] == [4, 3, 5]
    assert [entry.logprob for entry in work.rows[0].logprobs] == [-20.0, -30.0, -40.0]
    assert work.forward_ns == 15
    assert model.released == [(99,), (), ()], "once"


def test_an_output_that_has_ended_and_one_that_is_forced_go_on_no_further() -> None:
    def judge(verdict: Verdict) -> Verdict:
        if verdict.request_id == 1 and verdict.committed_len == 3:
            return replace(verdict, is_end=True)
        if verdict.request_id == 2 and verdict.committed_len == 4:
            return replace(verdict, tokens=(*verdict.tokens, 5, 6), num_forced=2)
        return verdict

    work = run(Model(judge), 4, 4, 4)
    assert tokens_of(work) == [(20, 30), (30, 40, 5, 6), (40, 50, 60, 70)]
    assert [verdict.num_forced for verdict in work.rows] == [0, 2, 0]
    assert [verdict.num_steps for verdict in work.rows] == [2, 2, 4]
    assert [verdict.cached_len for verdict in work.rows] == [3, 4, 7]


def test_logits_of_no_use_end_the_steps_of_their_request_and_are_told_of_in_the_first_step_only() -> None:
    def judge(verdict: Verdict) -> Verdict:
        is_bad = (verdict.request_id, verdict.committed_len) in ((1, 4), (2, 3))
        return replace(verdict, tokens=(), logprobs=(), error=NumericError.reason) if is_bad else verdict

    work = run(Model(judge), 4, 4, 2)
    assert tokens_of(work) == [(20, 30), (), (40, 50)]
    assert [verdict.error for verdict in work.rows] == ["", NumericError.reason, ""]


def test_a_further_step_that_is_refused_costs_none_of_those_before_it() -> None:
    def judge(verdict: Verdict) -> Verdict:
        if verdict.committed_len == 4:
            raise MemoryExhausted("refused for the test")
        return verdict

    assert tokens_of(run(Model(judge), 4, 4)) == [(20,), (30,)]
    with pytest.raises(MemoryExhausted):
        run(Model(judge), 4, 4, 4)


def test_what_is_curtailed_ends_with_the_step_that_is_made() -> None:
    asked = iter([False, True])
    work = run(Model(), 4, 2, is_curtailed=lambda: next(asked))
    assert tokens_of(work) == [(20, 30), (30, 40)]
