"""Step exact: answers of real processes equal those of the target alone, token by token.

In float32 tiny models of real architectures must answer as transformers' generate does, on this device and on
the CPU, in every mode, with a request's seed, with the drafter on CPU cores, and after the drafter is killed.
In bfloat16, where rounding decides between near ties, the controlled pair must answer with its map.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import tempfile
from collections.abc import Awaitable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from minedraft import SamplingParams
from minedraft.local import LocalService, serve
from minedraft.types import Mode, Role
from scripts.gpu.controlled.service import WorkerPlan, controlled_workers, scheduler, started
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.token_map import TokenMap
from scripts.gpu.controlled.tokenizer import write_tokenizer
from scripts.gpu.step import Step
from scripts.gpu.steps.asking import Answers, ask, count_equal, num_equal
from scripts.gpu.steps.devices import draft_cores, two_cores
from tests.support.tiny_models import add_noise, make_tiny_model

_EOS_ID = 2
_DRAFT_LEN = 3
_NOISE = 0.05
_BLOCKS: dict[str, Any] = {"num_blocks": 2048}
_SHARES: dict[str, Any] = {"target_memory_share": 0.05, "draft_memory_share": 0.05}
# Sizes of heads that every kind of kernel takes.
_HEADS: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


class Exact:
    """The checks; each writes its own entry."""

    def __init__(self, step: Step, folder: Path) -> None:
        self._step = step
        self._folder = folder
        self._one_model = asyncio.Lock()
        scale = step.scale
        rng = random.Random(5)
        lens = [1, 2, 3, 7, 16, 31, 5, 12, 64, 4][-scale.exact_prompts :]
        self._prompts = [[rng.randrange(3, 300) for _ in range(length)] for length in lens]
        self._greedy = SamplingParams(max_new_tokens=scale.exact_new)
        self._seeded = SamplingParams(max_new_tokens=scale.exact_new, temperature=0.8, seed=7)

    async def run(self) -> None:
        # Before anything runs in threads: transformers builds models with global settings.
        checks = [self._check_kind(kind, *self._make_pair(kind)) for kind in self._step.scale.exact_kinds]
        checks.append(self._check_controlled("bfloat16"))
        if self._step.is_cuda:
            checks.append(self._check_with_cores(*self._make_pair("mistral")))
        await _all_of(checks)

    async def _check_kind(self, kind: str, target: Path, draft: Path) -> None:
        """Compare with generate in every mode, repeat a seeded request, and kill the drafter."""
        truth = await self._generate(target, self._step.device)
        on_cpu = await self._generate(target, "cpu") if self._step.is_cuda else truth
        found: dict[str, object] = {"prompts": len(self._prompts), "generate_equals_cpu": num_equal(truth, on_cpu)}
        # The caches of the last kind are as large as shares of the GPU's memory allow, while others start there.
        by_share = self._step.is_cuda and kind == self._step.scale.exact_kinds[-1]
        service = self._serve(target, draft, *self._devices(), **(_SHARES if by_share else _BLOCKS))
        async with service as client:
            async with client.borrow() as loan:
                found["equal"] = await count_equal(client, loan, self._prompts, self._greedy, truth, _DRAFT_LEN)
                found["vsr"] = (await client.status()).vsr
                self._step.put(kind, found)
                seeded: Answers | None = None
                equal = {}
                for mode, size in (("ar", 4), ("sd", 1), ("minedraft", 4), ("pearl", 2)):
                    await loan.configure(mode, size, _DRAFT_LEN)
                    answers = await ask(client, self._prompts[:2], self._seeded)
                    seeded = seeded or answers
                    equal[mode] = num_equal(answers, seeded)
                found["seeded_equal"], found["seeded_prompts"] = equal, len(self._prompts[:2])
                self._step.put(kind, found)
            during = asyncio.create_task(ask(client, self._prompts, self._greedy))
            await asyncio.sleep(0)
            kill_drafter(service)
            found["equal_while_killed"] = num_equal(await during, truth)
            found["equal_after_kill"] = num_equal(await ask(client, self._prompts, self._greedy), truth)
            found["state_after_kill"] = (await client.status()).state
            self._step.put(kind, found)

    async def _check_with_cores(self, target: Path, draft: Path) -> None:
        """Compare with generate with the drafter on CPU cores."""
        truth = await self._generate(target, self._step.device)
        async with (
            self._serve(target, draft, self._step.device, draft_cores(), **_BLOCKS) as client,
            client.borrow() as loan,
        ):
            equal = await count_equal(client, loan, self._prompts, self._greedy, truth, _DRAFT_LEN)
            self._step.put("with_cores", {"prompts": len(self._prompts), "equal": equal})

    async def _check_controlled(self, dtype: str) -> None:
        """Compare the controlled pair's answers with its map, and its account with the prediction."""
        scale, folder = self._step.scale, self._folder / "controlled"
        target, draft = scale.exact_pair
        vocab_size = SHAPES[target].vocab_size
        token_map = TokenMap.make(vocab_size, scale.alpha)
        tokenizer = write_tokenizer(folder / "tokenizer", vocab_size)
        prompts = [[3, 5, i * (vocab_size // 11)] for i in range(scale.exact_prompts)]
        truth = [token_map.answer(prompt[-1], scale.exact_new) for prompt in prompts]
        flags = ("--dtype", dtype, "--alpha", str(scale.alpha), "--num-blocks", str(scale.num_blocks))
        on_target, on_draft = self._devices()
        plans = [
            WorkerPlan("verifier", Role.VERIFIER, ("--shape", target, "--device", on_target, *flags)),
            WorkerPlan("drafter", Role.DRAFTER, ("--shape", draft, "--device", on_draft, *flags)),
        ]
        async with (
            controlled_workers(folder, tokenizer, plans) as at,
            scheduler(folder, tokenizer, started(at["verifier"]), started(at["drafter"])) as client,
            client.borrow() as loan,
        ):
            # Running ahead drafts from other places than the map is counted at.
            in_turn = [mode for mode in Mode if not mode.runs_ahead]
            equal = await count_equal(client, loan, prompts, self._greedy, truth, _DRAFT_LEN, in_turn)
            status = await client.status()
            equal |= await count_equal(client, loan, prompts, self._greedy, truth, _DRAFT_LEN, [Mode.PEARL])
        counts = [token_map.count(prompt[-1], scale.exact_new, _DRAFT_LEN) for prompt in prompts]
        predicted = sum(count.accepted for count in counts) / sum(count.drafted for count in counts)
        found = {"prompts": len(prompts), "equal": equal, "vsr": status.vsr, "predicted_vsr": predicted}
        self._step.put("controlled", {"dtype": dtype, **found})

    def _devices(self) -> tuple[str, str]:
        """Return the devices of target and draft model: the same one on CUDA, two cores on a CPU that has them."""
        return (self._step.device, self._step.device) if self._step.is_cuda else two_cores()

    def _make_pair(self, kind: str) -> tuple[Path, Path]:
        folder = self._folder / kind
        draft = add_noise(make_tiny_model(folder / "draft", kind, seed=1, **_HEADS), _NOISE)
        return make_tiny_model(folder / "target", kind, seed=1, **_HEADS), draft

    def _serve(
        self,
        target: Path,
        draft: Path,
        target_device: str,
        draft_device: str,
        **room: Any,  # noqa: ANN401 - settings
    ) -> LocalService:
        return serve(
            target,
            draft,
            target_device=target_device,
            draft_device=draft_device,
            dtype="float32",
            allow_configure=True,
            on_line=self._step.say,
            **room,
        )

    async def _generate(self, folder: Path, device: str) -> Answers:
        """Return what `generate` answers, one model at a time, while the services start."""
        async with self._one_model:
            return await asyncio.to_thread(self._generate_now, folder, device)

    def _generate_now(self, folder: Path, device: str) -> Answers:
        """Return what transformers' generate answers, one prompt at a time, in float32."""
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device)
        answers = []
        for prompt in self._prompts:
            ids = torch.tensor([prompt], device=device)
            full = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=self._step.scale.exact_new,
                do_sample=False,
                eos_token_id=_EOS_ID,
                pad_token_id=0,
            )
            answers.append(full[0, len(prompt) :].tolist())
        return answers


def kill_drafter(service: LocalService) -> None:
    """Kill the drafter of a service without a signal that it could catch."""
    os.kill(find_drafter(service.pid), signal.SIGKILL)


def find_drafter(launcher_pid: int) -> int:
    """Return the process id of the drafter that a launcher has started.

    Raises:
        LookupError: there is none.
    """
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:  # it has ended
            continue
        if b"drafter" in words and b"--exit-with-parent" in words and str(launcher_pid).encode() in words:
            return int(folder.name)
    raise LookupError(f"launcher {launcher_pid} has no drafter")


async def _all_of(checks: Sequence[Awaitable[None]]) -> None:
    """Run all checks together; none ends another. Raise the first error at the end."""
    for result in await asyncio.gather(*checks, return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def main() -> None:
    step = Step.from_argv("exact")
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        asyncio.run(Exact(step, Path(folder)).run())


if __name__ == "__main__":
    main()
