"""scripts/bench/ar: compares mode ar through the whole stack with transformers' `generate`."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.device import Device
from minedraft.local import serve
from minedraft.process.with_parent import child_command, child_environment
from minedraft.text.tokenizer import Tokenizer

_STACK_SHARE = 0.5  # of a GPU: `generate` has the same weights there


@dataclass(frozen=True, slots=True)
class Task:
    """The prompts that both sides answer, and the model and device that they use."""

    target: Path
    device: str
    dtype: str
    batch: int
    max_new_tokens: int

    def prompts(self) -> list[list[int]]:
        tokenizer = Tokenizer.load(self.target)
        chosen = load_prompts(None)[: self.batch]
        return [tokenizer.encode_chat([{"role": "user", "content": prompt.text}]) for prompt in chosen]

    def flags(self) -> list[str]:
        flags = ["--target", str(self.target), "--device", self.device, "--dtype", self.dtype]
        return [*flags, "--batch", str(self.batch), "--max-new-tokens", str(self.max_new_tokens)]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", required=True, type=click.Path(path_type=Path, exists=True), help="Model folder.")
@click.option("--device", default="cpu:1", show_default=True, help="Core or GPU that both run on.")
@click.option(
    "--dtype",
    default="float32",
    show_default=True,
    type=click.Choice(["float32", "bfloat16"]),
    help="Number format of the weights.",
)
@click.option("--batch", default=8, show_default=True, type=click.IntRange(1, 24), help="Prompts answered together.")
@click.option("--max-new-tokens", default=128, show_default=True, help="Tokens per answer, exactly.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs per side.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures to this file."
)
@click.option("--generate-child", is_flag=True, hidden=True)
def main(
    target: Path,
    device: str,
    dtype: str,
    batch: int,
    max_new_tokens: int,
    repeats: int,
    json_path: Path | None,
    generate_child: bool,
) -> None:
    """Compare tokens/s of the whole stack in mode ar with transformers' generate.

    Both use the same weights, dtype, device and prompts. Both stay loaded and take turns on the device, so
    that a change in the machine's speed affects both. The figures are medians over the repeats.
    `generate` runs one left-padded batch. `minedraft models --json` shows the model folders.

    \b
    Examples:
      scripts/bench/ar --target ~/.cache/minedraft/models/smollm2-135m-instruct
      scripts/bench/ar --target DIR --device cpu:0 --dtype bfloat16 --json ar.json
      scripts/bench/ar --target DIR --device cuda:0
    """
    task = Task(target, str(Device.parse(device, "--device").here("--device")), dtype, batch, max_new_tokens)
    if generate_child:
        _serve_generate(task)
        return
    result = asyncio.run(_compare(task, repeats))
    Console().print(
        f"{result['stack_tokens_per_s']:.1f} tokens/s through the stack, "
        f"{result['generate_tokens_per_s']:.1f} tokens/s by generate: {result['ratio']:.2f}x\n"
        f"identical answers: {result['num_equal']} of {result['batch']}"
    )
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine_facts(), **result}, indent=1) + "\n", encoding="utf-8")


async def _compare(task: Task, repeats: int) -> dict[str, Any]:
    params = SamplingParams(max_new_tokens=task.max_new_tokens, ignore_eos=True)
    prompts = task.prompts()
    ours_s: list[float] = []
    theirs_s: list[float] = []
    ours: list[list[int]] = []
    theirs: list[list[int]] = []
    stack = serve(
        task.target,
        mode="ar",
        target_device=task.device,
        keep_cores=True,  # both sides have the same device
        target_memory_share=_STACK_SHARE if task.device.startswith("cuda") else None,
        dtype=task.dtype,
        max_batch_size=len(prompts),
        on_line=say,
    )
    with _generating(task) as generate:
        async with stack as client:
            for _ in range(repeats):
                started_s = time.monotonic()
                outputs = await asyncio.gather(*(client.complete(prompt, params) for prompt in prompts))
                ours_s.append(time.monotonic() - started_s)
                ours = [list(output.token_ids) for output in outputs]
                seconds, theirs = await asyncio.to_thread(generate.ask)
                theirs_s.append(seconds)
    num_tokens = len(prompts) * task.max_new_tokens
    return {
        "model": task.target.name,
        "device": task.device,
        "dtype": task.dtype,
        "batch": len(prompts),
        "max_new_tokens": task.max_new_tokens,
        "stack_s": ours_s,
        "generate_s": theirs_s,
        "stack_tokens_per_s": num_tokens / median(ours_s),
        "generate_tokens_per_s": num_tokens / median(theirs_s),
        "ratio": median(theirs / ours for theirs, ours in zip(theirs_s, ours_s, strict=True)),
        "num_equal": sum(a == b for a, b in zip(ours, theirs, strict=True)),
    }


class _Generate:
    """The child process that runs `generate`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None, "started with pipes"
        assert process.stdout is not None, "started with pipes"
        self._asks, self._answers = process.stdin, process.stdout

    def wait_loaded(self) -> None:
        self._answers.readline()

    def ask(self) -> tuple[float, list[list[int]]]:
        """Return the seconds that one `generate` took, and the new tokens of each prompt."""
        self._asks.write("go\n")
        self._asks.flush()
        seconds, tokens = json.loads(self._answers.readline())
        return seconds, tokens


@contextmanager
def _generating(task: Task) -> Iterator[_Generate]:
    argv = child_command("scripts.lib.bench_ar", *task.flags(), "--generate-child")
    environment = child_environment(OMP_NUM_THREADS="1")
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        try:
            generate = _Generate(process)
            generate.wait_loaded()
            yield generate
        finally:
            process.terminate()


def _serve_generate(task: Task) -> None:
    """Answer each line on standard input with [seconds, token ids] of one `generate`."""
    import torch
    from transformers import AutoModelForCausalLM

    from minedraft_workers.device import pin, torch_device

    owned = Device.parse(task.device).here()
    pin(owned)
    device = torch_device(owned)
    model = AutoModelForCausalLM.from_pretrained(task.target, dtype=getattr(torch, task.dtype), local_files_only=True)
    model = model.to(device)
    rows, counts = _left_padded(task.prompts())
    ids, mask = torch.tensor(rows, device=device), torch.tensor(counts, device=device)
    print("loaded", flush=True)
    while sys.stdin.readline():
        started_s = time.monotonic()
        with torch.inference_mode():
            full = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=task.max_new_tokens,
                min_new_tokens=task.max_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        tokens = full[:, ids.shape[1] :].tolist()  # a GPU is done only now
        print(json.dumps([time.monotonic() - started_s, tokens]), flush=True)


def _left_padded(prompts: Sequence[list[int]]) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts padded to [prompts, longest], and the attention mask of the same shape."""
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(prompt)) + prompt for prompt in prompts]
    mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return ids, mask


if __name__ == "__main__":
    run(main, "scripts/bench/ar")
