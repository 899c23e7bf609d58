"""scripts/vllm: vLLM with our drafter, answered through the OpenAI client and compared with vLLM alone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import click
from rich.console import Console

from minedraft.cli.console import progress_printer, run, say
from minedraft.models.catalogue import PAIRS, ensure_pair
from scripts.lib.peers.clock import showing_steps
from scripts.lib.processes import until_told
from scripts.lib.vllm import report
from scripts.lib.vllm.comparing import compare
from scripts.lib.vllm.comparison import Comparison, Found
from scripts.lib.vllm.environment import PluginEnvironment
from scripts.lib.vllm.ways import Way

_WAYS = {way.name.lower().replace("_", "-"): way for way in Way}
_EPILOG = """
\b
By hand, on one host:
  minedraft-worker drafter --model DRAFT --device cuda:1 --listen unix:/run/d.sock
  vllm serve TARGET --scheduler-cls minedraft.vllm.scheduler.MineDraftScheduler \\
    --speculative-config '{"method": "custom_class", "num_speculative_tokens": 4,
                           "model": "minedraft.vllm.noop_proposer.NoopProposer"}' \\
    --additional-config '{"minedraft": {"drafter": "unix:/run/d.sock"}}'
  vLLM's build for CPUs has no command `vllm`: python -m vllm.entrypoints.openai.api_server --model TARGET ...
\b
The target over two hosts of 8 GPUs, the drafter on one of them. Only the host with rank 0 schedules, so only it
reaches the drafter (PLUGIN: the three flags above):
  host0$ minedraft-worker drafter --model DRAFT --device cuda:7 --listen unix:/run/d.sock
  host0$ vllm serve TARGET --tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2 --node-rank 0 \\
           --master-addr HOST0 PLUGIN
  host1$ vllm serve TARGET --tensor-parallel-size 8 --pipeline-parallel-size 2 --nnodes 2 --node-rank 1 \\
           --master-addr HOST0 --headless PLUGIN
\b
The same with Ray, the drafter on a host of its own. The plugin has no TLS, without which a worker serves no other host:
ssh carries the connection, and PLUGIN names the drafter 127.0.0.1:7000:
  far$   minedraft-worker drafter --model DRAFT --device cuda:0 --listen 127.0.0.1:7000
  host0$ ssh -N -L 7000:127.0.0.1:7000 FAR
  host0$ ray start --head --port 6379          host1$ ray start --address HOST0:6379
  host0$ vllm serve TARGET --tensor-parallel-size 16 --distributed-executor-backend ray PLUGIN
\b
Two replicas of the target with one drafter: each is a scheduler, and gets half of the drafter's KV blocks.
  minedraft-worker drafter --model DRAFT --device cuda:2 --listen unix:/run/d.sock --sessions 2
"""


@click.command(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option("--pair", type=click.Choice(list(PAIRS)), default="smollm2", show_default=True, help="Models.")
@click.option("--in-flight", "counts", default="2,4,8,16", show_default=True, metavar="LIST", help="Requests at once.")
@click.option(
    "--ways",
    default="ar,own,serial,alternating",
    show_default=True,
    metavar="LIST",
    help=f"To compare, of {', '.join(_WAYS)}.",
)
@click.option("--draft-len", type=click.IntRange(1, 16), default=3, show_default=True, help="Drafts of a request.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float32"]), default="bfloat16", show_default=True)
@click.option("--max-new-tokens", type=click.IntRange(8), default=64, show_default=True, help="Tokens of an answer.")
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Measurements of each cell.")
@click.option(
    "--paced",
    type=click.FloatRange(0, 2),
    default=0.8,
    show_default=True,
    metavar="SHARE",
    help="Then slow the drafter down to SHARE of a verify, and compare serial with alternating; 0: leave that out.",
)
@click.option("--install", is_flag=True, help="Make vLLM's environment and end.")
@click.option("--out", type=click.Path(path_type=Path), help="Write OUT.json and OUT.svg.")
def main(
    pair: str,
    counts: str,
    ways: str,
    draft_len: int,
    dtype: str,
    max_new_tokens: int,
    repeats: int,
    paced: float,
    install: bool,
    out: Path | None,
) -> None:
    """Run vLLM with our drafter in a process of its own, answer a prompt, and compare.

    Makes vLLM's environment first, its own, in the cache (4 minutes, once). All servers run at the same time and are
    asked one after the other, with the same prompts; the order changes from repeat to repeat. Each process has one
    core: the second is the verifier's, the first the drafter's, the HTTP servers' and this program's.

    \b
    ar                vLLM alone, one core            ar-wide   the same, both cores
    own               vLLM's speculation with the same draft model, in its own process on its one core
    serial            our drafter, all requests in one group: draft, verify, draft ...
    alternating       our drafter, two groups: one is drafted for while the other one is verified
    bound             the most that alternating / serial can be here, (Td(B) + Tv(B)) / (2 max(Td(B/2), Tv(B/2)))
    blocked           share of the alternating run in which a step waited for drafts
    steady            the same while all answers are in flight, as the rates: without a run's first drafts and its end

    \b
    Examples:
      scripts/vllm
      scripts/vllm --pair qwen --in-flight 4,16 --repeats 1
      scripts/vllm --ways serial,alternating --in-flight 16 --repeats 5
      scripts/vllm --out scripts/results/vllm/smollm2
    """
    environment = PluginEnvironment()
    environment.install(say)
    if install:
        return
    comparison = Comparison(
        pair=ensure_pair(pair, on_progress=progress_printer()),
        ways=_to_ways(ways),
        counts=_to_counts(counts),
        draft_len=draft_len,
        dtype=dtype,
        max_new_tokens=max_new_tokens,
        repeats=repeats,
        paced=paced,
    )
    found = Found()
    try:
        with showing_steps() as on_step:
            asyncio.run(until_told(compare(comparison, environment, found, say, on_step)))
            found.is_whole = True
    finally:
        report.show(Console(), comparison, found)
        if found.samples and not found.is_whole:
            say("interrupted: these are the figures of a part of the run")
        if found.samples and out is not None:
            report.write(comparison, found, out)
            say(f"written to {out.with_suffix('.json')} and {out.with_suffix('.svg')}")


def _to_ways(listed: str) -> list[Way]:
    names = [name.strip() for name in listed.split(",")]
    for name in names:
        if name not in _WAYS:
            raise click.BadParameter(f"{name!r}: must be one or more of {', '.join(_WAYS)}", param_hint="--ways")
    return [_WAYS[name] for name in dict.fromkeys(names)]


def _to_counts(listed: str) -> list[int]:
    parts = [part.strip() for part in listed.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 64 for part in parts):
        raise click.BadParameter(f"{listed!r}: must be numbers from 1 to 64", param_hint="--in-flight")
    return sorted(set(map(int, parts)))


if __name__ == "__main__":
    run(main, "scripts/vllm")
