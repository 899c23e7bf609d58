"""Answers with a grammar: what the target alone would say if only the allowed tokens existed, however it is drafted."""

from __future__ import annotations

import asyncio
import json
import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llguidance import LLMatcher, LLTokenizer
from transformers import AutoModelForCausalLM

from minedraft.core.limits import SchedulerLimits
from minedraft.core.request import NewRequest
from minedraft.engine.pipeline import Pipeline
from minedraft.sampling_params import SamplingParams
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import FinishReason, Mode
from minedraft_workers.sampling.guides import Guides
from scripts.lib.sink import Collector
from tests.support.in_process import InProcessDrafter, InProcessVerifier, load_executor
from tests.support.tiny_models import add_noise, make_tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

EOS_ID = 2
NUM_NEW = 60
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["cat", "dog"]},
        "age": {"type": "integer"},
    },
    "required": ["name", "kind", "age"],
    "additionalProperties": False,
}
GRAMMARS = [
    {"json_schema": json.dumps(SCHEMA)},
    {"regex": r"(the |a )?(red|green) [a-z]{2,9}\."},
    {"lark": "start: /[0-9]+/"},
]
LONG_KEYS = {
    "json_schema": json.dumps(
        {
            "type": "object",
            "properties": {"identification_number": {"enum": [3, 4]}, "preferred_address": {"enum": ["home", "work"]}},
            "required": ["identification_number", "preferred_address"],
            "additionalProperties": False,
            "x-guidance": {"whitespace_flexible": False},
        }
    )
}
MAX_MORE_ROUNDS = 3  # that of the prompt, and one for each run of forced tokens that is longer than a verdict
PROMPTS = [(5, 9, 100), (7,), tuple(range(30, 60))]


@pytest.fixture(scope="module")
def target_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("target") / "model", seed=1)


@pytest.fixture(scope="module")
def draft_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_noise(make_tiny_model(tmp_path_factory.mktemp("draft") / "model", seed=1), 0.05)


@cache
def free_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@cache
def _reference(folder: Path, prompt: tuple[int, ...], kind: str, text: str) -> list[int]:
    model = free_model(folder)
    tokenizer = LLTokenizer(str(folder / "tokenizer.json"), eos_token=EOS_ID)
    matcher = LLMatcher(tokenizer, getattr(LLMatcher, f"grammar_from_{kind}")(text))
    ids = list(prompt)
    for _ in range(NUM_NEW):
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        bits = np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8), bitorder="little")[: len(logits)]
        allowed = np.pad(bits, (0, len(logits) - len(bits))).astype(bool)
        logits[torch.from_numpy(~allowed)] = -math.inf
        ids.append(int(logits.argmax()))
        if ids[-1] == EOS_ID:
            break
        assert matcher.consume_token(ids[-1])
    return ids[len(prompt) :]


def count_choices(folder: Path, tokens: list[int], grammar: dict[str, str]) -> int:
    """Return at how many places of an answer the grammar allows more than one token."""
    [(kind, text)] = grammar.items()
    tokenizer = LLTokenizer(str(folder / "tokenizer.json"), eos_token=EOS_ID)
    matcher = LLMatcher(tokenizer, getattr(LLMatcher, f"grammar_from_{kind}")(text))
    count = 0
    for token in tokens:
        count += np.unpackbits(np.frombuffer(matcher.compute_bitmask(), np.uint8)).sum() > 1
        assert token == EOS_ID or matcher.consume_token(token)
    return int(count)


def reference(folder: Path, prompt: tuple[int, ...], grammar: dict[str, str]) -> list[int]:
    """Return the greedy answer by the book: one token at a time, the best of the allowed ones, with a parser of its
    own."""
    [(kind, text)] = grammar.items()
    return _reference(folder, prompt, kind, text)


async def answers(
    target: Path,
    draft: Path | None,
    mode: Mode,
    requests: list[tuple[tuple[int, ...], SamplingParams]],
    *,
    ngram: bool = False,
    num_blocks: int = 128,
    as_on_gpu: bool = False,
) -> tuple[list[Collector], float]:
    """Return the answers, and the share of the drafts that was accepted."""
    guides = Guides(target)
    verifier = InProcessVerifier(load_executor(target, num_blocks=num_blocks), guides=guides)
    drafter = None
    if draft is not None or ngram:
        model = None if draft is None else load_executor(draft, num_blocks=num_blocks)
        drafter = InProcessDrafter(model, verifier, ngram=ngram, guides=guides, as_on_gpu=as_on_gpu)
    limits = SchedulerLimits(mode, 3, 3, prefill_chunk=16, max_model_len=256)
    sinks = [Collector() for _ in requests]
    async with Pipeline(limits, verifier, drafter) as pipeline:
        for (prompt, params), sink in zip(requests, sinks, strict=True):
            pipeline.submit(NewRequest(prompt, params, seed=params.seed or 11, stop_ids=(EOS_ID,)), sink)
        await asyncio.gather(*(sink.done.wait() for sink in sinks))
    assert all(sink.error is None for sink in sinks), [sink.error for sink in sinks]
    usages = [sink.usage for sink in sinks if sink.usage is not None]
    return sinks, sum(u.accepted_tokens for u in usages) / max(sum(u.drafted_tokens for u in usages), 1)


WAYS = [(Mode.AR, False), (Mode.SD, False), (Mode.MINEDRAFT, False), (Mode.PEARL, False), (Mode.SD, True)]


@pytest.mark.parametrize(("mode", "ngram"), WAYS)
async def test_greedy_answers_are_those_of_the_allowed_tokens(
    target_dir: Path, draft_dir: Path, mode: Mode, ngram: bool
) -> None:
    cases = [(prompt, grammar) for prompt in PROMPTS for grammar in GRAMMARS]
    requests = [(prompt, SamplingParams(max_new_tokens=NUM_NEW, **grammar)) for prompt, grammar in cases]
    free = [(prompt, SamplingParams(max_new_tokens=20, ignore_eos=True)) for prompt in PROMPTS]
    draft = None if ngram or mode is Mode.AR else draft_dir
    sinks, _ = await answers(target_dir, draft, mode, requests + free, ngram=ngram)
    for sink, (prompt, grammar) in zip(sinks, cases, strict=False):
        assert sink.tokens == reference(target_dir, prompt, grammar), (prompt, grammar)
    model = free_model(target_dir)
    for sink, (prompt, _) in zip(sinks[len(cases) :], free, strict=True):  # neighbours are as free as before
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=20, do_sample=False, eos_token_id=None)
        assert sink.tokens == whole[0, len(prompt) :].tolist()


async def test_seeded_answers_do_not_depend_on_the_way(target_dir: Path, draft_dir: Path) -> None:
    params = [SamplingParams(temperature=1.2, seed=s, max_new_tokens=NUM_NEW, **GRAMMARS[s % 3]) for s in range(9)]
    requests = [(PROMPTS[i % 3], each) for i, each in enumerate(params)]
    tokens = {}
    for mode, ngram in WAYS:
        draft = None if ngram or mode is Mode.AR else draft_dir
        sinks, _ = await answers(target_dir, draft, mode, requests, ngram=ngram)
        tokens[mode, ngram] = [sink.tokens for sink in sinks]
    assert all(found == tokens[Mode.AR, False] for found in tokens.values())
    sinks, _ = await answers(target_dir, draft_dir, Mode.PEARL, requests, as_on_gpu=True)
    assert [sink.tokens for sink in sinks] == tokens[Mode.AR, False], "drafts whose tokens stay on the device"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
async def test_answers_that_end_are_what_was_asked_for(target_dir: Path, draft_dir: Path, temperature: float) -> None:
    tokenizer = Tokenizer.load(target_dir)
    requests = [
        (prompt, SamplingParams(temperature=temperature, max_new_tokens=200, **grammar))
        for prompt in PROMPTS for grammar in GRAMMARS[:2]
    ]  # fmt: skip
    sinks, _ = await answers(target_dir, draft_dir, Mode.MINEDRAFT, requests)
    texts = [tokenizer.decode(sink.tokens) for sink in sinks if sink.reason is FinishReason.STOP]
    assert len(texts) >= 4
    for text in texts:
        if text.startswith("{"):
            made = json.loads(text)
            assert set(made) == {"name", "kind", "age"}
            assert made["kind"] in ("cat", "dog")
            assert isinstance(made["age"], int)
        else:
            assert re.fullmatch(GRAMMARS[1]["regex"], text), text


async def test_drafts_are_made_of_allowed_tokens(target_dir: Path) -> None:
    """A drafter that is the target's twin would be refused at every forced token if it did not know the grammar."""
    requests = [(prompt, SamplingParams(max_new_tokens=40, **GRAMMARS[0])) for prompt in PROMPTS]
    _, rate = await answers(target_dir, target_dir, Mode.SD, requests)
    assert rate > 0.95


@pytest.mark.parametrize(("mode", "ngram"), WAYS)
async def test_forced_tokens_take_no_forward(target_dir: Path, draft_dir: Path, mode: Mode, ngram: bool) -> None:
    """Without drafts, a forward is made for each choice and for no other token, up to the end of the text."""
    requests = [(prompt, SamplingParams(max_new_tokens=NUM_NEW, **LONG_KEYS)) for prompt in PROMPTS]
    draft = None if ngram or mode is Mode.AR else draft_dir
    sinks, _ = await answers(target_dir, draft, mode, requests, ngram=ngram)
    for sink, (prompt, _) in zip(sinks, requests, strict=True):
        assert sink.tokens == reference(target_dir, prompt, LONG_KEYS)
        assert sink.usage is not None
        num_choices = count_choices(target_dir, sink.tokens, LONG_KEYS)
        assert sink.usage.forced_tokens > 20
        assert sink.usage.rounds + sink.usage.accepted_tokens + sink.usage.forced_tokens == len(sink.tokens)
        assert sink.usage.rounds <= num_choices + MAX_MORE_ROUNDS
        assert mode is not Mode.AR or sink.usage.rounds >= num_choices


async def test_requests_that_are_preempted_go_on_with_their_grammar(target_dir: Path, draft_dir: Path) -> None:
    requests = [(prompt, SamplingParams(max_new_tokens=40, **GRAMMARS[0])) for prompt in PROMPTS * 2]
    sinks, _ = await answers(target_dir, draft_dir, Mode.MINEDRAFT, requests, num_blocks=24)
    for sink, (prompt, _) in zip(sinks, requests, strict=True):
        assert sink.tokens == reference(target_dir, prompt, GRAMMARS[0])[:40]


async def test_log_probabilities_are_those_of_the_free_target(target_dir: Path) -> None:
    """As with every other restriction: they say what the model itself thinks of the token."""
    params = SamplingParams(max_new_tokens=4, logprobs=0, **GRAMMARS[0])
    [sink], _ = await answers(target_dir, None, Mode.AR, [(PROMPTS[0], params)])
    model = free_model(target_dir)
    with torch.no_grad():
        logits = model(torch.tensor([[*PROMPTS[0], *sink.tokens]])).logits[0]
    for index, (token, entry) in enumerate(zip(sink.tokens, sink.logprobs, strict=True)):
        row = logits[len(PROMPTS[0]) - 1 + index].log_softmax(-1)
        assert entry.logprob == pytest.approx(float(row[token]), abs=1e-4)
