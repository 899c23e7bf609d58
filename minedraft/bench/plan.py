"""What a benchmark runs: every combination of modes, sizes, drafts, samples and temperatures."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.prompts import choose_prompts
from minedraft.bench.runner import BenchConfig, BenchRow, BenchTable, default_configs
from minedraft.output import ServiceStatus
from minedraft.sampling_params import SamplingParams
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class Sweep:
    """The values of each setting.

    Attributes:
        sizes: requests per batch (m). draft_lens: drafts per round (k). samples: answers per prompt (n).
        num_prompts: of a run; None: as many as fill 2m seats.
        prompt_seed: shuffles the prompts; None: they are taken in their order.
        can_share_cores: whether ar can run on the verifier's device alone as well as on both, and sd on both.
    """

    modes: Collection[Mode]
    sizes: Sequence[int]
    draft_lens: Sequence[int]
    samples: Sequence[int] = (1,)
    temperatures: Sequence[float] = (0.0,)
    num_prompts: int | None = None
    prompt_seed: int | None = None
    can_share_cores: bool = False

    def tables(self, prompts: Sequence[BenchPrompt], sampling: SamplingParams) -> list[BenchTable]:
        """Return a table for each m, n, temperature and k. Tables that differ in k alone share their rows of ar."""
        tables = []
        for size, num, temperature in product(self.sizes, self.samples, self.temperatures):
            chosen = choose_prompts(prompts, self.num_prompts or max(2 * size // num, 1), self.prompt_seed)
            params = replace(sampling, n=num, temperature=temperature)
            plain = [BenchRow(config) for config in self._plain(size)]
            for draft_len in self.draft_lens if any(mode.has_drafts for mode in self.modes) else self.draft_lens[:1]:
                drafted = [BenchRow(config) for config in self._drafted(size, draft_len)]
                tables.append(BenchTable(chosen, params, [*plain, *drafted]))
        return tables

    def _plain(self, size: int) -> Iterator[BenchConfig]:
        if Mode.AR in self.modes:
            if self.can_share_cores:
                yield BenchConfig(Mode.AR, 2 * size, 0, keeps_cores=True)
            yield BenchConfig(Mode.AR, 2 * size, 0)

    def _drafted(self, size: int, draft_len: int) -> Iterator[BenchConfig]:
        own = default_configs(size, draft_len, can_share_cores=self.can_share_cores)
        known = [*own, BenchConfig(Mode.PEARL, 2 * size, draft_len)]
        yield from (config for config in known if config.mode in self.modes and config.mode.has_drafts)


def can_share_cores(status: ServiceStatus) -> bool:
    """Return whether the verifier of a service can compute on the cores of its drafter."""
    devices = [worker.device for worker in status.workers]
    return len(devices) == 2 and all(device.startswith("cpu") for device in devices)
