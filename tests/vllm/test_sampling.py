"""Sampled answers of vLLM with the plugin follow the target's law, and several samples of a prompt are served."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.worker_process import WorkerProcess
from tests.vllm.engines import engine, generate, greedy, plugin, scheduler, tokens

_TEMPERATURE = 0.8
_TOP_P = 0.4  # not top_k, with which vLLM 0.32 fails on a CPU as soon as a step verifies no draft
_LENGTH = 4
_NUM_PROMPTS, _NUM_EACH = 200, 15


def _law(target: Path, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Return the probability of every answer of `_LENGTH` tokens, by the model itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    with torch.no_grad():
        for _ in range(_LENGTH):
            logits = model(torch.tensor([[*prompt, *answer] for answer in law])).logits[:, -1] / _TEMPERATURE
            probs, ids = logits.softmax(-1).sort(-1, descending=True)
            # The least likely tokens that make up 1 - top_p together are dropped.
            tails = probs.flip(-1).cumsum(-1).flip(-1)
            probs = torch.where(tails > 1 - _TOP_P, probs, 0.0)
            probs = probs / probs.sum(-1, keepdim=True)
            law = {
                (*answer, int(ids[row, rank])): share * float(probs[row, rank])
                for row, (answer, share) in enumerate(law.items())
                for rank in range(int((probs[row] > 0).sum()))
            }
    return law


def _check_law(answers: Sequence[Sequence[int]], law: Mapping[tuple[int, ...], float]) -> None:
    from scipy.stats import chisquare

    seen = Counter(tuple(answer[:_LENGTH]) for answer in answers)
    assert set(seen) <= set(law)
    likely = [answer for answer, share in law.items() if share * len(answers) >= 5]
    observed = [seen[answer] for answer in likely]
    expected = [law[answer] * len(answers) for answer in likely]
    observed.append(len(answers) - sum(observed))
    expected.append(len(answers) - sum(expected))
    assert expected[-1] >= 5
    total = sum(observed) / sum(expected)
    assert chisquare(observed, [value * total for value in expected]).pvalue > 1e-3


def _expand(output: Any, values: Any, ends: Any, replace_from: float, replace_to: float) -> None:
    """What vLLM's kernel of this name is to do."""
    import torch

    replaced = torch.where(values == replace_from, replace_to, values).to(output.dtype)
    output.copy_(replaced.repeat_interleave(ends.diff(prepend=ends.new_zeros(1)).long()))


_expand.register_warmup = lambda: None  # type: ignore[attr-defined]  # which vLLM calls of its kernels


@pytest.mark.parametrize("is_mended", [False, True], ids=["vLLM as it is", "its kernel mended"])
def test_sampled_answers_follow_the_targets_law(
    target: Path, drafter: WorkerProcess, monkeypatch: pytest.MonkeyPatch, is_mended: bool
):
    from vllm.v1.sample import rejection_sampler

    from minedraft.vllm.noop_proposer import samples_drafts

    if is_mended:
        monkeypatch.setattr(rejection_sampler, "_expand", _expand)
    prompt = [5, 99, 213, 7]
    params = greedy(temperature=_TEMPERATURE, top_p=_TOP_P, max_tokens=_LENGTH + 2, n=_NUM_EACH)
    with engine(target, **plugin(drafter.address)) as llm:
        answers = tokens(generate(llm, [prompt] * _NUM_PROMPTS, params))
        mixed = generate(llm, [prompt] * 8, [params, greedy()] * 4)
        desk = scheduler(llm)._plugin.desk
        is_right = samples_drafts()
        assert scheduler(llm)._samples_drafts is is_right
        alone = tokens(generate(llm, [prompt], greedy()))
    assert is_right or not is_mended
    assert [len(samples) for samples in answers] == [_NUM_EACH] * _NUM_PROMPTS
    _check_law([sample for samples in answers for sample in samples], _law(target, prompt))
    assert tokens(mixed)[1::2] == alone * 4
    if is_mended:  # both outcomes of a draft are in the samples
        assert 0 < desk.accepted[0] < desk.tried[0]
