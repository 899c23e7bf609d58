"""What the drafter is asked for, without a drafter."""

from __future__ import annotations

from minedraft.core.draft_book import DraftBook
from minedraft.core.ledger import KvLedger
from minedraft.core.policy.base import DraftPolicy, FixedDraftLen
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.messages import DraftCommand, DraftReply, Proposal, Timing
from minedraft.types import Batch, Mode
from minedraft.vllm.desk import DraftDesk, Drafts, Newcomer, StepOutcome, StepReport

A, B = Batch.A, Batch.B


def _desk(policy: DraftPolicy | None = None, num_blocks: int = 64, experience: Experience | None = None) -> DraftDesk:
    desk = DraftDesk(4, policy or FixedDraftLen(), experience or Experience(), Mode.MINEDRAFT)
    desk.attach(DraftBook(KvLedger(num_blocks, 16, 512), 1000), epoch=7)
    return desk


def _newcomer(name: str, size: int, output_limit: int = 64) -> Newcomer:
    return Newcomer(name, tuple(range(1, size + 1)), size, output_limit)


def _answer(desk: DraftDesk, command: DraftCommand | None, now_s: float = 0.0) -> dict[str, Drafts]:
    assert command is not None
    proposals = tuple(
        [
            Proposal(span.request_id, span.committed_len, (5,) * span.draft_len)
            for span in command.spans
            if span.draft_len
        ]
    )
    return desk.executed(command, DraftReply(command.round, proposals, Timing(busy_ns=10**6), 64), now_s)


def test_a_prompt_is_cached_before_its_first_draft_and_a_round_adds_up():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 40),)), 0.0)
    assert desk.plan_draft(A, ["x"], 0.0) is None  # the drafter knows nothing of it
    prefill = desk.plan_prefill(["x"], 256)
    assert prefill is not None
    assert [(span.prefix_len, len(span.tokens)) for span in prefill.spans] == [(0, 39)]
    _answer(desk, prefill)
    desk.take_in(StepReport(A, outcomes=(StepOutcome("x", (9,)),), verify_s=0.1), 0.1)
    drafts = _answer(desk, desk.plan_draft(A, ["x"], 0.1))
    assert drafts == {"x": Drafts(41, (5, 5, 5, 5))}
    desk.take_in(StepReport(A, outcomes=(StepOutcome("x", (5, 5, 8), 4, 2),), verify_s=0.1), 0.2)
    assert (desk.tried, desk.accepted) == ([1, 1, 1, 1], [1, 1, 0, 0])
    command = desk.plan_draft(A, ["x"], 0.2)
    assert command is not None
    (span,) = command.spans
    assert (span.prefix_len, span.tokens) == (43, (8,))  # the accepted drafts are cached already


def test_a_request_with_a_command_on_its_way_is_not_asked_for_again():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2),)), 0.0)
    first = desk.plan_draft(A, ["x"], 0.0)
    assert first is not None
    assert desk.plan_draft(B, ["x"], 0.0) is None
    _answer(desk, first)
    assert desk.plan_draft(B, ["x"], 0.0) is not None


def test_no_drafts_beyond_the_last_token_that_a_request_can_have():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2, output_limit=3),)), 0.0)
    command = desk.plan_draft(A, ["x"], 0.0)
    assert command is not None
    assert command.spans[0].draft_len == 2
    _answer(desk, command)
    desk.take_in(StepReport(A, outcomes=(StepOutcome("x", (9, 9), 2, 0),), verify_s=0.1), 0.1)
    assert desk.plan_draft(A, ["x"], 0.1) is None


def test_a_request_that_does_not_fit_the_drafter_is_decoded_without_drafts():
    desk = _desk(num_blocks=2)
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2), _newcomer("y", 200))), 0.0)
    assert desk.plan_prefill(["y"], 256) is None
    command = desk.plan_draft(A, ["x", "y"], 0.0)
    assert command is not None
    assert len(command.spans) == 1


def test_without_a_drafter_reports_are_taken_in_and_a_new_drafter_begins_with_all_tokens():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2),)), 0.0)
    lost = desk.plan_draft(A, ["x"], 0.0)
    desk.detach()
    assert desk.plan_draft(A, ["x"], 0.0) is None
    desk.take_in(StepReport(A, outcomes=(StepOutcome("x", (9, 9, 9)),), verify_s=0.1), 0.1)
    desk.attach(DraftBook(KvLedger(64, 16, 512), 1000), epoch=8)
    assert _answer(desk, lost) == {}  # of the drafter before
    prefill = desk.plan_prefill(["x"], 256)
    assert prefill is not None
    assert prefill.round.epoch == 8
    assert prefill.spans[0].tokens == (1, 2, 9, 9)


def test_ended_requests_are_released_with_the_next_command():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2), _newcomer("y", 2))), 0.0)
    _answer(desk, desk.plan_draft(A, ["x", "y"], 0.0))
    desk.take_in(StepReport(A, ended=("x",)), 0.1)
    command = desk.plan_draft(A, ["x", "y"], 0.1)
    assert command is not None
    assert (command.released, [span.request_id for span in command.spans]) == ((1,), [2])


def test_numbers_of_rounds_grow_over_both_groups():
    desk = _desk()
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2), _newcomer("y", 2))), 0.0)
    first, second = desk.plan_draft(A, ["x"], 0.0), desk.plan_draft(B, ["y"], 0.0)
    assert first is not None
    assert second is not None
    assert first.round.number < second.round.number


def test_the_automatic_policy_stops_drafts_that_do_not_pay():
    experience = Experience()
    desk = _desk(AutoDraftLen(experience), experience=experience)
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2, 400),)), 0.0)
    now_s, lens = 0.0, []
    for _ in range(60):
        command = desk.plan_draft(A, ["x"], now_s)
        lens.append(command.spans[0].draft_len if command else 0)
        if command:
            reply = DraftReply(
                command.round,
                tuple([Proposal(span.request_id, span.committed_len, (5,) * span.draft_len) for span in command.spans]),
                Timing(busy_ns=50_000_000 * lens[-1]),  # five times as long as a verify
                64,
            )
            desk.executed(command, reply, now_s)
            now_s += 0.05 * lens[-1]
        now_s += 0.01
        outcome = StepOutcome("x", (9,), lens[-1], 0)
        desk.take_in(StepReport(A, outcomes=(outcome,), verify_s=0.01), now_s)
    assert lens[0] > 0
    assert sum(lens[-20:]) <= 4


def test_a_policy_that_fails_is_replaced_and_named():
    class Failing(FixedDraftLen):
        def draft_len(self, *args: object) -> int:
            raise ZeroDivisionError("no costs")

    causes: list[str] = []
    desk = DraftDesk(4, Failing(), Experience(), Mode.MINEDRAFT, causes.append)
    desk.attach(DraftBook(KvLedger(64, 16, 512), 1000), epoch=7)
    desk.take_in(StepReport(A, newcomers=(_newcomer("x", 2),)), 0.0)
    command = desk.plan_draft(A, ["x"], 0.0)
    assert command is not None
    assert command.spans[0].draft_len == 3
    assert causes == ["Failing.draft_len: ZeroDivisionError: no costs"]


def test_a_request_that_lacks_a_few_tokens_is_told_from_one_that_lacks_many():
    desk = _desk()
    newcomers = (_newcomer("ready", 2), _newcomer("nearly", 6), _newcomer("not", 60))
    desk.take_in(StepReport(A, newcomers=newcomers), 0.0)
    assert desk.nearly_ready(["ready", "nearly", "not"]) == ("nearly",)
    _answer(desk, desk.plan_prefill(["nearly"], 8))
    assert desk.nearly_ready(["ready", "nearly", "not"]) == ()
