"""scripts/bench/sampling: compares the time to choose a token with one pass over its logits."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from minedraft.bench.report import machine_facts
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from scripts.lib.bench_kernels import interleaved

if TYPE_CHECKING:
    import torch

    from minedraft_workers.sampling.acceptance import VerifyRow
    from minedraft_workers.sampling.choose import ChoiceRow
    from minedraft_workers.sampling.sampler import Sampler

NUM_COLUMNS = 49152  # of SmolLM2
ROWS = (1, 4, 16)
PROMPT_LEN = 200
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature 0.7": {"temperature": 0.7},
    "top-k 50": {"top_k": 50},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "top-k 50, top-p 0.9": {"top_k": 50, "top_p": 0.9},
    "penalties": {"repetition_penalty": 1.2, "presence_penalty": 0.5},
}
# (rule, kind) of request: greedy ones have no truncation.
REQUESTS = [
    (Acceptance.GREEDY, "plain"),
    (Acceptance.GREEDY, "penalties"),
    *product((Acceptance.COUPLED, Acceptance.REJECTION), KINDS),
]


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--core", default=0, show_default=True, help="The core to run on.")
@click.option("--isa", default="auto", show_default=True, help="auto, amx_bf16, avx512_bf16, avx512, avx2 or scalar.")
@click.option("--repeat", default=9, show_default=True, help="Measurements of each; the median counts.")
@click.option("--target", type=click.Path(path_type=Path, exists=True), default=None, help="Model folder.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures to this file."
)
def main(core: int, isa: str, repeat: int, target: Path | None, json_path: Path | None) -> None:
    """Measure what a worker spends on choosing tokens, on one core, host code included.

    \b
    native  all rows in one call of the native kernels
    torch   the reference, which a GPU and --kernels torch use
    floor   one pass over the logits by NumPy: the maximum of every row
    draft   one draft token of each request; microseconds a row
    verify  a draft and what follows it, of each request; microseconds a position that is decided
    \b
    Logits are the model's own in the folder --target, after the words of an English text; without one they are
    random, and fall with the logarithm of their rank, as a model's do. The two take turns, so that other work
    on the machine meets both; times are of the thread.

    \b
    Examples:
      scripts/bench/sampling
      scripts/bench/sampling --core 1 --json sampling.json
    """
    os.sched_setaffinity(0, {core})
    import torch

    from minedraft_workers.native.choosing import ChoosingKernels
    from minedraft_workers.sampling.sampler import Sampler

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    kernels = ChoosingKernels(isa)
    samplers = Sampler(kernels), Sampler()
    logits = random_logits(2 * max(ROWS)) if target is None else model_logits(target, 2 * max(ROWS))
    with Console(stderr=True).status("measuring"):
        rows = list(measure(samplers, logits, repeat))
    name = "random" if target is None else target.name
    Console().print(as_table(f"microseconds a row of {NUM_COLUMNS} columns, {kernels.isa}, logits: {name}", rows))
    if json_path is not None:
        content = {"machine": machine_facts(), "isa": kernels.isa, "columns": logits.shape[1], "logits": name}
        json_path.write_text(json.dumps({**content, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def measure(samplers: Sequence[Sampler], logits: torch.Tensor, repeat: int) -> Iterator[dict[str, Any]]:
    for num_rows, (acceptance, kind) in product(ROWS, REQUESTS):
        drafting, verifying = make_rows(samplers[0], logits, acceptance, kind, num_rows)
        firsts, pairs = logits[:num_rows], logits[: 2 * num_rows]
        num_decided = sum(len(outcome.tokens) for outcome in samplers[0].verify(pairs, verifying))
        calls: list[Callable[[], object]] = [partial(firsts.numpy().max, -1)]
        for sampler in samplers:
            calls.append(partial(sampler.choose_drafts, firsts, drafting))
            calls.append(partial(sampler.verify, pairs, verifying))
        floor, draft, verify, torch_draft, torch_verify = interleaved([[call] for call in calls], repeat)
        floor, draft, torch_draft = (us / num_rows for us in (floor, draft, torch_draft))
        verify, torch_verify = verify / num_decided, torch_verify / num_decided
        yield {
            "rule": acceptance.name.lower(),
            "kind": kind,
            "rows": num_rows,
            "floor_us": floor,
            "draft_us": draft,
            "draft_of_floor": draft / floor,
            "draft_torch_us": torch_draft,
            "verify_us": verify,
            "verify_of_floor": verify / floor,
            "verify_torch_us": torch_verify,
        }


def make_rows(
    sampler: Sampler, logits: torch.Tensor, acceptance: Acceptance, kind: str, num_rows: int
) -> tuple[list[ChoiceRow], list[VerifyRow]]:
    """Rows to draft for, and the same with the drafts that come of it to verify."""
    from minedraft_workers.sampling.acceptance import VerifyRow
    from minedraft_workers.sampling.choose import ChoiceRow
    from minedraft_workers.sequence import SequenceState

    temperature = 0.0 if acceptance is Acceptance.GREEDY else 1.0
    params = SamplingParams(**{"temperature": temperature, **KINDS[kind]})
    states = [
        SequenceState(seed, SequenceSpec(params, PROMPT_LEN, seed, acceptance), range(PROMPT_LEN + 50))
        for seed in range(num_rows)
    ]
    drafting = [ChoiceRow(state, len(state.tokens)) for state in states]
    # Row 2 i of the pairs is not row i of the drafts: some drafts are accepted, some are not.
    choice = sampler.choose_drafts(logits[: 2 * num_rows : 2], drafting)
    verifying = []
    for index, (state, token) in enumerate(zip(states, choice.tokens, strict=True)):
        assert token is not None, "the logits are finite"
        if choice.q_ids is None or choice.q_probs is None:
            verifying.append(VerifyRow(state, [token]))
        else:
            verifying.append(VerifyRow(state, [token], choice.q_ids[index, None], choice.q_probs[index, None]))
    return drafting, verifying


def random_logits(num_rows: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    falling = -2.0 * torch.arange(1, NUM_COLUMNS + 1).log()
    rows = torch.stack([falling[torch.randperm(NUM_COLUMNS, generator=generator)] for _ in range(num_rows)])
    return rows + 0.5 * torch.randn(rows.shape, generator=generator)


def model_logits(folder: Path, num_rows: int) -> torch.Tensor:
    """The model's logits after the first words, and more and more of them, of its own prompts."""
    import torch
    from transformers import AutoModelForCausalLM

    from minedraft.bench.prompts import load_prompts
    from minedraft.text.tokenizer import Tokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    text = " ".join(prompt.text for prompt in load_prompts(None))
    ids = torch.tensor([Tokenizer.load(folder).encode(text)[: 8 + num_rows]])
    logits: torch.Tensor = model(ids).logits[0, -num_rows:].contiguous()
    return logits


def as_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(
        "rule", "kind", "rows", "floor", "draft", "x floor", "torch", "verify", "x floor", "torch", title=title
    )
    for row in rows:
        texts = [row["rule"], row["kind"], str(row["rows"])]
        table.add_row(*texts, *(f"{row[name]:.1f}" for name in list(row)[3:]))
    return table


if __name__ == "__main__":
    main(prog_name="scripts/bench/sampling")
