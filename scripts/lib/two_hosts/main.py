"""scripts/bench/network/two_hosts: measures a verifier on another host, behind a wire that delays and drops packets."""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from minedraft import AsyncClient, SamplingParams
from minedraft.address import Address
from minedraft.bench.prompts import load_prompts
from minedraft.bench.report import machine_facts
from minedraft.cli.console import run, say
from minedraft.errors import ConfigError
from minedraft.models.catalogue import ensure_pair
from minedraft.process.watched import WatchedProcess
from minedraft.process.with_parent import child_command, child_environment
from minedraft.rpc.health import INFERENCE_SERVICE, LIVE
from minedraft.security.authority import make_certificates
from scripts.lib.bench_control import write_letters
from scripts.lib.processes import serving
from scripts.lib.two_hosts.network import Network, Weather, two_hosts

TIMED, REAL = "scripts.lib.two_hosts.worker", "minedraft_workers.main"
VERIFY_MS = {4: 60.0, 8: 75.0}  # of a forward of so many requests, of the timed pair: a big target
DRAFT_MS = {4: 20.0, 8: 25.0}
PORT = 7000
DRAFT_LEN = 2
STILL = Weather()


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--pairs", default="timed,real", show_default=True, help="timed: forwards of a given time; real: models.")
@click.option("-m", "size", default=4, show_default=True, type=click.IntRange(1, 4), help="Requests per batch.")
@click.option("--delay-ms", default=20.0, show_default=True, type=click.FloatRange(0, 1000), help="Each way.")
@click.option("--loss", default=0.01, show_default=True, type=click.FloatRange(0, 0.5), help="Share of lost packets.")
@click.option("--tokens", default=40, show_default=True, type=click.IntRange(2), help="Tokens an answer.")
@click.option("--repeats", default=3, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), default=None, help="Also write the figures here.")
def main(
    pairs: str, size: int, delay_ms: float, loss: float, tokens: int, repeats: int, json_path: Path | None
) -> None:
    """Measure what a verifier on another host costs in each mode.

    The verifier runs in one network namespace, scheduler and drafter in another; the link between them has TLS with
    certificates on both ends, and a wire that delays and drops packets. Each row is measured with and without that, in
    turn. All answers must be the same. Only root can make namespaces; they are removed at the end.

    \b
    Examples:
      scripts/bench/network/two_hosts
      scripts/bench/network/two_hosts --pairs real -m 2 --delay-ms 5 --json two_hosts.json
    """
    console = Console()
    far = Weather(delay_ms / 1e3, loss)
    found: dict[str, Any] = {}
    try:
        with two_hosts() as network:
            for pair in pairs.split(","):
                found[pair] = asyncio.run(_measure(network, pair, size, far, tokens, repeats))
                _show(console, pair, found[pair])
    except (OSError, subprocess.CalledProcessError) as error:
        words = getattr(error, "stderr", b"") or str(error).encode()
        raise ConfigError("namespaces", None, f"cannot be had here: {words.decode().strip()}") from None
    if json_path is not None:
        facts = {"delay_ms_each_way": delay_ms, "loss": loss, "m": size, "k": DRAFT_LEN, "tokens_an_answer": tokens}
        timed = {"verify_ms": VERIFY_MS, "draft_ms": DRAFT_MS}
        content = {"machine": machine_facts(), **facts, "timed": timed, "pairs": found}
        json_path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


async def _measure(network: Network, pair: str, size: int, far: Weather, tokens: int, repeats: int) -> dict[str, Any]:
    """Return the rows of a pair: tokens/s in each mode, with and without delay and loss, medians."""
    rows = {"sd m": ("sd", size), "sd 2m": ("sd", 2 * size), "minedraft 2 x m": ("minedraft", size)}
    rates: dict[tuple[str, bool], list[float]] = {(name, is_far): [] for name in rows for is_far in (False, True)}
    answers: set[tuple[tuple[int, ...], ...]] = set()
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        async with _service(network, pair, Path(folder)) as client, client.borrow() as loan:
            for _ in range(repeats):
                for name, (mode, max_batch_size) in rows.items():
                    await loan.configure(mode, max_batch_size, DRAFT_LEN)
                    for is_far in (False, True):
                        network.weather = far if is_far else STILL
                        in_flight = max_batch_size * (2 if mode == "minedraft" else 1)
                        texts, elapsed_s = await _ask(client, pair, 2 * size, in_flight, tokens)
                        rates[name, is_far].append(2 * size * tokens / elapsed_s)
                        answers.add(texts)
                        say(f"{pair}, {name}, {'far' if is_far else 'still'}: {elapsed_s:.1f} s")
                network.weather = STILL
            status = await client.status()
    figures = {
        name: {
            "in_flight": max_batch_size * (2 if mode == "minedraft" else 1),
            "still": round(statistics.median(rates[name, False]), 1),
            "far": round(statistics.median(rates[name, True]), 1),
            "kept": round(
                statistics.median(b / a for a, b in zip(rates[name, False], rates[name, True], strict=True)), 2
            ),
            "runs": {key: [round(r, 1) for r in rates[name, key == "far"]] for key in ("still", "far")},
        }
        for name, (mode, max_batch_size) in rows.items()
    }
    return {
        "tokens_per_s": figures,
        "all_answers_equal": len(answers) == 1,
        "packets": network.num_packets,
        "lost_packets": network.num_lost,
        "errors": status.errors,
    }


async def _ask(
    client: AsyncClient, pair: str, num_requests: int, in_flight: int, tokens: int
) -> tuple[tuple[tuple[int, ...], ...], float]:
    """Send the requests, `in_flight` at a time. Return their tokens, and the seconds that it took."""
    known = load_prompts(None)
    params = SamplingParams(max_new_tokens=tokens, ignore_eos=True)
    room = asyncio.Semaphore(in_flight)

    async def ask(number: int) -> tuple[int, ...]:
        prompt: Any = known[number % len(known)].text if pair == "real" else [number + 1] * 8
        async with room:
            return (await client.complete(prompt, params)).token_ids

    start_s = time.monotonic()
    answers = await asyncio.gather(*(ask(number) for number in range(num_requests)))
    return tuple(answers), time.monotonic() - start_s


@asynccontextmanager
async def _service(network: Network, pair: str, folder: Path) -> AsyncIterator[AsyncClient]:
    """Run verifier, drafter and scheduler; yield a client."""
    places = make_certificates(folder / "certs", list(network.addresses), 2)
    verifier, drafter = f"{network.addresses[0]}:{PORT}", f"unix:{folder}/drafter.sock"
    listen = f"unix:{folder}/scheduler.sock"
    if pair == "real":
        models = ensure_pair()
        assert models.draft is not None, "the default pair has a draft model"
        target, module = models.target, REAL
        verifies = ["--model", str(target), "--device", "cpu:1"]
        drafts = ["--model", str(models.draft), "--device", "cpu:0"]
    else:
        target, module = folder / "letters", TIMED
        write_letters(target)
        verifies, drafts = (
            ["--tokenizer", str(target), "--times", json.dumps(times)] for times in (VERIFY_MS, DRAFT_MS)
        )
    far = child_command(module, "verifier", "--listen", verifier, "--worker-tls", str(places[0]), *verifies)
    schedules = ["--target", str(target), "--listen", listen, "--target-address", verifier, "--allow-configure"]
    schedules += ["--draft-address", drafter, "--worker-tls", str(places[1]), "--max-batch-size", "8", "--no-lookup"]
    with WatchedProcess(network.inside(0, *far), environment=child_environment()):
        near = network.inside(1)
        async with (
            serving(Address.parse(drafter), LIVE, module, "drafter", "--listen", drafter, *drafts, prefix=near),
            serving(
                Address.parse(listen), INFERENCE_SERVICE, "minedraft.server", "--keep-drafting", *schedules, prefix=near
            ),
            AsyncClient(listen) as client,
        ):
            yield client


def _show(console: Console, pair: str, found: dict[str, Any]) -> None:
    console.print(f"{pair} pair, tokens/s: without and with delay and loss, share kept")
    for name, row in found["tokens_per_s"].items():
        console.print(f"  {name:16} {row['still']:7.1f} {row['far']:7.1f}  {row['kept']:.2f}")
    share = found["lost_packets"] / max(found["packets"], 1)
    equal = "equal" if found["all_answers_equal"] else "NOT EQUAL"
    console.print(f"  all answers {equal}; {found['packets']} packets so far, {share:.1%} lost")


if __name__ == "__main__":
    run(main, "scripts/bench/network/two_hosts")
