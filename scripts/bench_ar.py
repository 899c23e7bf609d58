"""`ar` mode through the whole stack against transformers' `generate`: same weights, dtype, core, prompts.

    .venv/bin/python scripts/bench_ar.py --target DIR --json scripts/results/ar.json

Both processes are loaded at once and take turns on the same core, so that a change in the machine's
speed meets both; medians of the repeats. `generate` runs as one left-padded batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.errors import Unavailable
from minedraft.text.tokenizer import Tokenizer


@click.command()
@click.option("--target", required=True, type=click.Path(path_type=Path, exists=True), help="Model folder.")
@click.option("--core", default=1, show_default=True, help="The core that both use.")
@click.option("--dtype", default="float32", show_default=True, type=click.Choice(["float32", "bfloat16"]))
@click.option("--batch", default=8, show_default=True, help="Prompts answered at once.")
@click.option("--max-new-tokens", default=128, show_default=True, help="Tokens an answer, exactly.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
@click.option("--generate-child", is_flag=True, hidden=True)
def main(
    target: Path,
    core: int,
    dtype: str,
    batch: int,
    max_new_tokens: int,
    repeats: int,
    json_path: Path | None,
    generate_child: bool,
) -> None:
    """Measure tokens/s of the whole stack in ar mode and of transformers' generate."""
    tokenizer = Tokenizer.load(target)
    prompts = [tokenizer.encode_chat([{"role": "user", "content": p.text}]) for p in load_prompts(None)[:batch]]
    if generate_child:
        _serve_generate(target, core, dtype, prompts, max_new_tokens)
        return
    result = asyncio.run(_compare(target, core, dtype, prompts, max_new_tokens, repeats))
    Console().print(
        f"{result['stack_tokens_per_s']:.1f} tokens/s through the stack, "
        f"{result['generate_tokens_per_s']:.1f} by generate: {result['ratio']:.2f}x\n"
        f"tokens equal: {result['num_equal']} of {len(prompts)} answers"
    )
    if json_path is not None:
        json_path.write_text(json.dumps({"machine": machine_facts(), **result}, indent=1) + "\n", encoding="utf-8")


async def _compare(
    target: Path, core: int, dtype: str, prompts: Sequence[list[int]], max_new_tokens: int, repeats: int
) -> dict[str, Any]:
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    ours_s: list[float] = []
    theirs_s: list[float] = []
    ours: list[list[int]] = []
    theirs: list[list[int]] = []
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        listen = f"unix:{folder}/m.sock"
        stack = [sys.executable, "-m", "minedraft.cli.launch", "--target", str(target), "--mode", "ar"]
        stack += ["--target-device", f"cpu:{core}", "--dtype", dtype, "--listen", listen]
        stack += ["--max-batch-size", str(len(prompts))]
        child = [sys.executable, __file__, "--target", str(target), "--core", str(core), "--dtype", dtype]
        child += ["--batch", str(len(prompts)), "--max-new-tokens", str(max_new_tokens), "--generate-child"]
        with _running(stack), _running(child) as generate:
            assert generate.stdin is not None
            assert generate.stdout is not None
            generate.stdout.readline()  # loaded
            async with AsyncClient(listen) as client:
                await _until_serving(client)
                for _ in range(repeats):
                    started_s = time.monotonic()
                    outputs = await asyncio.gather(*(client.complete(prompt, params) for prompt in prompts))
                    ours_s.append(time.monotonic() - started_s)
                    ours = [list(output.token_ids) for output in outputs]
                    generate.stdin.write(b"go\n")
                    generate.stdin.flush()
                    seconds, theirs = json.loads(await asyncio.to_thread(generate.stdout.readline))
                    theirs_s.append(seconds)
    num_tokens = len(prompts) * max_new_tokens
    return {
        "model": target.name,
        "dtype": dtype,
        "batch": len(prompts),
        "max_new_tokens": max_new_tokens,
        "stack_s": ours_s,
        "generate_s": theirs_s,
        "stack_tokens_per_s": num_tokens / median(ours_s),
        "generate_tokens_per_s": num_tokens / median(theirs_s),
        "ratio": median(theirs / ours for theirs, ours in zip(theirs_s, ours_s, strict=True)),
        "num_equal": sum(a == b for a, b in zip(ours, theirs, strict=True)),
    }


async def _until_serving(client: AsyncClient) -> None:
    while True:
        try:
            if (await client.status()).state == "serving":
                return
        except Unavailable:
            pass
        await asyncio.sleep(0.1)


def _serve_generate(target: Path, core: int, dtype: str, prompts: Sequence[list[int]], max_new_tokens: int) -> None:
    """Answer each line on standard input with [seconds, token ids] of one `generate`."""
    os.sched_setaffinity(0, {core})
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(target, dtype=getattr(torch, dtype), local_files_only=True)
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    print("loaded", flush=True)
    while sys.stdin.readline():
        started_s = time.monotonic()
        with torch.inference_mode():
            full = model.generate(
                ids,
                attention_mask=mask,
                do_sample=False,
                max_new_tokens=max_new_tokens,
                min_new_tokens=max_new_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
        print(json.dumps([time.monotonic() - started_s, full[:, longest:].tolist()]), flush=True)


@contextmanager
def _running(argv: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.terminate()


if __name__ == "__main__":
    main()
