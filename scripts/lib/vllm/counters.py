"""What a vLLM server counts, read from its /metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from prometheus_client.parser import text_string_to_metric_families

_DRAFTED = "vllm:spec_decode_num_draft_tokens_total"
_ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
_STEPS = "minedraft_vllm_{}_total"  # of `minedraft/vllm/monitor`


@dataclass(frozen=True, slots=True)
class StepCounts:
    """What the plugin counts of an engine's steps.

    Attributes:
        num_steps: steps with a forward. num_drafted: those in which drafts were verified.
        waited_s: seconds in which steps waited for drafts. verify_s: seconds of the forwards.
    """

    num_steps: float
    num_drafted: float
    waited_s: float
    verify_s: float


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over all labels of each counter, by name."""

    values: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the counters in a text of Prometheus' format."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if family.type in ("counter", "histogram") and "le" not in sample.labels:
                    values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return cls(values)

    def since(self, before: Counters) -> Counters:
        return Counters({name: value - before.values.get(name, 0.0) for name, value in self.values.items()})

    def __getitem__(self, name: str) -> float:
        """Return a counter's value, 0 for one that the server does not have."""
        return self.values.get(name, 0.0)

    @property
    def acceptance(self) -> float | None:
        """Share of drafts accepted; None without drafts."""
        return self[_ACCEPTED] / self[_DRAFTED] if self[_DRAFTED] else None

    @property
    def steps(self) -> StepCounts | None:
        """What the plugin has counted; None for a server without it."""
        if _STEPS.format("steps") not in self.values:
            return None
        names = ("steps", "drafted_steps", "exposed_seconds", "verify_seconds")
        return StepCounts(*(self[_STEPS.format(name)] for name in names))
