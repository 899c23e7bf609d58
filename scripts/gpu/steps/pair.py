"""Step pair: the whole stack with the controlled pair, in three settings of the drafter.

B: it sleeps as long as a draft takes alone: the cost of control at the device's speed, second device simulated.
C: it computes on CPU cores: real overlap of two unlike devices.
D: it computes on the target's device: what sharing one device costs; no overlap of devices may be read off it.
Beside mode ar, transformers' generate answers as many requests with the same target.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.runner import BenchConfig, BenchRow, bound_of, default_configs, run_benchmark
from minedraft.device import Device, usable_cores
from minedraft.errors import StartFailed
from minedraft.types import Mode, Role
from scripts.gpu.controlled.model import build_model
from scripts.gpu.controlled.service import WorkerPlan, controlled_workers, scheduler, started
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.token_map import TokenMap
from scripts.gpu.controlled.tokenizer import to_text, write_tokenizer
from scripts.gpu.step import Step
from scripts.gpu.steps.asking import count_equal
from scripts.gpu.steps.devices import draft_cores, two_cores
from scripts.gpu.steps.gpu_use import command_for, sampled

_NUM_CHECKED, _CHECKED_NEW = 4, 24  # answers and their tokens compared with the map, before anything is timed
_ASSUMED_MS = 2.0  # a draft token, where step alone has not measured it
_SLACK, _SLACK_OF_LARGER = 1.2, 2.5  # a run takes as long as the one before; one of more requests longer


@dataclass(frozen=True, slots=True)
class Experiment:
    """One setting of the drafter. sizes: requests per batch, each with its number of repeats, in order."""

    name: str
    sizes: tuple[tuple[int, int], ...]


class Pair:
    """The experiments on one running target.

    Attributes:
        failed: what went wrong, by the name of the part.
    """

    def __init__(self, step: Step, folder: Path) -> None:
        self._step = step
        self._folder = folder
        scale = step.scale
        self._shape, self._draft_shape, self._core_shape = scale.pair
        vocab_size = SHAPES[self._shape].vocab_size
        self._map = TokenMap.make(vocab_size, scale.alpha)
        self._tokenizer = write_tokenizer(folder / "tokenizer", vocab_size)
        lasts = np.random.RandomState(4).randint(vocab_size, size=(2 * max(scale.sizes), scale.prompt_len))
        self._prompts: list[list[int]] = lasts.tolist()
        # Of what serves a GPU: its thread is on the critical path, and must not share a core with the drafter of C.
        self._host_cores: tuple[int, ...] = ()
        self.failed: dict[str, str] = {}
        self._run_s: dict[int, float] = {}  # of the last run, by m
        self._gpu_busy: dict[str, float | None] = {}  # of the last run, by its label

    async def run(self) -> None:
        """Start all workers together, then one scheduler after the other."""
        scale = self._step.scale
        counts = [self._map.count(prompt[-1], scale.num_new, scale.draft_len) for prompt in self._prompts]
        predicted = sum(count.accepted for count in counts) / sum(count.drafted for count in counts)
        self._step.put("predicted_vsr", predicted)
        plans = self._plans()
        start_s = time.monotonic()
        async with controlled_workers(self._folder, self._tokenizer, plans) as at:
            self._step.put("start_s", round(time.monotonic() - start_s, 1))
            target = started(at["target"])
            if self._host_cores:  # the schedulers and this process too; a child inherits them
                os.sched_setaffinity(0, self._host_cores)
            for experiment in self._experiments():
                await self.attempt(experiment.name, self._run_experiment(experiment, target, at[experiment.name]))
                if experiment.name == "B":
                    await self.attempt("generate", self._compare_with_generate())

    async def attempt(self, name: str, part: Awaitable[None]) -> None:
        """Wait for one part. If it fails that is recorded, and the caller goes on."""
        try:
            await part
            self._step.say(f"{name} done, {self._step.left_s:.0f} s left")
        except Exception as error:
            self.failed[name] = f"{type(error).__name__}: {error}"
            self._step.put("failed", self.failed)
            self._step.say(f"{name} failed: {self.failed[name]}")

    def _experiments(self) -> list[Experiment]:
        scale = self._step.scale
        sizes = tuple((m, scale.repeats if m == scale.sizes[0] else 1) for m in scale.sizes)
        return [Experiment("B", sizes), Experiment("C", sizes), Experiment("D", ((scale.sizes[0], 1),))]

    def _plans(self) -> list[WorkerPlan]:
        step, scale = self._step, self._step.scale
        target_device, cores = (step.device, draft_cores()) if step.is_cuda else two_cores()
        common = ("--dtype", scale.dtype, "--alpha", str(scale.alpha), "--num-blocks", str(scale.num_blocks))
        if step.is_cuda:
            self._host_cores = tuple(sorted(set(usable_cores()) - set(Device.parse(cores).cores)))
        beside = ("--host-cores", str(Device("cpu", self._host_cores))) if self._host_cores else ()
        on_target = ("--device", target_device, *common, *beside)
        drafts = step.of("alone").get(self._draft_shape, {}).get("drafts", []) if step.is_cuda else []
        step.put("draft_times", "measured alone" if drafts else "assumed")
        draft_times = json.dumps(draft_times_ms(drafts, scale.draft_len))
        return [
            WorkerPlan("target", Role.VERIFIER, ("--shape", self._shape, *on_target)),
            WorkerPlan("B", Role.DRAFTER, ("--shape", self._draft_shape, *common, "--draft-times", draft_times)),
            WorkerPlan("C", Role.DRAFTER, ("--shape", self._core_shape, "--device", cores, *common)),
            WorkerPlan("D", Role.DRAFTER, ("--shape", self._draft_shape, *on_target)),
        ]

    async def _run_experiment(self, experiment: Experiment, verifier: str, drafter: str | StartFailed) -> None:
        folder = self._folder / experiment.name
        folder.mkdir()
        found: dict[str, Any] = {}
        flags = ("--max-batch-size", str(2 * max(self._step.scale.sizes)))
        async with scheduler(folder, self._tokenizer, verifier, started(drafter), *flags) as client:
            found["workers"] = [
                {"role": worker.role, "model": worker.model, "device": worker.device, "kernels": worker.kernels}
                for worker in (await client.status()).workers
            ]
            found["checked"], found["equal"] = _NUM_CHECKED, await self._check(client)
            self._step.put(experiment.name, found)
            found["rows"] = []
            for m, repeats in experiment.sizes:
                rows: list[BenchRow] = []
                for repeat in range(repeats):
                    if self._expected_s(m) > self._step.left_s:
                        found.setdefault("skipped", []).append(f"m={m}, run {repeat + 1}: no time left")
                        continue
                    rows = await self._measure(client, m, rows)
                found["rows"] += [
                    {**entry, "gpu_busy": self._gpu_busy[entry["config"]["label"]]} for entry in rows_to_json(rows)
                ]
                self._step.put(experiment.name, found)

    def _expected_s(self, m: int) -> float:
        """Return the seconds that a run will take, by those before."""
        if m in self._run_s:
            return self._run_s[m] * _SLACK
        return max(self._run_s.values(), default=0.0) * _SLACK_OF_LARGER

    async def _check(self, client: AsyncClient) -> dict[str, int]:
        """Compare answers with the map, in every mode. It also warms the devices up."""
        prompts = self._prompts[:_NUM_CHECKED]
        truth = [self._map.answer(prompt[-1], _CHECKED_NEW) for prompt in prompts]
        params = SamplingParams(max_new_tokens=_CHECKED_NEW)
        async with client.borrow() as loan:
            return await count_equal(client, loan, prompts, params, truth, self._step.scale.draft_len)

    async def _measure(self, client: AsyncClient, m: int, before: list[BenchRow]) -> list[BenchRow]:
        """Run every mode once and return the rows with the runs before."""
        if not before:  # a worker's first command of a size may compile or capture something
            await self._run_modes(client, m, self._step.scale.num_new // 4, lambda config, repeat: None)
        starts: list[float] = []
        with sampled(command_for(self._step.of("facts").get("uuid"))) as use:
            rows = await self._run_modes(
                client, m, self._step.scale.num_new, lambda config, repeat: starts.append(time.monotonic())
            )
            starts.append(time.monotonic())
        self._run_s[m] = starts[-1] - starts[0]
        for row, (start_s, end_s) in zip(rows, pairwise(starts), strict=True):
            self._gpu_busy[row.config.label] = use.share(start_s, end_s)
        for row, old in zip(rows, before, strict=False):
            row.runs = [*old.runs, *row.runs]
        return rows

    async def _run_modes(
        self, client: AsyncClient, m: int, num_new: int, on_run: Callable[[BenchConfig, int], None]
    ) -> list[BenchRow]:
        """Answer 2m prompts with `num_new` tokens each, in every mode."""
        params = SamplingParams(max_new_tokens=num_new, ignore_eos=True)
        prompts = [BenchPrompt("ids", to_text(prompt)) for prompt in self._prompts[: 2 * m]]
        configs = default_configs(m, self._step.scale.draft_len)
        async with client.borrow() as loan:
            return await run_benchmark(client, loan, configs, prompts, params, num_repeats=1, on_run=on_run)

    async def _compare_with_generate(self) -> None:
        """Time generate on as many requests as the first ar row has, with the same target."""
        scale = self._step.scale
        prompts = self._prompts[: 2 * scale.sizes[0]]
        truth = [self._map.answer(prompt[-1], scale.num_new) for prompt in prompts]
        found = await asyncio.to_thread(self._time_generate, prompts, truth)
        self._step.put("generate", found)

    def _time_generate(self, prompts: list[list[int]], truth: list[list[int]]) -> dict[str, Any]:
        # Only here, so that the workers need not wait for it.
        import torch

        scale, device = self._step.scale, torch.device(self._step.device)
        dtype = getattr(torch, scale.dtype)
        model = build_model(SHAPES[self._shape], self._map.target, dtype, device, "sdpa")
        ids = torch.tensor(prompts, device=device)
        seconds = []
        for _ in range(2):  # the first one also loads kernels
            start_s = time.monotonic()
            full = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=scale.num_new,
                min_new_tokens=scale.num_new,
                do_sample=False,
                pad_token_id=0,
            )
            answers = full[:, ids.shape[1] :].tolist()
            seconds.append(time.monotonic() - start_s)
        equal = sum(ours == theirs for ours, theirs in zip(answers, truth, strict=True))
        tokens_per_s = len(prompts) * scale.num_new / min(seconds)
        return {"m": len(prompts), "seconds": seconds, "tokens_per_s": tokens_per_s, "equal": equal}


def draft_times_ms(rows: list[dict[str, Any]], draft_len: int) -> dict[int, dict[int, float]]:
    """Return milliseconds by requests and drafts from the rows of step alone; assumed ones if there are none."""
    if not rows:
        return {1: {k: k * _ASSUMED_MS for k in range(1, draft_len + 1)}}
    times: dict[int, dict[int, float]] = {}
    for row in rows:
        times.setdefault(row["m"], {})[row["k"]] = row["ms"]
    return times


def rows_to_json(rows: list[BenchRow]) -> list[dict[str, Any]]:
    """Return the rows with their ratios to sd at equal m and at equal requests in flight, and the bound.

    The ratios are of whole runs, prompts and tail included. Those of steady rounds alone flatter a mode whose
    batches shrink as answers end, because a round of fewer requests is shorter.
    """
    if not rows:
        return []
    by_mode = {(row.config.mode, row.config.max_batch_size): row for row in rows}
    m = min(row.config.max_batch_size for row in rows)
    bound = bound_of(by_mode[Mode.SD, m])
    found = []
    for row in rows:
        entry = row.to_json()
        for name, base in (("of_sd_m", by_mode[Mode.SD, m]), ("of_sd_2m", by_mode[Mode.SD, 2 * m])):
            entry[name] = row.median("tokens_per_s") / max(base.median("tokens_per_s"), 1e-9)
        found.append({**entry, "bound": bound})
    return found


def main() -> None:
    step = Step.from_argv("pair")
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        pair = Pair(step, Path(folder))
        asyncio.run(pair.run())
    sys.exit(1 if pair.failed else 0)


if __name__ == "__main__":
    main()
