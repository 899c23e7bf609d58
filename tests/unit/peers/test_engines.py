"""Command lines, requests and replies of the engines, without the engines."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minedraft.types import Mode
from scripts.lib.peers.cells import Cell, CellKind
from scripts.lib.peers.engines import llama_cpp, vllm_cpu
from scripts.lib.peers.engines.base import Setup
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.errors import PeerFailed
from scripts.lib.peers.engines.http_engine import Dialect, to_stream
from scripts.lib.peers.engines.ours import Ours
from scripts.lib.peers.engines.transformers_generate import cut_at, left_pad, to_streams

NATURAL = Cell(CellKind.NATURAL, 2, None, 64)
DIALECTS = [llama_cpp.Completion(), vllm_cpu.Completions()]
# Lines as the servers send them, shortened.
LLAMA = [
    'data: {"index":0,"content":"As","tokens":[1094],"stop":false,"tokens_predicted":1}',
    "",
    'data: {"index":0,"content":" the","tokens":[260],"stop":false,"tokens_predicted":2}',
    'data: {"index":0,"content":"","tokens":[],"stop":true,"tokens_predicted":2}',
]
VLLM = [
    'data: {"choices":[{"index":0,"text":"As","finish_reason":null,"prompt_token_ids":[1,2],"token_ids":[1094]}]}',
    "",
    'data: {"choices":[{"index":0,"text":" the","finish_reason":"length","token_ids":[260]}]}',
    "data: [DONE]",
]


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(Path("models/some"), "bfloat16", (0, 1), 32, 2304, tmp_path)


@pytest.mark.parametrize(("dialect", "lines"), [(DIALECTS[0], LLAMA), (DIALECTS[1], VLLM)])
def test_a_reply_becomes_one_piece_per_event_with_tokens(dialect: Dialect, lines: list[str]):
    stream = to_stream("x", dialect, 7, 0.5, [(1.0 + i, line) for i, line in enumerate(lines)])
    assert stream.token_ids == (1094, 260)
    assert stream.arrivals_s == (1.0, 3.0)
    assert stream.piece_lens == (1, 1)
    assert (stream.num_prompt_tokens, stream.sent_s) == (7, 0.5)


def test_tokens_of_a_part_of_a_character_are_counted_with_the_rest_of_it():
    lines = [
        'data: {"content":"As","tokens":[1094],"stop":false,"tokens_predicted":1}',
        'data: {"content":"é","tokens":[261],"stop":false,"tokens_predicted":3}',
    ]
    stream = to_stream("x", DIALECTS[0], 7, 0.5, [(1.0 + i, line) for i, line in enumerate(lines)])
    assert (stream.num_tokens, stream.piece_lens) == (3, (1, 2))


def test_a_reply_without_tokens_is_refused():
    with pytest.raises(PeerFailed, match="x: an answer without tokens"):
        to_stream("x", DIALECTS[1], 7, 0.5, [(1.0, "data: [DONE]")])


@pytest.mark.parametrize("dialect", DIALECTS)
def test_requests_are_greedy_token_ids_with_a_natural_end(dialect: Dialect):
    body = dialect.body((5, 6), NATURAL)
    assert body["prompt"] == [5, 6]
    assert (body["temperature"], body["ignore_eos"], body["stream"]) == (0, False, True)
    assert 64 in (body.get("n_predict"), body.get("max_tokens"))


def test_llama_gets_a_slot_for_each_request_and_a_thread_for_each_core(setup: Setup):
    flags = llama_cpp.LlamaCpp().facts(setup)["flags"]
    assert "--threads 2 --threads-batch 2" in flags
    assert f"--parallel 32 --ctx-size {32 * 2304}" in flags
    assert "--no-cache-prompt" in flags


def test_vllm_is_bound_to_the_cores_and_computes_every_prompt(setup: Setup):
    facts = vllm_cpu.VllmCpu().facts(setup)
    assert facts["environment"] | {"VLLM_CPU_OMP_THREADS_BIND": "0-1", "OMP_NUM_THREADS": "2"} == facts["environment"]
    assert "--max-num-seqs 32" in facts["flags"]
    assert "--no-enable-prefix-caching" in facts["flags"]


def test_vllm_needs_neither_media_packages_nor_another_torch():
    requires = [
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        "torchvision",
        "fastapi[standard]>=0.1",
        'x; extra == "y"',
    ]
    assert vllm_cpu.to_requirements(requires) == ["fastapi[standard]>=0.1"]


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        (Mode.AR, {"target_device": "cpu:0-1", "draft_device": None, "max_batch_size": 32}),
        (Mode.MINEDRAFT, {"target_device": "cpu:1", "draft_device": "cpu:0", "max_batch_size": 16}),
    ],
)
def test_ours_has_as_many_seats_in_each_mode(mode: Mode, wanted: Mapping[str, Any], setup: Setup):
    settings = Ours(mode, Path("models/draft")).facts(setup)["settings"]
    assert {name: settings.get(name) for name in wanted} == wanted


def test_a_mode_with_drafts_says_that_it_needs_a_draft_model():
    assert Ours(Mode.AR, None).missing() is None
    assert "--draft" in (Ours(Mode.SD, None).missing() or "")


def test_batches_of_generate_are_padded_left_and_cut_at_their_end():
    assert left_pad([[5], [6, 7]]) == ([[0, 5], [6, 7]], [[0, 1], [1, 1]])
    assert cut_at([4, 2, 0, 0], frozenset({2})) == [4, 2]
    assert cut_at([4, 2, 1], frozenset()) == [4, 2, 1]
    short, long = to_streams([[5], [6, 7]], 0.5, [1.0, 2.0, 3.0], [[4, 2], [4, 4, 4]])
    assert (short.arrivals_s, long.arrivals_s) == ((1.0, 2.0), (1.0, 2.0, 3.0))


class TestEnvironment:
    """Installing is finished or not, and goes on where it was stopped."""

    @pytest.fixture
    def environment(self, tmp_path: Path) -> Environment:
        return Environment("engine", "1.0", size=1, minutes=3, root=tmp_path)

    def test_what_is_missing_is_named_with_the_command_that_installs_it(self, environment: Environment):
        assert environment.missing() == "not installed: scripts/bench/peers --install engine (about 3 minutes)"

    def test_it_is_installed_after_the_last_step_only(self, environment: Environment):
        def failing(each: Environment, say: object) -> dict[str, str]:
            each.run([sys.executable, "-c", "print('no such wheel'); raise SystemExit(1)"])
            return {}

        with pytest.raises(PeerFailed, match="no such wheel"):
            environment.install(failing, lambda line: None)
        assert environment.installed() is None

    def test_it_is_installed_once_for_each_version(self, environment: Environment):
        lines: list[str] = []
        for _ in range(2):
            environment.install(lambda each, say: {"package": "engine 1.0"}, lines.append)
        assert lines[-1] == f"engine 1.0 is installed in {environment.folder}"
        assert json.loads((environment.folder / "installed.json").read_text())["package"] == "engine 1.0"
        environment.version = "2.0"
        assert environment.missing() is not None

    def test_a_program_that_is_not_there_is_named(self, environment: Environment):
        environment.folder.mkdir(parents=True)
        with pytest.raises(PeerFailed, match="no-such-program: No such file"):
            environment.run(["no-such-program"])
