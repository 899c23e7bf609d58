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
_TOP_P, _TOP_K = 0.4, 3
_LENGTH = 4
_NUM_PROMPTS, _NUM_EACH = 60, 15
_SEEDS = range(5)
_LEAST_P = 1e-5  # so seldom does a right sampler fail; a wrong temperature is far below it


def _law(target: Path, prompt: list[int], top_p: float = 1.0, top_k: int = 10**6) -> dict[tuple[int, ...], float]:
    """Return the probability of every answer of `_LENGTH` tokens, by the model itself."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    law: dict[tuple[int, ...], float] = {(): 1.0}
    with torch.no_grad():
        for _ in range(_LENGTH):
            logits = model(torch.tensor([[*prompt, *answer] for answer in law])).logits[:, -1] / _TEMPERATURE
            probs, ids = logits.softmax(-1).sort(-1, descending=True)
            probs[:, top_k:] = 0.0
            # The least likely tokens that make up 1 - top_p together are dropped.
            tails = probs.flip(-1).cumsum(-1).flip(-1)
            probs = torch.where(tails > 1 - top_p, probs, 0.0)
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
    assert chisquare(observed, [value * total for value in expected]).pvalue > _LEAST_P


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
    import torch
    from vllm.v1.sample import rejection_sampler

    from minedraft.vllm.noop_proposer import samples_drafts

    if is_mended:
        monkeypatch.setattr(rejection_sampler, "_expand", _expand)
    prompt = [5, 99, 213, 7]
    few = {"temperature": _TEMPERATURE, "max_tokens": _LENGTH + 2, "n": _NUM_EACH}
    params = greedy(top_p=_TOP_P, **few)
    with engine(target, **plugin(drafter.address)) as llm:
        samples = []
        for seed in _SEEDS:
            torch.manual_seed(seed)
            samples.append(_samples(llm, prompt, params))
        top_k = _samples(llm, prompt, greedy(top_k=_TOP_K, **few))
        mixed = generate(llm, [prompt] * 8, [params, greedy()] * 4)
        desk = scheduler(llm)._plugin.desk
        is_right = samples_drafts()
        assert scheduler(llm)._samples_drafts is is_right
        alone = tokens(generate(llm, [prompt], greedy()))
    assert is_right or not is_mended
    law = _law(target, prompt, top_p=_TOP_P)
    for answers in (*samples, [answer for each in samples for answer in each]):
        _check_law(answers, law)
    assert samples[0] != samples[1]
    _check_law(top_k, _law(target, prompt, top_k=_TOP_K))
    assert tokens(mixed)[1::2] == alone * 4
    if is_mended:  # both outcomes of a draft are in the samples
        assert 0 < desk.accepted[0] < desk.tried[0]


def _samples(llm: Any, prompt: list[int], params: Any) -> list[list[int]]:
    """Return `_NUM_EACH` samples of each of `_NUM_PROMPTS` requests."""
    answers = tokens(generate(llm, [prompt] * _NUM_PROMPTS, params))
    assert [len(each) for each in answers] == [_NUM_EACH] * _NUM_PROMPTS
    return [sample for each in answers for sample in each]
