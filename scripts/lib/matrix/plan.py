"""What the matrix has, in the order in which it is measured, and how much of it fits into a time. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product

from minedraft.bench.runner import BenchConfig, default_configs
from minedraft.types import Mode


@dataclass(frozen=True, slots=True)
class Setting:
    """One point of the matrix. It has a row of each mode; those of ar do not depend on draft_len."""

    pair: str
    kind: str
    size: int
    samples: int
    temperature: float
    draft_len: int

    @property
    def label(self) -> str:
        sampling = f"n={self.samples} T={self.temperature:g}"
        return f"{self.pair}, {self.kind}: m={self.size} k={self.draft_len} {sampling}"

    def configs(self, *, can_share_cores: bool) -> list[BenchConfig]:
        """Return ar on the verifier's device and on both, sd with m and with 2m, and minedraft."""
        rows = default_configs(self.size, self.draft_len)
        return [BenchConfig(Mode.AR, 2 * self.size, 0, keeps_cores=True), *rows] if can_share_cores else rows

    def num_prompts(self, times: int) -> int:
        """Return the prompts that take the 2m seats `times` times."""
        return max(times * 2 * self.size // self.samples, 1)


@dataclass(frozen=True, slots=True)
class Axes:
    """The values of each axis; the first ones of sizes and draft_lens are the base, where the other axes are varied
    first."""

    pairs: Sequence[str]
    kinds: Sequence[str]
    sizes: Sequence[int]
    samples: Sequence[int]
    temperatures: Sequence[float]
    draft_lens: Sequence[int]

    def waves(self) -> Iterator[tuple[str, Iterable[Setting]]]:
        """Yield each wave with its settings: what is varied, around the base; the last one is the whole matrix."""
        bases = [
            Setting(pair, kind, self.sizes[0], self.samples[0], self.temperatures[0], self.draft_lens[0])
            for kind in self.kinds
            for pair in self.pairs
        ]
        yield "base", bases
        yield "k", (replace(base, draft_len=k) for k in self.draft_lens for base in bases)
        yield "m", (replace(base, size=m) for m in self.sizes for base in bases)
        sampled = [replace(base, temperature=t) for t in self.temperatures for base in bases]
        yield "temperature", sampled
        hottest = [replace(base, temperature=self.temperatures[-1]) for base in bases]
        yield "n", (replace(one, samples=n) for n in self.samples for one in hottest)
        yield "k and temperature", (replace(one, draft_len=k) for k in self.draft_lens for one in sampled)
        yield "m and temperature", (replace(one, size=m) for m in self.sizes for one in sampled)
        yield (
            "everything",
            (
                replace(base, size=m, samples=n, temperature=t, draft_len=k)
                for m, n, t, k in product(self.sizes, self.samples, self.temperatures, self.draft_lens)
                for base in bases
            ),
        )

    def in_order(self) -> dict[Setting, str]:
        """Return every setting with the name of the first wave that has it, in the order of measuring."""
        found: dict[Setting, str] = {}
        for name, settings in self.waves():
            for setting in settings:
                found.setdefault(setting, name)
        return found


def fit_into(
    settings: Iterable[Setting], budget_s: float, estimate_s: Callable[[Setting], float]
) -> tuple[list[Setting], list[Setting]]:
    """Return the settings that fit into the time, and those that do not, both in order. One that does not fit makes
    room for none after it, so that what is measured is the beginning of the order."""
    fitting: list[Setting] = []
    left: list[Setting] = []
    for setting in settings:
        budget_s -= estimate_s(setting)
        (left if left or budget_s < 0 else fitting).append(setting)
    return fitting, left


def describe_left(order: dict[Setting, str], left: Iterable[Setting]) -> list[str]:
    """Return a line for each wave that is not complete: "k and temperature: 12 of 48 settings left out"."""
    missing = Counter(order[setting] for setting in left)
    sizes = Counter(order.values())
    return [f"{name}: {missing[name]} of {sizes[name]} settings left out" for name in sizes if missing[name]]
