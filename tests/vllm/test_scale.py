"""vLLM at scale with the plugin: a target over two processes, and two engines with one drafter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from minedraft.models.catalogue import find_pair
from tests.support.worker_process import WorkerProcess, worker
from tests.vllm.engines import engine, generate, greedy, plugin, scheduler, tokens

_TWO_RANKS = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
_TEXTS = (
    "def fibonacci(n):",
    "The capital of France is",
    "SELECT name FROM users WHERE",
    "for (int i = 0; i < n; i++) {",
    "import numpy as np\n\ndef mean(",
    "# Quicksort in Python\n",
)


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


@pytest.fixture(scope="module")
def qwen() -> Path:
    """A real model whose heads two ranks can share, if the cache has it: nothing here fetches it."""
    pair = find_pair("qwen")
    if pair is None or pair.draft is None:
        pytest.skip("needs the Qwen pair in the cache: minedraft fetch qwen")
    return pair.draft


@pytest.mark.usefixtures("two_ranks")
def test_a_real_target_over_two_processes_answers_as_alone(qwen: Path, tmp_path: Path):
    from transformers import AutoTokenizer

    encode = AutoTokenizer.from_pretrained(qwen).encode
    prompts = [encode(text) for text in _TEXTS]
    params = greedy(max_tokens=16)
    arguments = ("--model", str(qwen), "--dtype", "bfloat16", "--device", "cpu:0", "--num-blocks", "200")
    with engine(qwen, **_TWO_RANKS) as llm:
        alone = tokens(generate(llm, prompts, params))
    with (
        worker("drafter", tmp_path, *arguments) as process,
        engine(qwen, **_TWO_RANKS, **plugin(process.address)) as llm,
    ):
        assert tokens(generate(llm, prompts, params)) == alone
        desk = scheduler(llm)._plugin.desk
        assert sum(desk.accepted) > 0.5 * sum(desk.tried) > 0, "the drafter is the target, but for its rounding"


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
