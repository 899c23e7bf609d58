"""Requests that end early, answers with a grammar, and drafters that go, come back, or do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import WorkerProcess, worker
from tests.vllm.engines import engine, generate, greedy, plugin, scheduler, tokens

_SCHEMA = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a"]}


def _serve(llm: Any, prompts: list[list[int]], params: Any, aborted: dict[int, int]) -> dict[str, list[int]]:
    """Step the engine until all requests have ended. aborted: the step after which a request is aborted."""
    core = llm.llm_engine
    for index, prompt in enumerate(prompts):
        core.add_request(str(index), {"prompt_token_ids": prompt}, params)
    answers: dict[str, list[int]] = {}
    for step in range(1000):
        for answer in core.step():
            answers[answer.request_id] = list(answer.outputs[0].token_ids)
        core.abort_request([str(index) for index, after in aborted.items() if after == step])
        if not core.has_unfinished_requests():
            return answers
    raise AssertionError("requests do not end")


def test_aborts_leave_the_others_answers_as_they_were(target: Path, drafter: WorkerProcess, prompts: list[list[int]]):
    params = greedy(max_tokens=40)
    with engine(target) as llm:
        alone = [sample for (sample,) in tokens(generate(llm, prompts, params))]
    aborted = {0: 3, 3: 8, 5: 9, 6: 9, 10: 14}
    with engine(target, **plugin(drafter.address)) as llm:
        answers = _serve(llm, prompts, params, aborted)
        state = scheduler(llm)
        assert {index: answers[str(index)] for index in range(17) if index not in aborted} == {
            index: alone[index] for index in range(17) if index not in aborted
        }
        for index in aborted:
            cut = answers.get(str(index), [])
            assert cut == alone[index][: len(cut)]
        generate(llm, prompts[:1], greedy(max_tokens=2))  # reports that all of them have ended
        assert len(state._plugin.alternation._committed) <= 1


def test_answers_with_a_grammar_are_those_of_vllm_alone(target: Path, drafter: WorkerProcess, prompts: list[list[int]]):
    from vllm.sampling_params import StructuredOutputsParams

    params = [
        greedy(max_tokens=40, ignore_eos=False, structured_outputs=StructuredOutputsParams(json=_SCHEMA)),
        greedy(max_tokens=40),
    ]
    mixed = [params[index % 2] for index in range(8)]
    with engine(target) as llm:
        alone = generate(llm, prompts[:8], mixed)
        free = tokens(generate(llm, prompts[:8:2], params[1]))
    with engine(target, **plugin(drafter.address)) as llm:
        answers = generate(llm, prompts[:8], mixed)
        assert sum(scheduler(llm)._plugin.desk.accepted) > 0
    assert tokens(answers) == tokens(alone)
    assert tokens(answers[::2]) != free


def test_a_killed_drafter_costs_drafts_only_and_drafting_resumes_with_the_next_one(
    target: Path, draft_model: Path, prompts: list[list[int]], tmp_path: Path
):
    params = greedy(max_tokens=60)
    arguments = ("--model", str(draft_model), "--dtype", "float32", "--device", "cpu:0")
    with engine(target) as llm:
        alone = tokens(generate(llm, prompts, params))
    with worker("drafter", tmp_path, *arguments) as first, engine(target, **plugin(first.address)) as llm:
        desk, link = scheduler(llm)._plugin.desk, scheduler(llm)._plugin.link
        core, answers, step = llm.llm_engine, {}, 0
        for index, prompt in enumerate(prompts):
            core.add_request(str(index), {"prompt_token_ids": prompt}, params)
        while core.has_unfinished_requests():
            for answer in core.step():
                answers[answer.request_id] = list(answer.outputs[0].token_ids)
            step += 1
            if step == 8:
                assert sum(desk.tried) > 0
                first.kill()
                first.wait()
        assert [[answers[str(index)]] for index in range(len(prompts))] == alone
        assert link.info is None
        with worker("drafter", tmp_path, *arguments):
            tried, rounds = sum(desk.tried), 0
            while sum(desk.tried) == tried and rounds < 500:
                assert tokens(generate(llm, prompts[:4], params)) == alone[:4]
                rounds += 1
            assert link.info is not None


def test_a_drafter_with_another_vocabulary_is_refused_at_the_start_with_both_numbers(target: Path, tmp_path: Path):
    from minedraft.errors import ModelError

    other = make_tiny_model(tmp_path / "other", vocab_size=300)
    with (
        worker("drafter", tmp_path, "--model", str(other), "--device", "cpu:0") as process,
        pytest.raises(ModelError, match=r"vocabulary of 300 ids .* is not the target's of 320"),
        engine(target, **plugin(process.address)),
    ):
        pass
