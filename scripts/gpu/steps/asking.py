"""Asks a service for several answers together, in one mode after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from minedraft import AsyncClient, SamplingParams
from minedraft.loan import AsyncLoan
from minedraft.types import Mode

Answers = list[list[int]]
Prompts = Sequence[Sequence[int]]


async def ask(client: AsyncClient, prompts: Prompts, params: SamplingParams) -> Answers:
    """Return the token ids of all answers."""
    outputs = await asyncio.gather(*(client.complete(list(prompt), params) for prompt in prompts))
    return [list(output.token_ids) for output in outputs]


async def count_equal(
    client: AsyncClient,
    loan: AsyncLoan,
    prompts: Prompts,
    params: SamplingParams,
    truth: Answers,
    draft_len: int,
    modes: Sequence[Mode] = tuple(Mode),
) -> dict[str, int]:
    """Return for each mode how many answers equal the truth."""
    found = {}
    for mode in modes:
        await loan.configure(mode, max(len(prompts) // mode.num_batches, 1), draft_len if mode.has_drafts else 0)
        found[mode.value] = num_equal(await ask(client, prompts, params), truth)
    return found


def num_equal(answers: Answers, truth: Answers) -> int:
    return sum(ours == theirs for ours, theirs in zip(answers, truth, strict=True))
