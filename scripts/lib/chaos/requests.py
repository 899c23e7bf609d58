"""The requests of a load, with the answers that they have while nothing goes wrong."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.prompts import Prompt

NUM_GREEDY = 24
NUM_SEEDED = 12
NUM_MANY = 4
MAX_NEW = 96
_LENGTHS = (1, 2, 5, 16, 33, 64, 128, 256, 300, 384)  # of prompts of token ids
_FIRST_ID, _LAST_ID = 5, 300  # ids that every vocabulary has
_AT_ONCE = 8

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request whose answer is known: `truth` has the tokens of each of its samples."""

    prompt: Prompt
    params: SamplingParams
    truth: tuple[Tokens, ...]

    @property
    def kind(self) -> str:
        if self.params.seed is None:
            return "greedy"
        return "seeded" if self.params.n == 1 else f"seeded n={self.params.n}"


async def learn(address: str, rng: random.Random, max_len: int) -> list[Asked]:
    """Send every request of the pool to a service that nothing disturbs; return them with their answers.

    Args:
        max_len: tokens that prompt and answer may have together.

    Raises:
        MineDraftError: the service failed.
    """
    makers = [*[_greedy] * NUM_GREEDY, *[_seeded] * NUM_SEEDED, *[_many] * NUM_MANY]
    prompts = _prompts(rng, len(makers), max_len - MAX_NEW)
    turn = asyncio.Semaphore(_AT_ONCE)

    async def ask(client: AsyncClient, prompt: Prompt, params: SamplingParams) -> Asked:
        async with turn:
            answers = await client.complete_all(prompt, params)
        return Asked(prompt, params, tuple(answer.token_ids for answer in answers))

    async with AsyncClient(address) as client:
        asks = [ask(client, prompt, maker(rng)) for prompt, maker in zip(prompts, makers, strict=True)]
        return list(await asyncio.gather(*asks))


def shorter(asked: Asked, rng: random.Random) -> SamplingParams:
    """Return the parameters of the request for an answer of a random length, at most its own."""
    num_new = rng.choice((1, 2, rng.randint(3, 24), rng.randint(8, MAX_NEW), MAX_NEW))
    return replace(asked.params, max_new_tokens=num_new)


def sampled(rng: random.Random) -> SamplingParams:
    """Return parameters of a request whose answer is another one each time."""
    return SamplingParams(max_new_tokens=rng.randint(1, MAX_NEW), ignore_eos=True, temperature=0.9, top_p=0.95)


def _greedy(rng: random.Random) -> SamplingParams:
    return SamplingParams(max_new_tokens=MAX_NEW, ignore_eos=True)


def _seeded(rng: random.Random) -> SamplingParams:
    heat, share = rng.choice((0.5, 0.8, 1.0)), rng.choice((1.0, 0.9))
    return SamplingParams(
        max_new_tokens=MAX_NEW, ignore_eos=True, temperature=heat, top_p=share, seed=rng.getrandbits(32)
    )


def _many(rng: random.Random) -> SamplingParams:
    return SamplingParams(max_new_tokens=MAX_NEW, ignore_eos=True, temperature=0.8, seed=rng.getrandbits(32), n=2)


def _prompts(rng: random.Random, count: int, most: int) -> Sequence[Prompt]:
    """Return prompts of words, and of random token ids of all lengths."""
    words = [prompt.text for prompt in load_prompts(None)]
    lengths = [length for length in _LENGTHS if length <= most] or [1]
    prompts: list[Prompt] = []
    for number in range(count):
        if number % 3 == 0:
            prompts.append(rng.choice(words)[: 2 * most])
        else:
            length = lengths[number % len(lengths)]
            prompts.append([rng.randint(_FIRST_ID, _LAST_ID) for _ in range(length)])
    return prompts
