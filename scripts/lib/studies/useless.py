"""scripts/bench/studies/useless: a service whose draft model is noise, before and after the watchdog has acted."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.local import serve
from minedraft.models.catalogue import ensure_pair
from minedraft.output import Output

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--target", type=click.Path(path_type=Path), help="Target folder; default: that of the default pair.")
@click.option("--in-flight", default=16, show_default=True, type=click.IntRange(2, 64), help="Requests at a time.")
@click.option("--max-new-tokens", default=96, show_default=True, help="Tokens per answer, exactly.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each service.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(target: Path | None, in_flight: int, max_new_tokens: int, repeats: int, json_path: Path | None) -> None:
    """Compare a service with random weights as its draft model with mode ar on the same cores.

    Three services run one after the other: mode ar; mode minedraft, whose watchdog suspends drafting; and mode
    minedraft that keeps drafting. The first run of each warms up, and gives the watchdog what it needs.

    \b
    Examples:
      scripts/bench/studies/useless --json useless.json
    """
    chosen = target or ensure_pair().target
    params = SamplingParams(max_new_tokens=max_new_tokens, ignore_eos=True)
    with tempfile.TemporaryDirectory() as folder:
        draft = _write_noise(chosen, Path(folder) / "noise")
        half = {"draft": draft, "mode": "minedraft", "max_batch_size": in_flight // 2, "draft_len": 3}
        services: dict[str, dict[str, Any]] = {
            "ar": {"mode": "ar", "max_batch_size": in_flight},
            "watched": half,
            "keeps drafting": half | {"keep_drafting": True},
        }
        results, answers = {}, {}
        for name, settings in services.items():
            results[name], answers[name] = asyncio.run(_measure(chosen, settings, in_flight, params, repeats))
    ar = results["ar"]["tokens_per_s"]
    for figures in results.values():
        figures["of_ar"] = figures["tokens_per_s"] / ar
    facts = {"in_flight": in_flight, "max_new_tokens": max_new_tokens, "has_equal_answers": _are_equal(answers)}
    Console().print_json(json.dumps(facts | results))
    if json_path is not None:
        text = json.dumps({"machine": machine_facts(), **facts, "services": results}, indent=1)
        json_path.write_text(text + "\n", encoding="utf-8")


def _write_noise(target: Path, folder: Path) -> Path:
    """Write a small draft model with random weights and the target's tokenizer."""
    import shutil

    import torch
    from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

    config = AutoConfig.from_pretrained(target)
    torch.manual_seed(1)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=2048,
            eos_token_id=config.eos_token_id,
            bos_token_id=config.bos_token_id,
        )
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    for name in _TOKENIZER:
        if (target / name).exists():
            shutil.copy(target / name, folder / name)
    return folder


async def _measure(
    target: Path, settings: dict[str, Any], in_flight: int, params: SamplingParams, repeats: int
) -> tuple[dict[str, Any], list[Output]]:
    prompts = [prompt.text for prompt in load_prompts(None)[:in_flight]]
    seconds: list[float] = []
    outputs: list[Output] = []
    async with serve(target, **settings, on_line=say) as client:
        for _ in range(repeats + 1):
            started_s = time.monotonic()
            outputs = await _answer(client, prompts, params)
            seconds.append(time.monotonic() - started_s)
        status = await client.status()
    num_tokens = len(prompts) * (params.max_new_tokens or 0)
    figures = {
        "first_tokens_per_s": num_tokens / seconds[0],
        "tokens_per_s": num_tokens / median(seconds[1:]),
        "drafted_tokens_of_last_run": sum(output.usage.drafted_tokens for output in outputs if output.usage),
        "state": status.state,
        "suspended": status.suspended,
        "sources": {s.name: [s.rows, s.verified_drafts, s.accepted_drafts] for s in status.sources},
        "mode": status.mode,
    }
    return figures, outputs


async def _answer(client: AsyncClient, prompts: list[str], params: SamplingParams) -> list[Output]:
    calls = [client.complete([{"role": "user", "content": prompt}], params) for prompt in prompts]
    return list(await asyncio.gather(*calls))


def _are_equal(answers: dict[str, list[Output]]) -> bool:
    return len({tuple(output.token_ids for output in outputs) for outputs in answers.values()}) == 1


if __name__ == "__main__":
    run(main, "scripts/bench/studies/useless")
