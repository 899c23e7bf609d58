"""The ways in which the service is started: each one makes another part of it work hard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tests.stress.models import CONTEXT, PairKind


@dataclass(frozen=True, slots=True)
class Preset:
    """One set of flags of the launcher (by the names of `Settings`), and what it is for."""

    name: str
    purpose: str
    flags: Mapping[str, int | str] = field(default_factory=dict)
    pair: PairKind = PairKind.EVEN
    may_overload: bool = False  # few may wait, so some requests are refused as Overloaded

    @property
    def context(self) -> int:
        """Tokens that prompt and answer of one request may have together."""
        flags = {"max_model_len": CONTEXT, "block_size": 16} | dict(self.flags)
        return min(int(flags["max_model_len"]), int(flags["num_blocks"]) * int(flags["block_size"]))

    @property
    def is_tight(self) -> bool:
        """The KV holds hardly more than one request of full length."""
        return int(self.flags["num_blocks"]) * int(self.flags.get("block_size", 16)) < 1.5 * self.context


PRESETS = {
    preset.name: preset
    for preset in (
        Preset("mixed", "the default sizes; prompts of unlike length", {"num_blocks": 400}),
        Preset(
            "tiny-kv",
            "KV for one context of 32 tokens: waiting and preemption all the time",
            {"num_blocks": 8, "block_size": 4, "max_model_len": 32, "prefill_chunk": 16},
        ),
        Preset(
            "small-kv", "KV for hardly two long requests", {"num_blocks": 28, "max_model_len": 448, "kernels": "torch"}
        ),
        Preset("small-chunk", "little KV, and prompts in many small chunks", {"num_blocks": 40, "prefill_chunk": 16}),
        Preset("big-chunk", "every prompt in one piece", {"num_blocks": 200, "prefill_chunk": 4096, "draft_len": 5}),
        Preset(
            "block-1", "KV blocks of one token, longest drafts", {"num_blocks": 600, "block_size": 1, "draft_len": 16}
        ),
        Preset(
            "short-context",
            "a context of 48 tokens, with drafts of 16",
            {"num_blocks": 16, "max_model_len": 48, "prefill_chunk": 16, "draft_len": 16},
        ),
        Preset(
            "few-seats",
            "one request a batch, few may wait, drafts of one token",
            {"num_blocks": 100, "max_batch_size": 1, "max_waiting": 8, "draft_len": 1},
            may_overload=True,
        ),
        Preset("ngram", "no draft model; little KV", {"num_blocks": 40, "draft_method": "ngram", "kernels": "torch"}),
        Preset(
            "short-drafter",
            "a draft model with a context of 64 tokens",
            {"num_blocks": 200, "draft_len": 4},
            PairKind.SHORT_DRAFTER,
        ),
        Preset(
            "wide-drafter",
            "the draft model's output layer has more rows",
            {"num_blocks": 200, "kernels": "torch"},
            PairKind.WIDE_DRAFTER,
        ),
        Preset(
            "head",
            "a drafting head; little KV, and prompts in small chunks",
            {"num_blocks": 40, "prefill_chunk": 32, "draft_len": 3},
            PairKind.HEAD,
        ),
        Preset("wide-target", "the target's output layer has more rows", {"num_blocks": 200}, PairKind.WIDE_TARGET),
    )
}
