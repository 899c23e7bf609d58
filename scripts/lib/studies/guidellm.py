"""scripts/bench/doors/guidellm: a load by guidellm on the HTTP door, and its report beside our own counts."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from minedraft import AsyncClient
from minedraft.bench.report import machine_facts
from minedraft.cli.console import parse_ints, run, say
from minedraft.local import serve
from minedraft.models.catalogue import ensure_model
from scripts.lib.peers.engines.base import Say
from scripts.lib.peers.engines.environment import Environment
from scripts.lib.peers.engines.errors import PeerFailed

_GUIDELLM = "guidellm==0.8.1"
_LIMIT_S = 600
_MOST_STREAMS = 256
_MODEL = "smollm2-135m-instruct"
_LATENCIES = ("time_to_first_token_ms", "inter_token_latency_ms", "time_per_output_token_ms")


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--streams", default="1,8,16", show_default=True, help="Streams at a time, one run each.")
@click.option("--requests", default=8, show_default=True, type=click.IntRange(1), help="Requests of each stream.")
@click.option("--prompt-tokens", default=64, show_default=True, type=click.IntRange(1), help="Tokens of a prompt.")
@click.option("--output-tokens", default=64, show_default=True, type=click.IntRange(1), help="Tokens of an answer.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Write the figures here.")
def main(streams: str, requests: int, prompt_tokens: int, output_tokens: int, json_path: Path | None) -> None:
    """Load the HTTP door of the default pair with guidellm, in an environment of its own, which is made first.

    Its report has every request; each run's requests and tokens are compared with those that the service has counted.

    \b
    Examples:
      scripts/bench/doors/guidellm
      scripts/bench/doors/guidellm --streams 1,4,32 --json guidellm.json
    """
    counts = parse_ints("streams", streams, _MOST_STREAMS)
    environment = _installed()
    runs = asyncio.run(_measure(environment, counts, requests, prompt_tokens, output_tokens))
    figures = {
        "machine": machine_facts(),
        "guidellm": _GUIDELLM.partition("==")[2],
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
        "runs": runs,
    }
    if json_path is not None:
        json_path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    _show(runs)


def _installed() -> Path:
    """Return the environment's folder, made if it is not there, with the torch that is here."""
    torch = version("torch")
    requirements = (_GUIDELLM, f"torch=={torch.partition('+')[0]}")
    environment = Environment("guidellm", " ".join(requirements), size=2_000_000_000, minutes=2)

    def install(environment: Environment, say: Say) -> Mapping[str, Any]:
        environment.run([sys.executable, "-m", "venv", environment.folder])
        say("guidellm: installing with pip; it needs torch")
        pip: list[str | Path] = [
            environment.folder / "bin" / "python",
            "-m",
            "pip",
            "--disable-pip-version-check",
            "install",
        ]
        environment.run([*pip, *requirements])
        return {"requirements": list(requirements)}

    if environment.installed() is None:
        environment.install(install, say)
    return environment.folder


async def _measure(
    environment: Path, streams: Sequence[int], requests: int, prompt_tokens: int, output_tokens: int
) -> list[dict[str, Any]]:
    target = ensure_model(_MODEL)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    address = url.removeprefix("http://")
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        async with serve(max_batch_size=max(*streams, 2) // 2, http=address, model_name=_MODEL, on_line=say) as client:
            for count in streams:
                say(f"guidellm: {count} streams, {requests} requests each")
                command: list[str | Path] = [
                    environment / "bin" / "guidellm",
                    "run",
                    "--backend",
                    f"kind=openai_http,target={url},model={_MODEL}",
                    "--profile",
                    f"kind=concurrent,streams={count}",
                    "--constraint",
                    f"kind=max_requests,count={count * requests}",
                    "--tokenizer",
                    f"kind=huggingface_auto,model={target}",
                    "--data",
                    f"kind=synthetic_text,prompt_tokens={prompt_tokens},output_tokens={output_tokens}",
                    "--output",
                    f"kind=json,path={folder}/report.json",
                    "--disable-progress",
                ]
                runs.append(await _one(client, command, Path(folder), count))
    return runs


async def _one(client: AsyncClient, command: Sequence[str | Path], folder: Path, count: int) -> dict[str, Any]:
    before = await client.status()
    await _run(command, folder)
    after = await client.status()
    [benchmark] = json.loads((folder / "report.json").read_text(encoding="utf-8"))["benchmarks"]
    metrics = benchmark["metrics"]
    answered = {name: metrics[name]["successful"] for name in (*_LATENCIES, "output_token_count")}
    return {
        "streams": count,
        "requests": metrics["request_totals"],
        "output_tokens": answered["output_token_count"]["total_sum"],
        "served_requests": after.finished_requests - before.finished_requests,
        "served_tokens": after.output_tokens - before.output_tokens,
        "output_tokens_per_s": metrics["output_tokens_per_second"]["successful"]["mean"],
        **{name: {"p50": answered[name]["median"], "p95": answered[name]["percentiles"]["p95"]} for name in _LATENCIES},
    }


async def _run(command: Sequence[str | Path], folder: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    env.pop("PYTHONPATH", None)
    log = folder / "guidellm.log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            *map(str, command), cwd=folder, env=env | {"HOME": str(folder)}, stdout=out, stderr=out
        )
        try:
            code = await asyncio.wait_for(process.wait(), _LIMIT_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    if code != 0:
        raise PeerFailed(f"guidellm ended with {code}: {log.read_text(errors='replace')[-2000:]}")


def _show(runs: Sequence[Mapping[str, Any]]) -> None:
    table = Table(
        "streams", "answered", "failed", "tokens/s", "first token, ms", "between tokens, ms", "its tokens, ours"
    )
    for each in runs:
        requests = each["requests"]
        table.add_row(
            str(each["streams"]),
            str(requests["successful"]),
            str(requests["errored"] + requests["incomplete"]),
            f"{each['output_tokens_per_s']:.0f}",
            f"{each['time_to_first_token_ms']['p50']:.0f}",
            f"{each['inter_token_latency_ms']['p50']:.1f}",
            f"{each['output_tokens']:.0f}, {each['served_tokens']}",
        )
    Console().print(table)


if __name__ == "__main__":
    run(main, "scripts/bench/doors/guidellm")
