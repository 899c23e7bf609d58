"""The vLLM plugin's side of a drafter, with a real drafter and a target that is known: without vLLM."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from minedraft.address import Address
from minedraft.core.policy.base import FixedDraftLen
from minedraft.core.policy.forecast.experience import Experience
from minedraft.models.vocabulary import vocab_fingerprint
from minedraft.types import Batch, Mode
from minedraft.vllm.alternation import Alternation
from minedraft.vllm.desk import DraftDesk, StepReport
from minedraft.vllm.groups import Groups
from minedraft.vllm.link import DrafterLink
from tests.support.tiny_models import make_tiny_model
from tests.support.worker_process import worker

_NUM_TOKENS = 40


class _Request:
    """A request as vLLM has it, whose answer is known."""

    is_prefill_chunk = False
    resumable = False
    max_tokens = _NUM_TOKENS

    def __init__(self, name: str, prompt: list[int], answer: list[int]) -> None:
        self.request_id, self.num_prompt_tokens = name, len(prompt)
        self.text = prompt + answer
        self.all_token_ids = list(prompt)

    def verify(self, drafts: tuple[int, ...]) -> None:
        """Append the drafts that are right and the token after them."""
        size = len(self.all_token_ids)
        right = 0
        while right < len(drafts) and drafts[right] == self.text[size + right]:
            right += 1
        self.all_token_ids += self.text[size : size + right + 1]


def _answers(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    generated = [
        model.generate(torch.tensor([prompt]), max_new_tokens=_NUM_TOKENS, do_sample=False, eos_token_id=None)
        for prompt in prompts
    ]
    return [row[0, len(prompt) :].tolist() for row, prompt in zip(generated, prompts, strict=True)]


def _settle(link: DrafterLink, desk: DraftDesk) -> None:
    """Return when the drafter has nothing to do: a forward takes as long."""
    link.send(StepReport(Batch.A)).result()  # all reports before it are taken in
    while desk.num_busy:
        time.sleep(0.001)


def _run(alternation: Alternation, requests: dict[str, _Request], settle: Callable[[], None]) -> None:
    """Decode in steps as vLLM does; a request ends with its last token."""
    running: list[_Request] = []
    while requests:
        turn = alternation.begin(requests, running)
        new = [request for request in requests.values() if request not in running]
        alternation.admit(turn, requests, [request.request_id for request in new])
        settle()
        scheduled = [*turn.names, *(request.request_id for request in new)]
        running += new
        for name in scheduled:
            requests[name].verify(turn.drafts.get(name, ()))
        for request in list(running):
            if len(request.all_token_ids) == len(request.text):
                running.remove(requests.pop(request.request_id))
        alternation.finish(turn, requests, scheduled, turn.drafts)


@pytest.mark.slow
async def test_every_draft_of_the_targets_own_model_is_accepted(tmp_path: Path):
    target = make_tiny_model(tmp_path / "target")
    prompts = [[3 + (7 * index + 5 * place) % 300 for place in range(2 + 9 * index)] for index in range(7)]
    answers = _answers(target, prompts)
    requests = {
        str(index): _Request(str(index), prompt, answer)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    }
    with worker("drafter", tmp_path, "--model", str(target), "--dtype", "float32", "--no-lookup") as process:
        desk = DraftDesk(3, FixedDraftLen(), Experience(), Mode.MINEDRAFT)
        address = Address.parse(process.address)
        link = DrafterLink(address, desk, 320, vocab_fingerprint(target), connect_timeout_s=100.0)
        await asyncio.to_thread(link.open)
        alternation = Alternation(Groups(), link, wait_s=60.0)
        await asyncio.to_thread(_run, alternation, requests, lambda: _settle(link, desk))
        await asyncio.to_thread(link.close)
    assert desk.accepted == desk.tried
    assert desk.tried[0] > 20
    assert alternation.counts.num_late == 0
