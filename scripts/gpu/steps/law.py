"""Step law: what stays on the device is what the CPU would have decided.

Random batches are drafted and verified on the device for all rows together, and on the CPU row by row by the functions
whose law is proven. A draft model on the device keeps the tokens of a round there, and must draft as the same model
does on the CPU, whose host chooses every token. Before that its graphs are captured, as a worker does when it loads.
On a CPU the same code runs on tensors of the CPU, and nothing is captured.
"""

from __future__ import annotations

import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from minedraft.device import Device, usable_cores
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.device import pin
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.proposers.draft_model import ModelProposer
from minedraft_workers.sampling.acceptance import VerifyRow, verify
from minedraft_workers.sampling.choose import ChoiceRow, choose_drafts
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import SequenceState
from minedraft_workers.verifier import VerifierActor
from scripts.gpu.controlled.actors import make_actor
from scripts.gpu.step import Step
from scripts.gpu.steps.clock import count_syncs
from tests.support.tiny_models import add_noise, make_tiny_model

_TOGETHER = Sampler(is_batched=True)
_ROUND = RoundId(0, Batch.A, 0)
_NUM_REQUESTS, _DRAFT_LEN, _NUM_ROUNDS = 16, 4, 3
_PROMPT = (5, 17, 9, 80, 41)
_PARAMS = (
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=40, min_p=0.02),
    SamplingParams(temperature=0.9, repetition_penalty=1.2, logit_bias={7: 1.5}, min_new_tokens=4),
)
# Sizes of heads that every kind of kernel takes.
_HEADS: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16}


@dataclass(slots=True)
class Tally:
    """How many of some decisions are equal."""

    equal: int = 0
    num: int = 0

    def add(self, is_equal: bool) -> None:
        self.equal += is_equal
        self.num += 1


def check_choice(step: Step) -> None:
    """Compare choices and verdicts of random batches with those of the CPU, request by request."""
    device, drafted, decided = torch.device(step.device), Tally(), Tally()
    for number in range(step.scale.law_batches):
        rng, generator = random.Random(number), torch.Generator().manual_seed(number)
        states = [_make_state(i, rng) for i in range(_NUM_REQUESTS)]
        rows = [ChoiceRow(state, len(state.tokens)) for state in states]
        logits = 3 * torch.randn(len(rows), step.scale.law_vocab, generator=generator)
        wanted, found = choose_drafts(logits, rows), _TOGETHER.choose_drafts(logits.to(device), rows)
        for mine, theirs in zip(found.tokens, wanted.tokens, strict=True):
            drafted.add(mine == theirs)
        assert wanted.q_ids is not None, "some requests are under REJECTION"
        assert wanted.q_probs is not None, "as q_ids"
        verify_rows = [
            VerifyRow(state, [token or 0], wanted.q_ids[i : i + 1], wanted.q_probs[i : i + 1])
            for i, (state, token) in enumerate(zip(states, wanted.tokens, strict=True))
        ]
        # The target is near the drafter, so that some drafts are accepted.
        targets = (logits + torch.randn(logits.shape, generator=generator)).repeat_interleave(2, dim=0)
        outcomes = zip(_TOGETHER.verify(targets.to(device), verify_rows), verify(targets, verify_rows), strict=True)
        for outcome, expected in outcomes:
            decided.add(outcome == expected)
    entry = {"drafts": drafted.num, "drafts_equal": drafted.equal, "verdicts": decided.num}
    step.put("choice", {**entry, "verdicts_equal": decided.equal})


def _make_state(number: int, rng: random.Random) -> SequenceState:
    kind = list(Acceptance)[number % len(Acceptance)]
    params = SamplingParams() if kind is Acceptance.GREEDY else _PARAMS[number % len(_PARAMS)]
    spec = SequenceSpec(params, len(_PROMPT), rng.getrandbits(60), kind, (2,))
    return SequenceState(number, spec, [*_PROMPT, rng.randrange(100)])


class Loop:
    """A draft model on the device that keeps a round's tokens there, and the same one on the CPU that does not."""

    def __init__(self, step: Step, folder: Path, owned: Device) -> None:
        self._step = step
        self._device = torch.device(step.device)
        core = Device("cpu", usable_cores()[:1])
        self._executor = self._load(folder, owned, "auto")
        here = ModelProposer(self._executor, _TOGETHER, loops_on_device=True)
        there = ModelProposer(self._load(folder, core, "torch"), loops_on_device=False)
        info = make_actor(Role.DRAFTER, self._executor).info
        self._on_device, self._on_cpu = DrafterActor(here, info), DrafterActor(there, info)

    def _load(self, folder: Path, device: Device, kernels: str) -> Executor:
        return Executor.load(folder, LoadOptions(device, dtype="float32", num_blocks=256, kernels=kernels))

    def capture(self) -> None:
        """Capture the graphs, and write of how many sizes, in what time."""
        graphs, start_s = self._executor.graphs, time.monotonic()
        if graphs is None:
            self._step.put("graphs", {"kernels": self._executor.kernels, "captured": None})
            return
        graphs.capture(self._step.say)
        seconds = round(time.monotonic() - start_s, 2)
        is_whole = graphs.kernels.startswith("triton (graphs of up to") and "no memory" not in graphs.kernels
        self._step.put("graphs", {"kernels": graphs.kernels, "captured": is_whole, "seconds": seconds})

    def compare(self) -> None:
        """Compare the drafts of some rounds under each law, and count how often the host waits for the device."""
        found: dict[str, Any] = {}
        for kind in Acceptance:
            tally = Tally()
            tokens: list[tuple[int, ...]] = [(*_PROMPT, 30 + i) for i in range(_NUM_REQUESTS)]
            params = SamplingParams() if kind is Acceptance.GREEDY else _PARAMS[1]
            specs = [SequenceSpec(params, len(text), 7 + i, kind) for i, text in enumerate(tokens)]
            spans = [DraftSpan(i, 0, text, _DRAFT_LEN, specs[i]) for i, text in enumerate(tokens)]
            for _ in range(_NUM_ROUNDS):
                command = DraftCommand(_ROUND, tuple(spans))
                mine, theirs = (actor.draft(command).rows for actor in (self._on_device, self._on_cpu))
                for i, (own, other) in enumerate(zip(mine, theirs, strict=True)):
                    tally.add(own.tokens == other.tokens)
                    kept = len(tokens[i]) + 1
                    tokens[i] = (*tokens[i], *other.tokens[:1], 9)
                    spans[i] = DraftSpan(i, kept, (9,), _DRAFT_LEN)
            again = DraftCommand(_ROUND, tuple(spans))
            self._on_device.draft(again)
            waits = count_syncs(lambda command=again: self._on_device.draft(command), self._device)  # type: ignore[misc]
            found[kind.name] = {"drafts": tally.num, "equal": tally.equal, "draft_waits": waits}
            for actor in (self._on_device, self._on_cpu):
                actor.reset(0)
            found[kind.name]["verify_waits"] = self._count_waits_of_a_verify(specs)
        self._step.put("loop", found)

    def _count_waits_of_a_verify(self, specs: list[SequenceSpec]) -> int | None:
        actor = VerifierActor(self._executor, make_actor(Role.VERIFIER, self._executor).info, _TOGETHER)
        tokens, drafts = (*_PROMPT, 30), (7, 8, 9)
        actor.verify(
            VerifyCommand(_ROUND, tuple(VerifySpan(i, 0, tokens, drafts, spec=spec) for i, spec in enumerate(specs)))
        )
        kept = len(tokens) - 1
        again = VerifyCommand(_ROUND, tuple(VerifySpan(i, kept, tokens[-1:], drafts) for i in range(len(specs))))
        actor.verify(again)
        waits = count_syncs(lambda: actor.verify(again), self._device)
        actor.reset(0)
        return waits


def main() -> None:
    step = Step.from_argv("law")
    owned = Device.parse(step.device if step.is_cuda else f"cpu:{usable_cores()[-1]}").here()
    pin(owned)
    check_choice(step)
    with tempfile.TemporaryDirectory(prefix="minedraft-") as folder:
        loop = Loop(step, add_noise(make_tiny_model(Path(folder) / "draft", **_HEADS), 0.05), owned)
        loop.capture()
        loop.compare()
    sys.exit(0)


if __name__ == "__main__":
    main()
