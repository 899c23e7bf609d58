"""scripts/bench/forward: compares the time of a forward with what memory and arithmetic of the device allow."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from minedraft.bench.report import machine_facts
from minedraft.cli.console import run
from minedraft_workers.execution.options import LoadOptions

if TYPE_CHECKING:
    import torch

    from minedraft_workers.execution.executor import Executor

NUM_SEQUENCES = (1, 2, 4, 8, 16, 32)
SPAN_LENS = (1, 4)
LONG_CONTEXTS = (1024, 2048)
LONG_SEQUENCES = (8,)
PROMPT_CHUNKS = (256, 512)
PROMPT_STARTS = (0, 1024)
GENERATE_BATCH = 8
NEW_TOKENS = 64


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("model", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--device", default="cpu:0", show_default=True, help="Device to run on.")
@click.option(
    "--dtype",
    default="auto",
    show_default=True,
    type=click.Choice(["auto", "float32", "bfloat16"]),
    help="Number format of the weights.",
)
@click.option("--context", default=128, show_default=True, help="Cached tokens per sequence.")
@click.option(
    "--against", default=None, help="Another instruction set, as avx2, measured in turns with the chosen one."
)
@click.option("--repeat", default=7, show_default=True, help="Forwards per row; the table shows their median.")
@click.option("--generate/--no-generate", default=True, show_default=True, help="Compare with transformers' generate.")
@click.option("--long/--no-long", default=True, show_default=True, help="Measure long contexts and prompts too.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also add the figures to this file."
)
def main(
    model: Path,
    device: str,
    dtype: str,
    context: int,
    against: str | None,
    repeat: int,
    generate: bool,
    long: bool,
    json_path: Path | None,
) -> None:
    """Measure forwards of the model in the folder MODEL, with 1 and with 4 new tokens per sequence.

    \b
    floor   the longer of reading the weights and cached tokens once (at the speed of a plain read,
            measured here) and the multiplications (at the speed of a large matmul, measured here)
    ratio   measured / floor; 1 is perfect
    \b
    Then, unless --no-long is given, eight sequences with 1,024 and 2,048 cached tokens, and chunks of a prompt,
    whose floor is the multiplications of the layers.
    \b
    Then the executor and transformers' generate each answer eight prompts of 24 to 80 tokens with 64
    greedy tokens, with the same weights, dtype and device.
    Stop other work on the machine first: it slows down every number. MINEDRAFT_ISA=avx2 and the like choose the
    native kernels of an older CPU.

    \b
    Examples:
      scripts/bench/forward ~/.cache/minedraft/models/smollm2-135m-instruct
      scripts/bench/forward MODEL --device cpu:1 --dtype float32 --no-generate --json forward.json
      scripts/bench/forward MODEL --device cpu:1 --against avx512_bf16 --no-generate
      scripts/bench/forward MODEL --device cuda:0
    """
    from minedraft.device import Device
    from minedraft_workers.device import pin
    from minedraft_workers.execution.executor import Executor
    from minedraft_workers.native.library import ISA_VARIABLE

    console = Console()
    owned = Device.parse(device, "--device").here("--device")
    pin(owned)
    with console.status("loading"):
        executor = Executor.load(model, LoadOptions(owned, dtype=dtype))
        executors = [executor]
        if against is not None:
            os.environ[ISA_VARIABLE] = against
            executors.append(Executor.load(model, LoadOptions(owned, dtype=executor.dtype_name)))
    with console.status("measuring the floor"), torch_threads(len(owned.cores)):
        limits = measure_limits(executor.dtype_name, executor.device)
    result: dict[str, Any] = {
        "machine": machine_facts(),
        "model": executor.model_name,
        "device": executor.device_name,
        "dtype": executor.dtype_name,
        "kernels": executor.kernels,
        **({} if against is None else {"against": executors[1].kernels}),
        "load": os.getloadavg()[0],
        **limits,
        "forwards": measure_forwards(executors, limits, context, NUM_SEQUENCES, repeat, console),
    }
    if long:
        for tokens in LONG_CONTEXTS:
            result["forwards"] += measure_forwards(executors, limits, tokens, LONG_SEQUENCES, repeat, console)
        result["prompts"] = measure_prompts(executors, limits, layer_weights(executor, model), repeat, console)
    console.print(render(result))
    if generate:
        result["generate"] = compare_with_generate(executor, model, len(owned.cores), console)
    if json_path is not None:
        runs = json.loads(json_path.read_text(encoding="utf-8")) if json_path.exists() else []
        json_path.write_text(json.dumps([*runs, result], indent=1) + "\n", encoding="utf-8")


def measure_forwards(
    executors: Sequence[Executor],
    limits: dict[str, float],
    context: int,
    sizes: Sequence[int],
    repeat: int,
    console: Console,
) -> list[dict[str, float]]:
    """Return one row for each number of sequences, of `sizes`, and of new tokens; the executors take turns."""
    forwards: list[dict[str, float]] = []
    with console.status(f"caching {context} tokens of {max(sizes)} sequences"):
        for executor in executors:
            fill_cache(executor, context, max(sizes))
    for span_len, num_sequences in product(SPAN_LENS, sizes):
        with console.status(f"{num_sequences} sequences, {span_len} tokens each"):
            seconds, *others = time_forward(executors, num_sequences, span_len, context, repeat)
        floor_s = floor_seconds(executors[0], limits, num_sequences, span_len, context)
        forwards.append(
            {
                "sequences": num_sequences,
                "context": context,
                "span_len": span_len,
                "ms": seconds * 1e3,
                "tokens_per_s": num_sequences * span_len / seconds,
                "floor_ms": floor_s * 1e3,
                "ratio": seconds / floor_s,
                **as_column(others),
            }
        )
    for executor in executors:
        executor.release_all()
    return forwards


def measure_prompts(
    executors: Sequence[Executor], limits: dict[str, float], num_weights: int, repeat: int, console: Console
) -> list[dict[str, float]]:
    """Return one row for each number of tokens before a chunk of a prompt and each size of the chunk."""
    from minedraft_workers.execution.executor import ForwardSpan

    prompts: list[dict[str, float]] = []
    for start, chunk in product(PROMPT_STARTS, PROMPT_CHUNKS):
        with console.status(f"{chunk} tokens of a prompt after {start}"):
            if start:
                for executor in executors:
                    fill_cache(executor, start, 1)
            spans = [ForwardSpan(0, start, [(7 * j + 1) % executors[0].vocab_size for j in range(chunk)], 1)]
            seconds, *others = in_turns([partial(executor.forward, spans) for executor in executors], executors, repeat)
        for executor in executors:
            executor.release_all()
        floor_s = 2 * chunk * num_weights / limits["gflop_per_s"] / 1e9
        prompts.append(
            {
                "context": start,
                "chunk": chunk,
                "ms": seconds * 1e3,
                "tokens_per_s": chunk / seconds,
                "floor_ms": floor_s * 1e3,
                "ratio": seconds / floor_s,
                **as_column(others),
            }
        )
    return prompts


def in_turns(forwards: Sequence[Callable[[], object]], executors: Sequence[Executor], repeat: int) -> list[float]:
    """Return the median seconds of each."""
    turns = [
        [timed(forward, executor.device) for forward, executor in zip(forwards, executors, strict=True)]
        for _ in range(repeat)
    ]
    return [statistics.median(seconds) for seconds in zip(*turns, strict=True)]


def as_column(others: Sequence[float]) -> dict[str, float]:
    """The figure of the instruction set that the first one is held against, where there is one."""
    return {"against_ms": others[0] * 1e3} if others else {}


def layer_weights(executor: Executor, model: Path) -> int:
    """Return the number of weights that each token of a prompt is multiplied with: without the output layer."""
    from minedraft_workers.execution.loading import read_config

    hidden: int = read_config(model).get_text_config().hidden_size
    return executor.num_multiplied - executor.num_columns * hidden


def render(result: dict[str, Any]) -> Table:
    title = (
        f"{result['model']}, {result['device']}, {result['dtype']}, {result['kernels']}: "
        f"{result['read_gb_per_s']:.1f} GB/s, {result['gflop_per_s']:.0f} GFLOP/s"
    )
    table = Table("sequences", "cached", "new tokens each", "ms", "tokens/s", "floor ms", "ratio", title=title)
    formats = ["{context}", "{span_len}", "{ms:.1f}", "{tokens_per_s:.0f}", "{floor_ms:.1f}", "{ratio:.2f}"]
    if "against" in result:
        table.add_column(f"{result['against']}, ms")
        formats.append("{against_ms:.1f}")
    for row in result["forwards"]:
        table.add_row(str(row["sequences"]), *(text.format(**row) for text in formats))
    for row in result.get("prompts", []):
        table.add_row("prompt", *(text.format(span_len=row["chunk"], **row) for text in formats))
    return table


def measure_limits(dtype_name: str, device: torch.device) -> dict[str, float]:
    """Return the rates of the best of ten plain reads of 256 MB in huge pages and of ten 1024 x 2048 x 2048 matmuls;
    on a GPU of 4 GB, less if that is not free, and of 8192 x 8192 x 8192, which take it long enough to be measured."""
    import torch

    from minedraft_workers.native.tensors import huge_zeros

    num_rows, size = 1024, 2048
    if device.type == "cuda":
        array = torch.ones(min(1 << 30, torch.cuda.mem_get_info(device)[0] // 8), device=device)
        num_rows = size = 8192
    else:
        array = huge_zeros(1 << 28).view(torch.float32).fill_(1)
    # Random, because a GPU multiplies zeros and ones faster than it would ever multiply weights.
    x, w = (torch.randn(n, size, device=device).to(getattr(torch, dtype_name)) for n in (num_rows, size))
    matmul_s = best_seconds(lambda: x @ w.T, 10, device)
    read_s = best_seconds(lambda: array.sum(), 10, device)
    flop = 2 * num_rows * size * size
    return {"read_gb_per_s": array.nbytes / read_s / 1e9, "gflop_per_s": flop / matmul_s / 1e9}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch use so many threads, or one for 0; beside native kernels it keeps to one by itself."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(max(count, 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def floor_seconds(
    executor: Executor, limits: dict[str, float], num_sequences: int, span_len: int, context: int
) -> float:
    """Return the least time for reading the stored weights and the cache, or for the multiplications, if longer."""
    itemsize = 4 if executor.dtype_name == "float32" else 2
    per_token = sum(shape.num_elements for shape in executor.kv_layers)
    read = executor.read_bytes + num_sequences * (context + span_len) * per_token * itemsize
    flop = 2 * num_sequences * span_len * executor.num_multiplied
    return max(read / limits["read_gb_per_s"], flop / limits["gflop_per_s"]) / 1e9


def fill_cache(executor: Executor, context: int, num_sequences: int) -> None:
    from minedraft_workers.execution.executor import ForwardSpan

    for i in range(num_sequences):
        executor.forward([ForwardSpan(i, 0, [(7 * j + 3 * i + 1) % executor.vocab_size for j in range(context)], 0)])


def time_forward(
    executors: Sequence[Executor], num_sequences: int, span_len: int, context: int, repeat: int
) -> list[float]:
    """Return the median seconds of a forward that continues the cached sequences, always from the same place."""
    from minedraft_workers.execution.executor import ForwardSpan

    spans = [ForwardSpan(i, context, list(range(1, span_len + 1)), span_len) for i in range(num_sequences)]
    for executor in executors:
        executor.forward(spans)
    return in_turns([partial(executor.forward, spans) for executor in executors], executors, repeat)


def compare_with_generate(executor: Executor, model: Path, num_threads: int, console: Console) -> dict[str, float]:
    """Return tokens/s of both, each the best of two runs, taking turns."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts = [[(11 * j + 5 * i + 3) % executor.vocab_size for j in range(24 + 8 * i)] for i in range(GENERATE_BATCH)]
    longest = max(map(len, prompts))
    device = executor.device
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    loaded = AutoModelForCausalLM.from_pretrained(
        model, dtype=getattr(torch, executor.dtype_name), local_files_only=True
    )
    theirs = loaded.eval().to(device)
    theirs.generation_config.update(do_sample=False, temperature=None, top_p=None, top_k=None)

    def run_theirs() -> None:
        with torch_threads(num_threads):
            theirs.generate(
                ids, attention_mask=mask, min_new_tokens=NEW_TOKENS, max_new_tokens=NEW_TOKENS, pad_token_id=0
            )

    seconds: list[tuple[float, float]] = []
    for turn in range(2):
        with console.status(f"generate, turn {turn + 1} of 2"):
            seconds.append((timed(lambda: decode(executor, prompts), device), timed(run_theirs, device)))
    ours_s, theirs_s = (min(pair[i] for pair in seconds) for i in (0, 1))
    tokens = GENERATE_BATCH * NEW_TOKENS
    console.print(
        f"{GENERATE_BATCH} prompts, {NEW_TOKENS} new tokens: executor {tokens / ours_s:.0f} tokens/s, "
        f"generate {tokens / theirs_s:.0f} tokens/s, {theirs_s / ours_s:.2f} times"
    )
    return {
        "executor_tokens_per_s": tokens / ours_s,
        "generate_tokens_per_s": tokens / theirs_s,
        "ratio": theirs_s / ours_s,
    }


def decode(executor: Executor, prompts: Sequence[Sequence[int]]) -> None:
    """Generate greedy tokens for all prompts together, as the verifier does in mode ar."""
    from minedraft_workers.execution.executor import ForwardSpan

    spans = [ForwardSpan(i, 0, prompt, 1) for i, prompt in enumerate(prompts)]
    for _ in range(NEW_TOKENS):
        chosen = executor.forward(spans).argmax(-1).tolist()
        spans = [
            ForwardSpan(span.request_id, span.prefix_len + len(span.tokens), [token], 1)
            for span, token in zip(spans, chosen, strict=True)
        ]
    executor.release_all()


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds from an idle device until it has done all of `run`."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done all that it was given; on the CPU work is done when its call returns."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def best_seconds(run: Callable[[], object], repeat: int, device: torch.device) -> float:
    return min(timed(run, device) for _ in range(repeat))


if __name__ == "__main__":
    run(main, "scripts/bench/forward")
