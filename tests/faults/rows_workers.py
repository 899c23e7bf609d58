"""The rows of the fault matrix about the two workers: most of them are made in the running service."""

from __future__ import annotations

from minedraft.types import Role
from tests.faults.case import Case, Live
from tests.faults.gate import Action, Point

REPLAYS = "tests/unit/engine/test_replays.py::"
TRIALS = "tests/unit/engine/test_trials.py::"
RESTART = "tests/unit/launch/test_restart.py::"
SUPERVISION = "tests/integration/launch/test_supervision.py::"
LINK = "tests/integration/workers/test_link.py::"
LOSS = "tests/integration/workers/test_link_loss.py::"
HANG = "tests/integration/workers/test_hang.py::"
BAD = "tests/integration/test_bad_drafters.py::"
ACCEPTANCE = "tests/unit/workers/test_acceptance_verify.py::"
MEMORY = "tests/unit/workers/cuda/test_out_of_memory.py::"

D, V = Role.DRAFTER, Role.VERIFIER
NO_DRAFTS = ("degraded", "serving")
NO_VERIFIER = ("recovering", "serving")
_LOST = "drafter lost, continuing without drafts"
_WAIT = "verifier lost, requests wait until it is back"

WORKER_ROWS = (
    Case(
        1,
        "drafter killed",
        "nothing but speed",
        "noticed within 1 s; the round goes on without drafts",
        when="in_draft, after_draft_before_reply, in_prefill",
        live=(
            Live(D, Point.IN_DRAFT, Action.KILL, 4, NO_DRAFTS, _LOST, "drafter_dead"),
            Live(D, Point.AFTER_DRAFT, Action.KILL, 4, NO_DRAFTS, _LOST, "drafter_dead"),
            Live(D, Point.IN_PREFILL, Action.KILL, 0, NO_DRAFTS, _LOST, "drafter_dead", dies_loading=True),
        ),
        proofs=(f"{SUPERVISION}test_a_killed_drafter_is_reported_and_no_answer_fails",),
    ),
    Case(
        2,
        "verifier killed",
        "streams pause and go on with the same tokens; a request that kills it alone after two replays: UNAVAILABLE "
        "with RetryInfo",
        "noticed within 1 s; one such request ends with the third death, and nobody with it",
        when="in_prefill, in_verify, after_verify_before_reply",
        live=(
            Live(V, Point.IN_PREFILL, Action.KILL, 0, NO_VERIFIER, _WAIT, "verifier_dead"),
            Live(V, Point.IN_VERIFY, Action.KILL, 6, NO_VERIFIER, _WAIT, "verifier_dead"),
            Live(V, Point.AFTER_VERIFY, Action.KILL, 6, NO_VERIFIER, _WAIT, "verifier_dead"),
        ),
        proofs=(
            "tests/integration/launch/test_launch.py::"
            "test_answers_go_on_with_another_verifier_and_no_token_is_lost_or_repeated",
            f"{REPLAYS}test_a_request_is_recomputed_twice_and_then_ends_with_a_hint_when_to_try_again",
            f"{REPLAYS}test_requests_wait_so_long_and_no_longer_and_the_service_goes_on_when_the_verifier_is_back",
            f"{TRIALS}test_of_any_crowd_only_the_killers_end_and_each_after_a_bounded_number_of_deaths",
            "tests/integration/launch/test_poison.py::test_a_request_that_kills_every_verifier_ends_and_its_neighbours_go_on",
        ),
    ),
    Case(
        3,
        "a worker dies while loading",
        "",
        "named with its exit code and last lines; two more tries at a first start, then exit code 70",
        when="loading",
        proofs=(
            f"{SUPERVISION}test_a_worker_that_dies_while_loading_is_named_and_its_reason_told_once",
            f"{RESTART}test_a_process_that_was_never_ready_gets_two_more_tries",
        ),
    ),
    Case(
        7,
        "a worker's device hangs or spins",
        "as row 1 or 2",
        "noticed within max(5 s, 20 x p99 of a step); a slow forward is left alone",
        when="in_draft, in_verify",
        live=(
            Live(D, Point.IN_DRAFT, Action.SPIN, 4, NO_DRAFTS, _LOST, "drafter_hung_no_progress"),
            Live(V, Point.IN_VERIFY, Action.HANG, 6, NO_VERIFIER, _WAIT, "verifier_hung_no_progress"),
        ),
        proofs=(
            f"{HANG}test_a_device_that_stands_still_is_a_hang",
            f"{HANG}test_a_worker_without_heartbeats_is_a_hang",
            f"{LOSS}test_a_device_thread_that_computes_for_long_is_left_alone",
        ),
    ),
    Case(
        8,
        "the scheduler's event loop is blocked",
        "UNAVAILABLE, when it is killed",
        "the launcher or systemd kills it after its watchdog's time and starts it again",
        proofs=(
            f"{SUPERVISION}test_a_process_that_hangs_is_killed_and_started_again",
            "tests/unit/process/test_heartbeat.py::test_a_busy_process_pings_while_it_gets_on_and_no_longer",
            "tests/integration/systemd/test_notifying.py::"
            "test_three_units_say_when_they_are_ready_that_they_live_and_that_they_stop",
        ),
    ),
    Case(
        23,
        "the kernel kills a process for want of memory",
        "as row 1, 2 or 4",
        "as row 1, 2 or 4",
        proofs=(
            f"{SUPERVISION}test_a_killed_drafter_is_reported_and_no_answer_fails",
            "tests/integration/systemd/test_units.py::test_what_is_promised_is_in_every_unit",
        ),
    ),
    Case(
        40,
        "a process dies again and again",
        "UNAVAILABLE with RetryInfo",
        "backoff 0.5 to 30 s; the 6th end within 300 s: exit code 70, for the drafter one try every 30 s",
        proofs=(
            f"{RESTART}test_no_history_makes_a_hot_loop",
            f"{RESTART}test_the_pause_doubles_until_the_budget_is_spent",
            "tests/unit/launch/test_supervised.py::"
            "test_it_is_restarted_until_the_budget_is_spent_with_a_line_for_each_end",
        ),
    ),
    Case(
        6,
        "SIGSTOP of a worker",
        "as if it had been killed",
        "noticed within max(5 s, 20 x p99 of a step); SIGKILL, or taken back if it goes on before",
        when="in_draft, in_verify",
        live=(
            Live(D, Point.IN_DRAFT, Action.STOP, 4, NO_DRAFTS, _LOST, "drafter_hung_silent", resume_after_s=9),
            Live(V, Point.IN_VERIFY, Action.STOP, 6, NO_VERIFIER, _WAIT, "verifier_hung_silent"),
        ),
        proofs=(
            f"{SUPERVISION}test_a_process_that_hangs_is_killed_and_started_again",
            f"{LOSS}test_a_process_that_was_stopped_inside_a_forward_is_not_taken_to_hang",
        ),
    ),
    Case(
        9,
        "a reply is lost after execution",
        "nothing but speed",
        "a repeat gets the stored reply; a new connection starts from the committed tokens",
        when="after_draft_before_reply",
        live=(
            Live(D, Point.REPLY, Action.CUT, 4, NO_DRAFTS, _LOST, "drafter_dead"),
            Live(V, Point.REPLY, Action.CUT, 6, NO_VERIFIER, _WAIT, "verifier_dead"),
        ),
        proofs=(
            f"{LINK}test_a_repeated_round_gets_the_stored_reply_and_is_executed_once",
            f"{LINK}test_a_repeat_during_the_first_run_waits_for_it",
        ),
    ),
    Case(
        10,
        "a reply comes twice, late or out of order",
        "nothing",
        "dropped and counted",
        when="after_draft_before_reply, after_verify_before_reply",
        live=(
            Live(D, Point.REPLY, Action.TWICE, 4, (), "", "stale_replies", is_lost=False),
            Live(V, Point.REPLY, Action.TWICE, 4, (), "", "stale_replies", is_lost=False),
            Live(D, Point.REPLY, Action.LATE, 4, (), "", "", is_lost=False),
            Live(V, Point.REPLY, Action.LATE, 4, (), "", "", is_lost=False),
        ),
    ),
    Case(
        16,
        "bytes on a worker's connection that are no message",
        "nothing but speed",
        "the connection is closed and another one made",
        live=(
            Live(D, Point.REPLY, Action.GARBAGE, 4, NO_DRAFTS, _LOST, "drafter_protocol"),
            Live(V, Point.REPLY, Action.GARBAGE, 6, NO_VERIFIER, _WAIT, "verifier_protocol"),
        ),
    ),
    Case(
        17,
        "a well-formed reply with wrong numbers",
        "nothing but speed",
        "refused before anything uses it",
        live=(
            Live(D, Point.REPLY, Action.WRONG, 4, NO_DRAFTS, _LOST, "drafter_protocol"),
            Live(V, Point.REPLY, Action.WRONG, 6, NO_VERIFIER, _WAIT, "verifier_protocol"),
        ),
        proofs=(
            "tests/unit/rpc/test_codec_worker.py::test_a_verifier_s_reply_that_breaks_the_contract_is_refused",
            "tests/unit/engine/test_pipeline.py::"
            "test_a_drafter_that_refuses_whatever_comes_is_given_up_and_its_link_with_it",
        ),
    ),
    Case(
        22,
        "a GPU has no memory for a step",
        "that request ends; the others go on",
        "the longest request is named",
        proofs=(
            f"{MEMORY}test_the_longest_request_is_named_and_the_others_go_on_as_if_nothing_had_been",
            f"{MEMORY}test_a_worker_lives_on_and_the_refusal_names_the_request",
        ),
        skipped="on a GPU; the logic is tested with errors that a test raises",
    ),
    Case(
        31,
        "the draft model's context is shorter than the target's",
        "nothing but speed",
        "drafts end where it ends",
        proofs=(f"{BAD}test_a_draft_model_with_a_shorter_context_drafts_as_far_as_it_reaches",),
    ),
    Case(
        32,
        "NaN or Inf in the target's logits of one request",
        "that one: INTERNAL, NUMERIC; the others nothing",
        "the others' tokens and log-probabilities have the same bits",
        when="in_verify",
        live=(
            Live(
                V,
                Point.IN_VERIFY,
                Action.NAN,
                4,
                (),
                "",
                "request_numeric",
                num_failed=1,
                fails_with="NUMERIC",
                is_lost=False,
            ),
        ),
        proofs=(f"{ACCEPTANCE}test_a_bad_row_fails_its_request_alone",),
    ),
    Case(
        33,
        "NaN in the draft model's logits",
        "nothing but speed",
        "the row has no drafts in that round; counted by cause, drafter_numeric",
        when="in_draft",
        live=(Live(D, Point.IN_DRAFT, Action.NAN, 4, counts="drafter_numeric", is_lost=False),),
        proofs=(
            f"{BAD}test_a_drafter_that_is_no_help_is_left_out_and_the_answers_are_the_targets_own",
            "tests/integration/test_exactness.py::"
            "test_a_draft_model_that_computes_nan_is_counted_said_a_few_times_and_costs_only_drafts",
        ),
    ),
    Case(
        34,
        "adversarial drafts: all wrong, q = 0 on the token drawn, one token for ever",
        "nothing but speed",
        "suspended by name",
        proofs=(
            f"{BAD}test_a_drafter_that_is_no_help_is_left_out_and_the_answers_are_the_targets_own",
            f"{ACCEPTANCE}test_a_q_that_lies_neither_crashes_nor_yields_a_token_outside_the_support",
            "tests/unit/engine/test_watching.py::test_useless_drafting_becomes_ar_and_is_tried_again_later",
        ),
    ),
    Case(
        41,
        "a GPU is lost",
        "as row 1 or 2",
        "the worker exits with 70",
        live=(Live(V, Point.IN_VERIFY, Action.RAISE, 6, NO_VERIFIER, _WAIT, "verifier_failed"),),
        proofs=(f"{LOSS}test_an_unexpected_failure_in_the_device_thread_ends_the_worker",),
        skipped="on a GPU; any error of the device thread ends the worker, which is tested",
    ),
)
