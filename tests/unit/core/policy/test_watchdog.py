"""The watchdog suspends useless drafting and nothing else, says why, and finds out when drafts are useful again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from minedraft.core import events
from minedraft.core.policy.base import DraftOffer, FixedDraftLen, FixedMode, ModeDecision
from minedraft.core.policy.chart import AcceptanceChart, Baseline
from minedraft.core.policy.suspended_mode import SuspendedMode
from minedraft.core.policy.watchdog import Watchdog
from minedraft.core.request import NewRequest, Request
from minedraft.sampling_params import SamplingParams
from minedraft.types import DraftMethod, LoanTerms, Mode, Role
from scripts.lib.null_worker import null_info

K = 3
Accept = Callable[[], bool]


def chance(p: float, seed: int = 1) -> Accept:
    rng = random.Random(seed)
    return lambda: rng.random() < p


def rows_until_alarm(accept: Accept, most: int, limit: float = 13.8) -> int | None:
    chart = AcceptanceChart(limit)
    for number in range(1, most + 1):
        chart.add(accept())
        if chart.is_alarmed:
            return number
    return None


@pytest.mark.parametrize(("p", "most"), [(0.0, 190), (0.01, 500), (0.03, 2000)])
def test_useless_drafts_are_found_in_hundreds_of_rows(p: float, most: int) -> None:
    for seed in range(20):
        found = rows_until_alarm(chance(p, seed), most)
        assert found is not None
        assert found >= 180


@pytest.mark.parametrize("p", [0.1, 0.2, 0.6])
def test_drafts_that_may_pay_are_never_held_useless(p: float) -> None:
    for seed in range(3):
        assert rows_until_alarm(chance(p, seed), 100_000) is None


def test_hard_text_between_easy_text_is_no_alarm() -> None:
    """Acceptance changes between paragraphs, down to one first draft in eight."""
    rng = random.Random(3)

    def accepts() -> Iterator[bool]:
        while True:
            p = rng.choice((0.125, 0.2, 0.5, 0.8))
            yield from (rng.random() < p for _ in range(rng.randrange(20, 200)))

    assert rows_until_alarm(accepts().__next__, 100_000) is None


def test_the_baseline_counts_once_it_is_known_and_never_asks_for_much() -> None:
    baseline = Baseline()
    assert baseline.useful == 0.10
    for _ in range(250):
        baseline.add(True)
    assert baseline.useful == 0.30
    for _ in range(20_000):
        baseline.add(False)
    assert baseline.useful == 0.10


class Service:
    """Requests that decode in rounds of ten milliseconds, as the watchdog sees them. `accept` says what comes of a
    request's first draft; None: the drafter proposes nothing."""

    def __init__(self, num_requests: int, accept: Callable[[int], bool | None]) -> None:
        self.watchdog = Watchdog(FixedDraftLen())
        self.now_s = 0.0
        self.source = DraftMethod.MODEL
        self.told: list[events.DraftingSuspended | events.DraftingResumed] = []
        self.accept = accept
        self.requests: list[Request] = []
        for _ in range(num_requests):
            self.add()
        self.join()

    def add(self) -> Request:
        request = Request.create(len(self.requests) + 1, NewRequest((1, 2), SamplingParams(max_new_tokens=9999)))
        self.requests.append(request)
        return request

    def join(self, method: DraftMethod = DraftMethod.MODEL) -> None:
        info = null_info(Role.DRAFTER)
        self.observe(events.WorkerJoined(info.__class__(**{**_fields(info), "draft_method": method})))

    def observe(self, event: events.Event) -> None:
        self.watchdog.observe(event, self.now_s)
        self.told += self.watchdog.take_events()

    def end(self, request: Request) -> None:
        self.requests.remove(request)
        self.observe(events.RequestEnded(request.id, request.output_len, None, ""))

    def rounds(self, count: int) -> int:
        """Run rounds. Return the drafts that were asked for."""
        num_drafts = 0
        for _ in range(count):
            asked = {r.id: self.watchdog.draft_len(r, len(self.requests), K) for r in self.requests}
            num_drafts += sum(asked.values())
            outcomes = {r.id: self.accept(r.id) for r in self.requests}
            offers = [DraftOffer(i, 0 if outcomes[i] is None else k, source=self.source) for i, k in asked.items() if k]
            chosen = dict(zip([o.request_id for o in offers], self.watchdog.select(offers), strict=True))
            for request in self.requests:
                drafted, accepted = chosen.get(request.id, 0), int(bool(outcomes[request.id]))
                request.num_rounds += 1
                request.num_drafted += drafted
                request.num_accepted += min(accepted, drafted)
                request.tokens += [5] * (1 + min(accepted, drafted))
            self.now_s += 0.01
            self.observe(events.LaneIdle(0))  # type: ignore[arg-type]
        return num_drafts


def _fields(info: object) -> dict[str, object]:
    return {name: getattr(info, name) for name in info.__slots__}  # type: ignore[attr-defined]


def test_a_wrong_draft_model_is_suspended_by_name_and_tried_again_ever_later() -> None:
    service = Service(16, lambda _: False)
    service.rounds(20)
    (told,) = service.told
    assert isinstance(told, events.DraftingSuspended)
    assert told.request_id is None
    assert "does not fit the target, or its weights are broken" in told.cause
    assert (told.num_accepted, told.again_after_s) == (0, 15.0)
    assert 180 <= told.num_rows <= 200
    assert service.watchdog.is_suspended
    assert service.rounds(100) == 0
    service.rounds(20_000)
    pauses = [t.again_after_s for t in service.told if isinstance(t, events.DraftingSuspended)]
    assert pauses == [15.0, 30.0, 60.0, 120.0]
    rows = [t.num_rows for t in service.told if isinstance(t, events.DraftingSuspended)]
    assert all(count <= 110 for count in rows[1:]), "a trial needs half the rows"
    assert all(t.is_trial for t in service.told if isinstance(t, events.DraftingResumed))


def test_drafts_that_are_useful_again_resume_and_the_next_fault_is_paused_for_as_short_as_the_first() -> None:
    is_broken = True
    useful = chance(0.6)
    service = Service(8, lambda _: not is_broken and useful())
    service.rounds(40)
    assert service.watchdog.is_suspended
    is_broken = False
    service.rounds(1600)
    assert [type(t).__name__ for t in service.told] == ["DraftingSuspended", "DraftingResumed", "DraftingResumed"]
    assert [t.is_trial for t in service.told if isinstance(t, events.DraftingResumed)] == [True, False]
    assert service.rounds(100) == 100 * 8 * K
    is_broken = True
    service.rounds(60)
    last = service.told[-1]
    assert isinstance(last, events.DraftingSuspended)
    assert last.request_id is None
    assert last.again_after_s == 15.0
    assert "drafts are accepted no more" in last.cause, "it was better before, and that is said"


def test_one_odd_text_rests_alone_and_drafts_again_when_it_is_odd_no_more() -> None:
    is_odd = True
    useful = chance(0.6)
    service = Service(8, lambda i: useful() and not (i == 3 and is_odd))
    service.rounds(150)
    assert {t.request_id for t in service.told} == {3}
    assert not service.watchdog.is_suspended
    first = service.told[0]
    assert isinstance(first, events.DraftingSuspended)
    assert first.again_after_tokens == 64
    assert first.num_rows < 60, "far below the others, it is told soon"
    assert [service.watchdog.draft_len(r, 8, K) for r in service.requests].count(0) == 1
    is_odd = False
    service.rounds(400)
    last = service.told[-1]
    assert isinstance(last, events.DraftingResumed)
    assert not last.is_trial
    assert service.rounds(50) == 50 * 8 * K


def test_odd_texts_one_after_another_are_no_broken_drafter_unless_there_is_nothing_else() -> None:
    useful = chance(0.5)
    service = Service(2, lambda i: i % 3 != 0 and useful())
    for _ in range(40):
        service.add()
        service.rounds(60)
        service.end(service.requests[0])
    assert not any(t.request_id is None for t in service.told)


def test_a_drafter_that_proposes_nothing_is_found_but_not_one_that_looks_up_ngrams() -> None:
    service = Service(4, lambda _: None)
    service.rounds(10)
    (told,) = service.told
    assert isinstance(told, events.DraftingSuspended)
    assert told.request_id is None
    assert "not finite" in told.cause
    service.join(DraftMethod.NGRAM)
    service.told.clear()
    service.rounds(500)
    assert service.told == []


def test_drafts_that_were_looked_up_are_not_judged() -> None:
    service = Service(16, lambda _: False)
    service.source = DraftMethod.NGRAM
    service.rounds(100)
    assert service.told == []
    service.source = DraftMethod.MODEL
    service.rounds(20)
    assert service.watchdog.is_suspended


def test_a_request_for_which_nothing_is_proposed_rests_alone() -> None:
    service = Service(4, lambda i: None if i == 2 else True)
    service.rounds(40)
    told = service.told[0]
    assert isinstance(told, events.DraftingSuspended)
    assert told.request_id == 2
    assert "not finite" in told.cause
    assert not service.watchdog.is_suspended


def test_another_drafter_has_a_clean_record() -> None:
    service = Service(16, lambda _: False)
    service.rounds(20)
    assert service.watchdog.is_suspended
    service.join()
    assert not service.watchdog.is_suspended
    assert service.told[-1] == events.DraftingResumed(None, is_trial=False)
    assert service.rounds(1) == 16 * K


def test_what_a_borrower_sets_is_left_alone() -> None:
    service = Service(16, lambda _: False)
    service.rounds(20)
    service.observe(events.ModeChanged(Mode.SD, 4, K, "borrowed", is_lent=True))
    assert not service.watchdog.is_suspended
    assert service.rounds(500) == 500 * 16 * K
    service.observe(events.ModeChanged(Mode.MINEDRAFT, 4, K, "the loan has ended"))
    service.told.clear()
    service.rounds(2000)
    assert service.told, "it goes on where it was"


class Wants:
    """A mode policy that wants the same terms once."""

    def __init__(self, decision: ModeDecision) -> None:
        self._decision: ModeDecision | None = decision

    def wanted(self, now_s: float) -> ModeDecision | None:
        decision, self._decision = self._decision, None
        return decision

    def observe(self, event: events.Event, now_s: float) -> None:
        pass


def test_while_drafting_is_suspended_the_mode_is_ar_with_the_seats_of_both_batches() -> None:
    service = Service(16, lambda _: False)
    mode = SuspendedMode(FixedMode(), service.watchdog)
    mode.observe(events.ModeChanged(Mode.MINEDRAFT, 8, K, "start"), 0.0)
    assert mode.wanted(0.0) is None
    service.rounds(20)
    assert mode.wanted(0.2) == ModeDecision(LoanTerms(Mode.AR, 16, K), "drafting is suspended")
    assert mode.wanted(0.2) is None, "it is asked for, and not in force yet"
    mode.observe(events.ModeChanged(Mode.AR, 16, 0, "policy"), 0.3)
    assert mode.wanted(0.4) is None
    while service.watchdog.is_suspended:
        service.rounds(1)
    assert mode.wanted(16.0) == ModeDecision(LoanTerms(Mode.MINEDRAFT, 8, K), "drafting is resumed")


def test_otherwise_the_other_policy_decides_the_mode() -> None:
    service = Service(1, lambda _: True)
    decision = ModeDecision(LoanTerms(Mode.SD, 3, 2), "it is better")
    mode = SuspendedMode(Wants(decision), service.watchdog)
    mode.observe(events.ModeChanged(Mode.MINEDRAFT, 8, K, "start"), 0.0)
    assert [mode.wanted(0.0), mode.wanted(0.0)] == [decision, None]
