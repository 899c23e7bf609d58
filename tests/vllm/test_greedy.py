"""Greedy answers of vLLM with the plugin are those of vLLM alone, token by token, in float32."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.worker_process import WorkerProcess
from tests.vllm.engines import cut_prompts, engine, generate, greedy, metric, plugin, scheduler, tokens

_TIGHT = {"num_gpu_blocks_override": 14, "max_num_batched_tokens": 128, "max_num_seqs": 16}


def _uneven(prompts: Sequence[Sequence[int]]) -> list[Any]:
    return [greedy(max_tokens=4 + 5 * index) for index in range(len(prompts))]


def _ways(llm: Any, prompts: list[list[int]]) -> dict[str, Any]:
    """Return the answers to everything that is asked in more than one way."""
    shared = [prompts[-1][:64] + prompt[:3] for prompt in prompts]
    logprobs = generate(llm, prompts[:4], greedy(logprobs=3))
    stopped = generate(llm, prompts, greedy(stop=["a", "th"], ignore_eos=False, max_tokens=40))
    return {
        "uneven": tokens(generate(llm, prompts, _uneven(prompts))),
        "alone": tokens(generate(llm, prompts[3:4], greedy(max_tokens=60))),
        "shared prefix": [tokens(generate(llm, shared, greedy())) for _ in range(2)],
        "penalties": tokens(generate(llm, prompts[:6], greedy(repetition_penalty=1.3, frequency_penalty=0.4))),
        "stop strings": [(answer.outputs[0].text, answer.outputs[0].finish_reason) for answer in stopped],
        "logprobs": tokens(logprobs),
        "logprob values": [
            entry.logprob
            for answer in logprobs
            for position in answer.outputs[0].logprobs
            for _, entry in sorted(position.items())
        ],
    }


@pytest.fixture(scope="module")
def alone(target: Path, prompts: list[list[int]]) -> dict[str, Any]:
    with engine(target) as llm:
        return _ways(llm, prompts)


@pytest.mark.parametrize(
    "settings", [{}, {"groups": 1}, {"draft_len": "auto"}], ids=["two groups", "one group", "automatic length"]
)
def test_answers_are_those_of_vllm_alone(
    target: Path, drafter: WorkerProcess, prompts: list[list[int]], alone: dict[str, Any], settings: dict[str, Any]
):
    with engine(target, **plugin(drafter.address, **settings)) as llm:
        ways = _ways(llm, prompts)
        plugin_state = scheduler(llm)._plugin
        assert metric(llm, "vllm:prefix_cache_hits") > 0
    assert ways.pop("logprob values") == pytest.approx(alone["logprob values"], abs=1e-3)
    assert ways == {name: answer for name, answer in alone.items() if name != "logprob values"}
    assert sum(plugin_state.desk.accepted) > 0
    if not settings:
        assert plugin_state.alternation.counts.num_moves > 0


def test_answers_are_the_same_with_preemption_and_prompts_in_chunks(
    target: Path, drafter: WorkerProcess, prompts: list[list[int]]
):
    params = [greedy(max_tokens=100) for _ in prompts]
    with engine(target, **_TIGHT) as llm:
        alone = tokens(generate(llm, prompts, params))
    with engine(target, **_TIGHT, **plugin(drafter.address)) as llm:
        cut = cut_prompts(llm)
        assert tokens(generate(llm, prompts, params)) == alone
        assert cut
        assert metric(llm, "vllm:num_preemptions") > 0
        assert metric(llm, "vllm:spec_decode_num_accepted_tokens") > 0
