"""The alternation of two groups, driven as vLLM drives it, with a target and a drafter that know the answers."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent import futures
from dataclasses import dataclass

from minedraft.types import Batch
from minedraft.vllm.alternation import Alternation
from minedraft.vllm.desk import Drafts
from minedraft.vllm.groups import Groups
from tests.fakes.drafter_link import FakeLink


@dataclass
class FakeRequest:
    request_id: str
    tokens: list[int]
    num_prompt_tokens: int
    max_tokens: int = 64
    is_prefill_chunk: bool = False
    resumable: bool = False

    @property
    def all_token_ids(self) -> list[int]:
        return self.tokens


class FakeEngine:
    """Begins with all requests at once; every draft is accepted."""

    def __init__(self, *lens: int, groups: int = 2) -> None:
        self.link = FakeLink(lambda tokens: (7, 8))
        self.alternation = Alternation(Groups(groups), self.link, wait_s=0.0)
        self.requests = {str(index): FakeRequest(str(index), [1] * size, size) for index, size in enumerate(lens)}
        self.running: list[FakeRequest] = []
        self.turns: list[tuple[Batch, list[str]]] = []

    def step(self, *, tokens: int = 1, leaving: tuple[str, ...] = ()) -> Mapping[str, tuple[int, ...]]:
        turn = self.alternation.begin(self.requests, self.running)
        scheduled = [request.request_id for request in self.running if request.request_id in turn.names]
        new = [name for name in self.requests if self.requests[name] not in self.running]
        self.alternation.admit(turn, self.requests, new)
        self.running += [self.requests[name] for name in new]
        for name in (*scheduled, *new):
            self.requests[name].tokens += [9] * (tokens + len(turn.drafts.get(name, ())))
        for name in leaving:
            self.running.remove(self.requests.pop(name))
        self.alternation.finish(turn, self.requests, [*scheduled, *new], turn.drafts)
        self.turns.append((turn.batch, scheduled))
        return turn.drafts


def test_two_groups_are_verified_in_turn_each_with_the_drafts_made_meanwhile():
    engine = FakeEngine(3, 4, 5, 6)
    engine.step()
    drafts = [set(engine.step()) for _ in range(5)]
    first, second = set(engine.turns[1][1]), set(engine.turns[2][1])
    assert len(first) == len(second) == 2
    assert first | second == set("0123")
    assert [set(names) for _, names in engine.turns[1:]] == [first, second, first, second, first]
    assert drafts[0] == set()  # the other group was drafted for
    assert drafts[1:] == [second, first, second, first]


def test_reports_add_up_to_the_tokens_of_every_request():
    engine = FakeEngine(3, 4, 5)
    for _ in range(7):
        engine.step()
    assert engine.link.tokens == {name: request.tokens for name, request in engine.requests.items()}


def test_accepted_drafts_are_reported():
    engine = FakeEngine(3, 4)
    for _ in range(4):
        engine.step()
    (outcome,) = engine.link.reports[-1].outcomes
    assert (len(outcome.tokens), outcome.num_drafts, outcome.accepted_len) == (3, 2, 2)


def test_drafts_that_are_late_are_not_waited_for_and_never_used_afterwards():
    engine = FakeEngine(3, 4)
    engine.link.is_late = True
    for _ in range(4):
        assert engine.step() == {}
    assert engine.alternation.counts.num_late >= 2
    engine.link.is_late = False
    engine.step()
    engine.step()
    assert engine.step() != {}


def test_a_drafter_that_hangs_is_waited_for_ever_more_rarely_and_again_once_it_answers():
    waits: list[float] = []

    class Hanging(futures.Future[Mapping[str, Drafts]]):
        def result(self, timeout: float | None = None) -> Mapping[str, Drafts]:
            waits.append(timeout or 0.0)
            raise futures.TimeoutError

    engine = FakeEngine(3, 4)
    engine.alternation = Alternation(Groups(), engine.link, wait_s=0.25)
    answer = engine.link.send
    engine.link.send = lambda report: (answer(report), Hanging())[1]  # type: ignore[method-assign]
    for _ in range(200):
        engine.step()
    assert len(waits) > 150
    assert 3 <= sum(wait > 0 for wait in waits) <= 6
    engine.link.send = answer  # type: ignore[method-assign]
    engine.step()
    engine.step()
    assert engine.step() != {}
    engine.link.send = lambda report: (answer(report), Hanging())[1]  # type: ignore[method-assign]
    engine.step()
    engine.step()
    waits.clear()
    engine.step()
    assert waits == [0.25]


def test_drafts_for_other_tokens_than_the_request_has_are_dropped():
    engine = FakeEngine(3)
    engine.step()
    engine.requests["0"].tokens.append(5)
    assert engine.step() == {}


def test_an_empty_group_is_left_out_and_one_request_alone_is_drafted_for_in_every_step():
    engine = FakeEngine(3, 4)
    engine.step()
    engine.step(leaving=("0",))
    for _ in range(2):
        engine.step()
    assert all(names == ["1"] for _, names in engine.turns[-2:])
    assert set(engine.step()) == {"1"}


def test_requests_move_when_a_group_drains():
    engine = FakeEngine(*range(3, 9))
    engine.step()
    engine.step()
    resting = engine.turns[-1][1]
    engine.step(leaving=tuple(resting))
    for _ in range(4):
        engine.step()
    assert [len(names) for _, names in engine.turns[-2:]] in ([1, 2], [2, 1])
    assert engine.alternation.counts.num_moves == 1


def test_a_session_that_goes_on_is_decoded_without_drafts():
    engine = FakeEngine(3, 4)
    engine.requests["1"].resumable = True
    for _ in range(6):
        assert "1" not in engine.step()
    assert "1" not in engine.link.tokens


def test_requests_that_end_between_steps_are_reported():
    engine = FakeEngine(3, 4)
    engine.step()
    engine.running.remove(engine.requests.pop("1"))
    engine.step()
    assert [name for report in engine.link.reports for name in report.ended] == ["1"]
