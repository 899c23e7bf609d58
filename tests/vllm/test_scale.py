"""vLLM at scale with the plugin: a target over two processes, and two engines with one drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.worker_process import WorkerProcess, worker
from tests.vllm.engines import engine, generate, greedy, plugin, scheduler, tokens

_TWO_RANKS = {"tensor_parallel_size": 2}


@pytest.fixture(scope="module")
def shared_drafter(draft_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    arguments = ("--model", str(draft_model), "--dtype", "float32", "--device", "cpu:0", "--num-blocks", "800")
    with worker("drafter", tmp_path_factory.mktemp("drafter"), *arguments, "--sessions", "2") as process:
        yield process


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A core for each of two ranks."""
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")


@pytest.mark.usefixtures("two_ranks")
def test_a_target_over_two_processes_answers_as_alone(target: Path, drafter: WorkerProcess, prompts: list[list[int]]):
    prompts = prompts[:6]
    with engine(target, **_TWO_RANKS) as llm:
        alone = tokens(generate(llm, prompts, greedy()))
    with engine(target, **_TWO_RANKS, **plugin(drafter.address)) as llm:
        assert tokens(generate(llm, prompts, greedy())) == alone
        state = scheduler(llm)._plugin
        assert state.link.info is not None, "one client of the drafter, in the engine core"
        assert sum(state.desk.accepted) > 0


def test_two_engines_share_a_drafter_and_neither_notices_the_other(
    target: Path, shared_drafter: WorkerProcess, prompts: list[list[int]]
):
    prompts = prompts[:6]
    with engine(target) as llm:
        alone = tokens(generate(llm, prompts, greedy()))
    shared = plugin(shared_drafter.address)
    with engine(target, **shared) as first, engine(target, **shared) as second:
        plugins = [scheduler(llm)._plugin for llm in (first, second)]
        assert _in_turn([first, second], prompts) == [alone, alone]
        infos = [each.link.info for each in plugins]
        assert all(info is not None and info.num_blocks == 400 for info in infos), "half of its blocks each"
        accepted = [sum(each.desk.accepted) for each in plugins]
        assert min(accepted) > 0
        plugins[1].close()  # the drafter's client only: the end of an engine would take vLLM's state in this process
        assert tokens(generate(first, prompts, greedy())) == alone
        assert sum(plugins[0].desk.accepted) > accepted[0], "it has drafts when the other one has gone"


def _in_turn(llms: Sequence[Any], prompts: Sequence[Sequence[int]]) -> list[list[list[list[int]]]]:
    """Return the answers of engines in this process, each of which makes a step in its turn."""
    engines = [llm.llm_engine for llm in llms]
    for each in engines:
        for index, prompt in enumerate(prompts):
            each.add_request(str(index), {"prompt_token_ids": list(prompt)}, greedy())
    answers: list[dict[str, Any]] = [{} for _ in engines]
    while any(each.has_unfinished_requests() for each in engines):
        for each, done in zip(engines, answers, strict=True):
            if each.has_unfinished_requests():
                done.update({output.request_id: output for output in each.step() if output.finished})
    return [tokens([done[str(index)] for index in range(len(prompts))]) for done in answers]
