"""scripts/bench/matrix: every mode over pairs of models, prompts, k, m, n and temperature, within a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from minedraft import AsyncClient, SamplingParams
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.plan import can_share_cores
from minedraft.bench.progress import format_left
from minedraft.bench.prompts import choose_prompts, load_prompts
from minedraft.bench.report import machine_facts
from minedraft.bench.runner import BenchConfig, measure
from minedraft.cli.console import parse_floats, parse_ints, progress_printer, run, say
from minedraft.errors import ConfigError
from minedraft.local import serve
from minedraft.models.catalogue import PAIRS, ensure_model
from scripts.lib.matrix.plan import Axes, Setting, describe_left, fit_into
from scripts.lib.matrix.store import Store

HEADS = {"smollm2-head": ("smollm2-135m-instruct", "smollm2-135m-eagle")}
MODELS = {name: (pair.target, pair.draft) for name, pair in PAIRS.items()} | HEADS
_GUESSED_TOKENS_PER_S = {"qwen": 12.0}  # of a run, before there is one of the pair
_GUESS = 120.0
_SLOW_START_S = 60.0  # of a pair's service

OpenService = Callable[[str], AbstractAsyncContextManager[AsyncClient]]


@dataclass(frozen=True, slots=True)
class MatrixOptions:
    """What every run has in common.

    Attributes:
        repeats: runs of each row. times: how often the prompts of a run take every seat.
        is_natural: answers end where the model ends them, at the latest after max_new_tokens.
    """

    max_new_tokens: int = 48
    repeats: int = 1
    times: int = 1
    is_natural: bool = True
    seed: int = 0

    def sampling(self, setting: Setting) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            ignore_eos=not self.is_natural,
            n=setting.samples,
            temperature=setting.temperature,
        )

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


class Matrix:
    """Measures settings, each with its own service of the pair, which all run at the same time and sleep while
    another one is measured.

    Args:
        open_service: starts the service of a pair.
        prompts: by kind.
        facts: of the machine, for the result file.
    """

    def __init__(
        self,
        open_service: OpenService,
        prompts: Mapping[str, Sequence[BenchPrompt]],
        options: MatrixOptions,
        store: Store,
        facts: Mapping[str, Any],
    ) -> None:
        self._open_service = open_service
        self._prompts = prompts
        self._options = options
        self._store = store
        self._facts = facts
        self._clients: dict[str, AsyncClient] = {}

    def missing(self, setting: Setting, *, shares_cores: bool = True) -> list[BenchConfig]:
        """Return the configurations of a setting that have too few runs."""
        configs = setting.configs(can_share_cores=shares_cores)
        return [c for c in configs if len(self._store.row(setting, c).runs) < self._options.repeats]

    def estimate_s(self, setting: Setting) -> float:
        """Return about how long a setting will take: its tokens over the rate of the pair's runs with about as many
        requests in flight, or over a guess."""
        rates = self._store.rates(setting.pair)
        near = min(rates, key=lambda num: abs(num - 2 * setting.size), default=0)
        rate = rates.get(near, _GUESSED_TOKENS_PER_S.get(setting.pair, _GUESS))
        num_tokens = setting.num_prompts(self._options.times) * setting.samples * self._options.max_new_tokens
        runs = sum(self._options.repeats - len(self._store.row(setting, c).runs) for c in self.missing(setting))
        starts_s = 0.0 if rates else _SLOW_START_S
        return starts_s / 10 + runs * num_tokens / rate

    async def run(self, order: Mapping[Setting, str], budget_s: float, clock: Callable[[], float]) -> list[Setting]:
        """Measure settings in their order until the next one would not fit into the time. Return those left out."""
        done, repeats = self._store.done, self._options.repeats
        left = [setting for setting in order if done.get(setting, 0) < repeats]
        start_s, used_before_s = clock(), self._store.used_s
        async with AsyncExitStack() as stack:
            while left:
                spent_s = clock() - start_s
                fitting, over = fit_into(left, budget_s - spent_s, self.estimate_s)
                if not fitting:
                    break
                say(f"{left[0].label}; {len(fitting)} fit into {format_left(budget_s - spent_s)}, {len(over)} do not")
                await self._measure(stack, left[0])
                done[left.pop(0)] = repeats
                self._store.used_s = used_before_s + clock() - start_s
                self._store.write({**self._facts, "left_out": describe_left(dict(order), left)})
        return left

    async def _measure(self, stack: AsyncExitStack, setting: Setting) -> None:
        client = self._clients.get(setting.pair)
        if client is None:
            client = await stack.enter_async_context(self._open_service(setting.pair))
            await client.complete("Hello", SamplingParams(max_new_tokens=8))  # the first forward prepares things
            self._clients[setting.pair] = client
        options = self._options
        prompts = choose_prompts(self._prompts[setting.kind], setting.num_prompts(options.times), None)
        configs = self.missing(setting, shares_cores=can_share_cores(await client.status()))
        async with client.borrow() as loan:
            for repeat in range(options.repeats):
                for index in range(len(configs)):  # rotated, so that none is always the first
                    config = configs[(index + repeat) % len(configs)]
                    if len(self._store.row(setting, config).runs) <= repeat:
                        found = await measure(client, loan, config, prompts, options.sampling(setting))
                        self._store.add(setting, config, found)
                        self._store.write(self._facts)  # a start that is killed keeps every run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--minutes", required=True, type=click.FloatRange(min=0), help="How long it may take.")
@click.option("--pairs", default=",".join(MODELS), show_default=True, help="Models.")
@click.option("--kinds", default=None, help="Kinds of prompts. [default: the first four of the file]")
@click.option("-k", "--draft-lens", default="2,1,3,4,5", show_default=True, help="The first one is the base.")
@click.option("-m", "--sizes", default="4,1,2,8,16", show_default=True, help="The first one is the base.")
@click.option("-n", "--samples", default="1,2,3", show_default=True, help="Answers per prompt.")
@click.option("--temperatures", default="0,0.8", show_default=True)
@click.option("--max-new-tokens", default=48, show_default=True, type=click.IntRange(1), help="Most of an answer.")
@click.option("--fixed-lengths", is_flag=True, help="Every answer has --max-new-tokens; else it ends by itself.")
@click.option("--repeats", default=1, show_default=True, type=click.IntRange(1), help="Runs of each row.")
@click.option("--times", default=1, show_default=True, type=click.IntRange(1), help="Prompts of a run, in 2m seats.")
@click.option("--dataset", type=click.Path(path_type=Path), default=None, help="As for minedraft bench.")
@click.option("--json", "path", type=click.Path(path_type=Path), required=True, help="Result file; it is continued.")
def main(minutes: float, path: Path, **given: Any) -> None:  # noqa: ANN401 - the options of the command
    """Measure ar, sd and minedraft over pairs of models, kinds of prompts, k, m, n and temperature.

    What fits into --minutes is measured: first the base of every pair and kind, then one axis after the other around
    it, then two together, then all. It says what it leaves out. The result file is written after every run; with
    the same file, a later start goes on where the last one ended, with more --repeats too. Run it alone on a quiet
    machine.

    \b
    Examples:
      scripts/bench/matrix --minutes 60 --json scripts/results/matrix/pairs.json
      scripts/bench/matrix --minutes 5 --pairs smollm2 -m 2 -k 1,2 -n 1 --json small.json
    """
    prompts = _by_kind(given["dataset"], given["kinds"])
    axes = Axes(
        [_known_pair(name) for name in given["pairs"].split(",")],
        list(prompts),
        parse_ints("sizes", given["sizes"], 128),
        parse_ints("samples", given["samples"], 64),
        parse_floats("temperatures", given["temperatures"], 100.0),
        parse_ints("draft-lens", given["draft_lens"], 16),
    )
    options = MatrixOptions(given["max_new_tokens"], given["repeats"], given["times"], not given["fixed_lengths"])
    models = {pair: [str(name) for name in MODELS[pair]] for pair in axes.pairs}
    facts = {"machine": machine_facts(), "models": models}
    matrix = Matrix(_services(max(axes.sizes)), prompts, options, Store(path, options.to_json()), facts)
    order = axes.in_order()
    left = asyncio.run(matrix.run(order, minutes * 60, time.monotonic))
    say(f"{len(order) - len(left)} of {len(order)} settings are in {path}")
    for line in describe_left(order, left):
        say(f"  {line}")


def _services(most: int) -> OpenService:
    def open_service(pair: str) -> AbstractAsyncContextManager[AsyncClient]:
        target, draft = (ensure_model(name, progress_printer()) for name in MODELS[pair])
        return serve(target, draft, mode="minedraft", max_batch_size=most, allow_configure=True, on_line=say)

    return open_service


def _by_kind(dataset: Path | None, kinds: str | None) -> dict[str, list[BenchPrompt]]:
    loaded = load_prompts(dataset)
    known = list(dict.fromkeys(prompt.kind for prompt in loaded))
    chosen = known[:4] if kinds is None else kinds.split(",")
    if unknown := [kind for kind in chosen if kind not in known]:
        raise ConfigError("kinds", unknown[0], f"must be of {', '.join(known)}")
    return {kind: [prompt for prompt in loaded if prompt.kind == kind] for kind in chosen}


def _known_pair(name: str) -> str:
    if name not in MODELS:
        raise ConfigError("pairs", name, f"must be of {', '.join(MODELS)}")
    return name


if __name__ == "__main__":
    run(main, "scripts/bench/matrix")
