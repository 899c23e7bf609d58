"""What the answers must be: greedy tokens from transformers' own `generate`, computed once and cut to fit.

Requests draw from a pool of prompts. A continuation ends before the first position where the two most
probable tokens are so close that float32 rounding decides between them: there is no truth about those.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor

from minedraft.types import FinishReason
from tests.stress.models import CONTEXT, EOS_ID, Pair

_NUM_NEW = 96
_NUM_ADJUSTED = 16
_NUM_SEEDED = 12
_NUM_CHECKED = 4  # continuations compared with `generate` of one prompt alone
_MIN_GAP = 1e-3  # between logits that spread over about 2; float32 sums differ by about 1e-5
_LENGTHS = (
    1, 1, 2, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 20, 31, 32, 33, 40, 47, 60, 64, 65, 100, 128, 150,
    180, 194, 197, 200, 203, 206, 209, 211, 230, 244, 255, 256, 257, 270, 301, 350, 400, 430, 480, 496, 500, 511,
)  # fmt: skip
_WORDS = ("the small model drafts and the large one checks what was drafted while", "number", "sum", "2 + 2?", "é🎉")


@dataclass(frozen=True, slots=True)
class PoolPrompt:
    """A prompt as a client gives it (text, ids or messages), and its token ids."""

    given: str | list[int] | list[dict[str, str]]
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A prompt whose greedy continuation is known. `params` are the sampling parameters that change it;
    `tokens` goes on after EOS and stop ids."""

    prompt: PoolPrompt
    params: Mapping[str, Any]
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Seeded:
    """Sampling with a fixed seed: the tokens must be the same whenever it is asked for."""

    number: int
    prompt: PoolPrompt
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Expected:
    """A whole answer."""

    tokens: tuple[int, ...]
    reason: FinishReason
    text: str


class Truth:
    """The pool of one target.

    Attributes:
        plain: every prompt of the pool, without parameters. adjusted: some, with penalties, bias or a
            minimum length. seeded: some, sampled.
    """

    def __init__(self, pair: Pair, seed: int) -> None:
        torch.set_num_threads(1)
        rng = random.Random(f"{seed} pool")
        self.vocab_size = pair.vocab_size
        self._tokenizer = AutoTokenizer.from_pretrained(pair.target)
        prompts = [*_token_prompts(rng, pair.vocab_size), *self._text_prompts(rng), *self._chat_prompts(rng)]
        adjusted = [(rng.choice(prompts), _adjusting(rng, pair.vocab_size)) for _ in range(_NUM_ADJUSTED)]
        known = _continue(pair, [*((prompt, {}) for prompt in prompts), *adjusted])
        self.plain = [entry for entry in known if not entry.params and entry.tokens]
        self.adjusted = [entry for entry in known if entry.params and entry.tokens]
        self.seeded = [
            Seeded(
                i, rng.choice(prompts[: len(_LENGTHS)]), sampling(rng, pair.vocab_size) | {"seed": rng.getrandbits(63)}
            )
            for i in range(_NUM_SEEDED)
        ]
        self._seen: dict[tuple[int, int], tuple[int, ...]] = {}

    def expect(self, known: Known, params: Mapping[str, Any]) -> Expected:
        """The whole greedy answer to `known.prompt` under `params` (which include `known.params`)."""
        stop_ids = {*params.get("stop_token_ids", ()), *(() if params.get("ignore_eos") else (EOS_ID,))}
        tokens = known.tokens[: params["max_new_tokens"]]
        assert len(tokens) == params["max_new_tokens"], "requests ask for no more than is known"
        end = next((i for i, token in enumerate(tokens, start=1) if token in stop_ids), None)
        reason = FinishReason.LENGTH if end is None else FinishReason.STOP
        tokens = tokens[:end]
        if stops := params.get("stop", ()):
            for num_tokens in range(1, len(tokens) + 1):
                text = self.text(tokens[:num_tokens])
                if found := [text.index(stop) for stop in stops if stop in text]:
                    return Expected(tokens[:num_tokens], FinishReason.STOP, text[: min(found)])
        return Expected(tokens, reason, self.text(tokens))

    def text(self, token_ids: Sequence[int]) -> str:
        """The tokens' text, by transformers; at its edges there can be parts of characters."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=True))

    def check_seeded(self, number: int, index: int, tokens: tuple[int, ...], *, has_stopped: bool) -> str | None:
        """Compare sample `index` of `seeded[number]` with what it was before; says how they differ."""
        before = self._seen.setdefault((number, index), tokens)
        num_common = min(len(before), len(tokens))
        if before[:num_common] != tokens[:num_common] or (has_stopped and len(tokens) < len(before)):
            return f"sample {index} of a seeded request was {before}"
        self._seen[number, index] = max(before, tokens, key=len)
        return None

    def _text_prompts(self, rng: random.Random) -> list[PoolPrompt]:
        texts = [" ".join(rng.choices(_WORDS, k=rng.randint(1, 6))) for _ in range(6)]
        return [PoolPrompt(text, tuple(self._tokenizer(text).input_ids)) for text in texts]

    def _chat_prompts(self, rng: random.Random) -> list[PoolPrompt]:
        prompts = []
        for num_turns in (1, 1, 3, 5):
            roles = ("user", "assistant")
            chat = [{"role": roles[i % 2], "content": rng.choice(_WORDS)} for i in range(num_turns)]
            text = self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            prompts.append(PoolPrompt(chat, tuple(self._tokenizer(text, add_special_tokens=False).input_ids)))
        return prompts


def sampling(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    """Parameters of a request that samples; each is there in some of them."""
    params: dict[str, Any] = {"temperature": rng.choice((0.3, 0.8, 1.0, 1.5))}
    choices: dict[str, tuple[Any, ...]] = {
        "top_k": (2, 5, 50),
        "top_p": (0.3, 0.9, 0.99),
        "min_p": (0.02, 0.2),
        "repetition_penalty": (0.9, 1.2),
        "presence_penalty": (-0.5, 1.0),
        "frequency_penalty": (-0.5, 1.0),
        "logit_bias": ({rng.randrange(vocab_size): rng.uniform(-5, 5) for _ in range(3)},),
    }
    return params | {name: rng.choice(values) for name, values in choices.items() if rng.random() < 0.25}


def _token_prompts(rng: random.Random, vocab_size: int) -> list[PoolPrompt]:
    prompts = []
    for length in _LENGTHS:
        # Some repeat themselves, for drafts from the prompt's own n-grams.
        period = rng.randint(2, 7) if rng.random() < 0.25 else length
        part = [rng.randrange(3, vocab_size) for _ in range(period)]
        token_ids = [part[i % period] for i in range(length)]
        prompts.append(PoolPrompt(token_ids, tuple(token_ids)))
    return prompts


def _adjusting(rng: random.Random, vocab_size: int) -> dict[str, Any]:
    choices: dict[str, Any] = {
        "repetition_penalty": rng.uniform(0.8, 1.5),
        "presence_penalty": rng.uniform(-1, 1),
        "frequency_penalty": rng.uniform(-1, 1),
        "logit_bias": {rng.randrange(vocab_size): rng.uniform(-5, 5) for _ in range(6)},
        "min_new_tokens": rng.randint(1, 20),
    }
    params = {name: choices[name] for name in rng.sample(list(choices), rng.randint(1, 3))}
    if rng.random() < 0.5:
        # Few tokens that contend: what comes depends on what was said, and drafted, just before.
        params["logit_bias"] = {rng.randrange(3, vocab_size): rng.uniform(6, 8) for _ in range(4)}
        params["frequency_penalty"] = rng.uniform(0.3, 1.5)
    if "min_new_tokens" in params:
        # Some that would come often, were it not for the minimum.
        likely = [token_id for token_id, bias in params.get("logit_bias", {}).items() if bias > 0]
        params["stop_token_ids"] = (*likely[:2], *rng.sample(range(3, vocab_size), 10))
    return params


class _Adjust(LogitsProcessor):  # type: ignore[misc]  # mypy does not follow transformers
    """Penalties, bias and minimum length, in the order that the product documents."""

    def __init__(self, asked: Sequence[tuple[PoolPrompt, Mapping[str, Any]]], width: int) -> None:
        self._asked = asked
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores.clone()
        for row, (prompt, params) in enumerate(self._asked):
            if params:
                self._adjust(scores[row], prompt.token_ids, input_ids[row, self._width :], params)
        return scores

    def _adjust(
        self, row: torch.Tensor, prompt: Sequence[int], output: torch.Tensor, params: Mapping[str, Any]
    ) -> None:
        seen = torch.tensor(sorted({*prompt, *output.tolist()}))
        penalty = params.get("repetition_penalty", 1.0)
        row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        times = torch.bincount(output, minlength=len(row))
        row -= params.get("frequency_penalty", 0.0) * times + params.get("presence_penalty", 0.0) * (times > 0)
        for token_id, bias in params.get("logit_bias", {}).items():
            row[token_id] += bias
        if len(output) < params.get("min_new_tokens", 0):
            row[[EOS_ID, *params["stop_token_ids"]]] = float("-inf")


def _continue(pair: Pair, asked: Sequence[tuple[PoolPrompt, Mapping[str, Any]]]) -> list[Known]:
    """Greedy continuations of all prompts in one padded `generate`; a few are compared with one alone."""
    model = AutoModelForCausalLM.from_pretrained(pair.target)
    width = max(len(prompt.token_ids) for prompt, _ in asked)
    pads = [width - len(prompt.token_ids) for prompt, _ in asked]
    ids = torch.tensor([[0] * pad + list(prompt.token_ids) for pad, (prompt, _) in zip(pads, asked, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (width - pad) for pad in pads])
    model.generation_config.eos_token_id = None
    out = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=_NUM_NEW,
        do_sample=False,
        pad_token_id=0,
        logits_processor=[_Adjust(asked, width)],
        return_dict_in_generate=True,
        output_scores=True,
    )
    top = torch.stack(out.scores, dim=1).topk(2).values  # [num prompts, num new, 2]
    is_clear = (top[..., 0] - top[..., 1] > _MIN_GAP).tolist()
    known = []
    for (prompt, params), clear, tokens in zip(asked, is_clear, out.sequences[:, width:].tolist(), strict=True):
        num_clear = next(i for i in count() if i == len(clear) or not clear[i])
        known.append(Known(prompt, params, tuple(tokens[: min(num_clear, CONTEXT - len(prompt.token_ids))])))
    _check_alone(model, [entry for entry in known if not entry.params][:: len(known) // _NUM_CHECKED])
    return known


def _check_alone(model: Any, known: Sequence[Known]) -> None:
    for entry in known:
        ids = torch.tensor([entry.prompt.token_ids])
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=len(entry.tokens),
            do_sample=False,
            eos_token_id=EOS_ID,
            pad_token_id=0,
        )
        alone = tuple(out[0, ids.shape[1] :].tolist())
        assert alone == entry.tokens[: len(alone)], "generate gives other tokens for a prompt in a padded batch"
