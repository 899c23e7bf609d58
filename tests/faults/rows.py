"""The fault matrix: its rows, in order. Those about workers are in `rows_workers.py`."""

from __future__ import annotations

from tests.faults.case import Case
from tests.faults.rows_workers import WORKER_ROWS

LAUNCH = "tests/integration/launch/test_launch.py::"
SUPERVISION = "tests/integration/launch/test_supervision.py::"
SERVICE = "tests/integration/test_service.py::"
CONFIG = "tests/unit/test_config.py::"
FOLDER = "tests/unit/models/test_folder.py::"
LINK = "tests/integration/workers/test_link.py::"
CLAIM = "tests/unit/process/test_claim.py::"
DEADLINES = "tests/unit/server/test_deadlines.py::"
SECURITY = "tests/integration/security/test_door.py::"

_SERVICE_ROWS = (
    Case(
        4,
        "scheduler killed",
        "UNAVAILABLE at once",
        "socket and lock gone",
        proofs=(f"{SUPERVISION}test_a_killed_scheduler_fails_waiters_at_once_and_is_started_again_at_its_address",),
    ),
    Case(
        5,
        "launcher killed",
        "UNAVAILABLE at once",
        "no process, socket or folder left after 2 s",
        proofs=(f"{SUPERVISION}test_a_killed_launcher_takes_everything_with_it",),
    ),
    Case(
        11,
        "a client reads slowly, or not at all",
        "paused while it does not read, RESOURCE_EXHAUSTED after its time; the others notice nothing",
        "bounded memory",
        proofs=(
            "tests/integration/doors/test_overload.py::"
            "test_a_client_that_does_not_read_is_paused_and_gets_everything_later",
            "tests/unit/server/test_slow_clients.py::test_what_a_client_does_not_read_costs_no_round_and_no_seat",
            f"{SERVICE}test_a_slow_reader_gets_everything_and_holds_up_nobody",
            "tests/integration/doors/test_overload.py::test_a_client_that_reads_nothing_for_too_long_loses_its_place",
        ),
    ),
    Case(
        12,
        "a client leaves, cancels, aborts, or is killed with 16 streams",
        "the others notice nothing",
        "KV free within a round",
        proofs=(
            f"{SERVICE}test_leaving_the_stream_frees_the_blocks",
            f"{SERVICE}test_cancelling_the_task_ends_the_request",
            f"{SERVICE}test_abort_by_id_ends_the_answer_with_what_there_is",
            "tests/faults/test_clients.py::test_a_client_that_is_killed_with_16_streams_leaves_nothing",
        ),
    ),
    Case(
        13,
        "a deadline passes in the queue or while running",
        "DEADLINE_EXCEEDED",
        "freed within a round",
        proofs=(
            f"{SERVICE}test_a_deadline_ends_the_request_on_both_sides",
            f"{DEADLINES}test_a_deadline_in_the_queue_ends_the_request_before_it_is_ever_scheduled",
            f"{DEADLINES}"
            "test_a_deadline_while_running_ends_the_answer_after_its_tokens_and_frees_the_kv_within_a_round",
        ),
    ),
    Case(
        14,
        "overload",
        "RESOURCE_EXHAUSTED with RetryInfo",
        "refused at once",
        proofs=(
            f"{SERVICE}test_overload_is_refused_with_a_hint_and_nobody_else_suffers",
            "tests/integration/doors/test_overload.py::"
            "test_tokens_that_wait_are_bounded_and_health_answers_in_spite_of_it",
        ),
    ),
    Case(
        15,
        "a request id that is in use",
        "ALREADY_EXISTS; the first goes on",
        "",
        proofs=(f"{SERVICE}test_a_request_id_in_use_is_refused_and_the_first_is_unaffected",),
    ),
    Case(
        18,
        "hostile messages of a client",
        "INVALID_ARGUMENT or RESOURCE_EXHAUSTED",
        "the process lives",
        proofs=(
            "tests/fuzz/test_doors.py::test_a_service_survives_whatever_it_is_sent",
            "tests/fuzz/test_decoders.py::test_every_field_of_a_valid_message_at_every_edge",
            "tests/unit/rpc/test_codec_inference.py::test_random_bytes_decode_or_are_refused",
            "tests/unit/rpc/test_codec_inference.py::test_a_hostile_message_is_refused_by_field",
        ),
    ),
    Case(
        19,
        "a prompt too long",
        "INVALID_ARGUMENT with value and limit",
        "refused after about a context of it",
        proofs=(
            "tests/unit/server/test_tokenizing.py::test_a_prompt_that_cannot_fit_is_never_tokenised_whole",
            "tests/unit/server/test_tokenizing.py::"
            "test_a_prompt_that_fits_has_the_ids_of_the_whole_and_one_token_less_room_refuses_it",
        ),
    ),
    Case(
        20,
        "an empty prompt, max_new_tokens 0, NaN, top_p 0, an empty stop string",
        "INVALID_ARGUMENT with the field",
        "",
        proofs=(
            f"{SERVICE}test_a_bad_request_is_refused_by_name_and_its_neighbour_goes_on",
            "tests/unit/rpc/test_codec_sampling.py::test_a_value_outside_its_limits_is_refused_by_name",
        ),
    ),
    Case(
        21,
        "KV memory is full while requests run",
        "nothing but speed; what can never fit is refused with numbers",
        "same tokens",
        proofs=(
            "tests/integration/test_exactness.py::test_preemption_and_aborted_neighbours_leave_the_tokens_unchanged",
            "tests/unit/core/test_scheduler_machine.py::test_a_request_that_can_never_fit_is_refused_with_the_numbers",
        ),
    ),
    Case(
        24,
        "the log cannot be written: full disk, closed or blocked pipe",
        "nothing",
        "serving unaffected",
        proofs=(f"{SUPERVISION}test_a_log_that_cannot_be_written_ends_nothing",),
    ),
    Case(
        25,
        "/dev/shm full",
        "nothing: tensors go in messages",
        "one warning",
        proofs=(
            "tests/unit/channels/test_shm.py::test_a_lack_of_memory_is_an_error_and_leaves_no_file_open",
            "tests/unit/engine/test_pairing.py::test_tensors_are_inline_if_no_carrier_works",
        ),
    ),
    Case(
        26,
        "no more file descriptors",
        "new connections wait or fail; streams go on",
        "the limit is raised or refused at the start",
        proofs=(
            "tests/faults/test_limits.py::test_without_descriptors_streams_go_on_and_newcomers_come_later",
            "tests/unit/launch/test_preflight.py::"
            "test_the_limit_of_open_files_is_raised_to_what_the_clients_need_or_refused",
        ),
    ),
    Case(
        27,
        "the port or socket is in use, or its owner is dead",
        "",
        "exit code 78 naming the holder; a dead one's is reclaimed",
        proofs=(
            f"{LAUNCH}test_a_second_service_on_the_same_socket_is_refused_and_the_first_goes_on",
            f"{CLAIM}test_a_port_in_use_is_refused_naming_its_process",
            f"{CLAIM}test_the_socket_of_a_dead_process_is_reclaimed",
        ),
    ),
    Case(
        28,
        "bad settings",
        "",
        "all named at once, exit code 78, before torch is imported",
        proofs=(
            f"{CONFIG}test_every_problem_of_a_file_is_listed_at_once",
            f"{CONFIG}test_a_bad_start_ends_with_78_and_a_reason_before_torch_is_imported",
        ),
    ),
    Case(
        29,
        "a bad model folder",
        "",
        "each its own message, exit code 78",
        proofs=(
            f"{FOLDER}test_a_folder_that_cannot_be_served_says_why",
            "tests/unit/launch/test_preflight.py::test_weights_that_could_run_code_are_refused",
        ),
    ),
    Case(
        30,
        "vocabularies that differ",
        "",
        "the first token that differs is named, exit code 78; padding may differ",
        proofs=(
            f"{FOLDER}test_another_token_under_an_id_is_named",
            f"{SERVICE}test_a_drafter_with_another_tokenizer_is_refused",
        ),
    ),
    Case(
        35,
        "SIGTERM while loading, twice, SIGINT, SIGHUP",
        "live answers finish; the second signal ends them",
        "2 s while loading and after the second signal",
        proofs=(
            f"{LAUNCH}test_a_signal_while_loading_ends_it_within_two_seconds",
            f"{LAUNCH}test_the_second_signal_ends_live_answers_within_two_seconds",
            f"{LAUNCH}test_the_first_signal_lets_live_answers_finish",
            f"{LAUNCH}test_under_nohup_a_hang_up_changes_nothing",
        ),
    ),
    Case(
        36,
        "drain with live streams",
        "live ones finish; new ones and the rest: UNAVAILABLE, DRAINING",
        "drain_timeout_s",
        when="draining",
        proofs=(
            f"{SERVICE}test_draining_finishes_live_answers_and_refuses_new_ones",
            f"{SERVICE}test_a_drain_that_takes_too_long_ends_the_rest_explicitly",
        ),
    ),
    Case(
        37,
        "scheduler and worker of different versions",
        "",
        "both versions named, exit code 78",
        proofs=("tests/integration/workers/test_link_loss.py::test_another_protocol_version_is_a_configuration_error",),
    ),
    Case(
        38,
        "the wall clock jumps",
        "nothing",
        "only the monotonic clock is read",
        proofs=("tests/faults/test_limits.py::test_no_program_of_ours_reads_the_wall_clock",),
    ),
    Case(
        39,
        "no token, a wrong one, no certificate, plain text to a TLS port",
        "UNAUTHENTICATED",
        "constant-time comparison",
        proofs=(
            f"{SECURITY}test_every_method_is_closed_to_callers_without_a_valid_token",
            f"{SECURITY}test_what_does_not_fit_the_door_gets_a_clear_error",
            f"{SECURITY}test_callers_without_a_token_cannot_fill_the_log",
            "tests/integration/security/test_worker_links.py::"
            "test_a_worker_answers_nobody_without_a_certificate_of_its_ca",
            "tests/unit/security/test_tls.py::test_a_certificate_that_has_expired_is_refused",
        ),
    ),
    Case(
        42,
        "a character is cut between tokens",
        "whole characters; U+FFFD only at the end",
        "",
        proofs=(
            "tests/unit/text/test_detokenizer.py::test_no_piece_shows_half_a_character",
            "tests/unit/text/test_detokenizer.py::test_a_character_cut_off_at_the_end_is_one_replacement_character",
        ),
    ),
)

ROWS: tuple[Case, ...] = tuple(sorted((*WORKER_ROWS, *_SERVICE_ROWS), key=lambda case: case.row))
