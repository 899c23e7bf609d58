"""Two of vLLM's OpenAI servers, each with the plugin, share one drafter: answers, /metrics, the status route, and what
one notices of the other's end and of the drafter's. The tests run in their order: the last one ends a server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.worker_process import WorkerProcess, worker
from tests.vllm.engines import engine, generate, greedy, tokens
from tests.vllm.servers import Server, starting, wait_ready

_LONG = 180  # tokens of an answer in whose middle something ends


@pytest.fixture(scope="module")
def start_drafter(draft_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], WorkerProcess]]:
    """Starts a drafter with a session for each server, always at the same address."""
    folder = tmp_path_factory.mktemp("shared")
    arguments = ("--model", str(draft_model), "--dtype", "float32", "--device", "cpu:0", "--num-blocks", "800")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(worker("drafter", folder, *arguments, "--sessions", "2"))


@pytest.fixture(scope="module")
def alone(target: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The answers of vLLM alone."""
    with engine(target) as llm:
        return [sample for (sample,) in tokens(generate(llm, prompts[:6], greedy(max_tokens=_LONG)))]


@pytest.fixture(scope="module")
def drafter(start_drafter: Callable[[], WorkerProcess]) -> WorkerProcess:
    return start_drafter()


@pytest.fixture(scope="module")
def servers(
    target: Path, drafter: WorkerProcess, alone: list[list[int]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    assert alone, "made before, when the cores are free"
    with ExitStack() as stack:
        folders = [tmp_path_factory.mktemp("server") for _ in range(2)]
        started = [stack.enter_context(starting(target, drafter.address, folder)) for folder in folders]
        for server in started:
            wait_ready(server)
        yield started


def test_a_server_answers_as_vllm_alone_and_shows_the_plugins_numbers(
    servers: list[Server], prompts: list[list[int]], alone: list[list[int]]
):
    server = servers[0]
    assert server.complete(prompts[:3]) == [answer[:24] for answer in alone[:3]]
    status = server.until(lambda now: sum(now["tried"]), "drafting")
    assert sum(status["accepted"]) > 0
    assert status["drafter_up"] == 1
    metrics = server.get("/metrics")
    assert 'minedraft_vllm_accepted_drafts_total{engine="0",position="0"}' in metrics
    for name in ("overlap_efficiency", "exposed_seconds_total", "blocked_steps_total", "steps_total"):
        assert f'minedraft_vllm_{name}{{engine="0"}}' in metrics
    assert "vllm:spec_decode_num_accepted_tokens_total" in metrics


def test_both_servers_have_drafts_at_the_same_time_and_answer_as_vllm_alone(
    servers: list[Server], prompts: list[list[int]], alone: list[list[int]]
):
    before = [server.status() for server in servers]
    asked = [prompts[:6], prompts[5::-1]]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(Server.complete, servers, asked, [_LONG] * 2))
    assert answers == [alone, alone[::-1]]
    for server, then in zip(servers, before, strict=True):
        server.until(lambda now, then=then: sum(now["accepted"]) > sum(then["accepted"]), "having drafts")


def test_a_drafter_killed_in_the_middle_of_an_answer_costs_no_server_an_error_and_both_take_the_next_one(
    servers: list[Server],
    drafter: WorkerProcess,
    start_drafter: Callable[[], WorkerProcess],
    prompts: list[list[int]],
    alone: list[list[int]],
):
    streams = [server.stream(prompts[index], _LONG) for index, server in enumerate(servers)]
    answers = [next(stream) for stream in streams]
    drafter.kill()
    drafter.wait()
    for answer, stream in zip(answers, streams, strict=True):
        for more in stream:
            answer += more
    assert answers == alone[:2]
    for server in servers:
        server.until(lambda now: not now["drafter_up"], "without a drafter")
        assert server.complete(prompts[:6], _LONG) == alone
    start_drafter()
    for server in servers:
        then = server.until(lambda now: now["drafter_up"], "with a drafter again")
        assert server.complete(prompts[:6], _LONG) == alone
        server.until(lambda now, then=then: sum(now["accepted"]) > sum(then["accepted"]), "having drafts again")


def test_a_server_killed_in_the_middle_of_an_answer_leaves_the_other_one_its_drafts(
    servers: list[Server], prompts: list[list[int]], alone: list[list[int]]
):
    killed, other = servers
    streams = [server.stream(prompts[0], _LONG) for server in servers]
    _, answer = [next(stream) for stream in streams]
    then = other.status()
    killed.kill()
    for more in streams[1]:
        answer += more
    assert answer == alone[0]
    assert other.complete(prompts[:6], _LONG) == alone
    status = other.until(lambda now: sum(now["accepted"]) > sum(then["accepted"]), "having drafts")
    assert status["drafter_up"] == 1
