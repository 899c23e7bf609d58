"""Step alone (experiment A): the time of each role by itself on an idle device, with random weights.

For each model: forwards of m sequences with 1, 2 and 5 new tokens, against their floor; whole draft and verify
commands of the product's actors; launches and host waits. From these follow the bounds of a pair.
"""

from __future__ import annotations

import gc
import sys
import time
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from minedraft.device import Device, usable_cores
from minedraft.messages import DraftCommand, DraftSpan, VerifyCommand, VerifySpan
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, Role, RoundId, SequenceSpec
from minedraft_workers.device import pin
from minedraft_workers.drafter import DrafterActor
from minedraft_workers.execution.spans import ForwardSpan
from minedraft_workers.verifier import VerifierActor
from scripts.gpu.controlled.actors import make_actor
from scripts.gpu.controlled.executor import BLOCK_SIZE, make_executor
from scripts.gpu.controlled.shapes import SHAPES
from scripts.gpu.controlled.token_map import TokenMap
from scripts.gpu.step import Step
from scripts.gpu.steps.clock import Times, count_syncs, time_calls
from scripts.gpu.steps.facts import measure_rates
from scripts.gpu.steps.profile import profile_forward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from minedraft_workers.execution.executor import Executor

_ROUND = RoundId(0, Batch.A, 0)
_MODEL_S = 8.0  # least time in which a model's figures make sense


class Alone:
    """The measurements of one model. Everything is written when it is known."""

    def __init__(
        self,
        step: Step,
        name: str,
        executor: Executor,
        token_map: TokenMap,
        device: torch.device,
        rates: Mapping[str, float],
    ) -> None:
        self._step = step
        self._rates = rates
        self._name = name
        self._executor = executor
        self._map = token_map
        self._device = device
        self._found: dict[str, Any] = {}

    def put(self, key: str, value: object) -> None:
        self._found[key] = value
        self._step.put(self._name, self._found)

    def cache_context(self, num_sequences: int) -> None:
        """Cache the context of every sequence: random tokens, a few sequences in one forward."""
        scale = self._step.scale
        generator = torch.Generator().manual_seed(0)
        for first in range(0, num_sequences, 4):
            spans = []
            for i in range(first, min(first + 4, num_sequences)):
                ids = torch.randint(self._executor.vocab_size, (scale.context,), generator=generator)
                spans.append(ForwardSpan(i, 0, ids.tolist(), 0))
            self._executor.forward(spans)

    def measure_forwards(self, num_sequences: Sequence[int]) -> None:
        scale = self._step.scale
        self.cache_context(max(num_sequences))
        rows = []
        for m, span_len in product(num_sequences, scale.span_lens):
            tokens = self._map.answer(1, span_len)
            spans = [ForwardSpan(i, scale.context, tokens, span_len) for i in range(m)]
            times = self._time(lambda spans=spans: self._executor.forward(spans))  # type: ignore[misc]
            floor_ms = self._floor_ms(m, span_len)
            ratio = round(times.ms / floor_ms, 3)
            rows.append({"m": m, "tokens": span_len, **times.to_json(), "floor_ms": floor_ms, "ratio": ratio})
            self.put("forwards", rows)

    def measure_without_graphs(self) -> None:
        """Time the first size of forward before any graph is captured."""
        spans = self._first_spans()
        self.cache_context(len(spans))
        self.put("without_graphs", self._time(lambda: self._executor.forward(spans)).to_json())
        self._executor.release_all()

    def profile(self) -> None:
        """Profile the first size of forward. A profiler has ended processes on other machines: do it last."""
        spans = self._first_spans()
        self.cache_context(len(spans))
        self._found = self._step.of("alone").get(self._name, {})
        self.put("profile", profile_forward(lambda: self._executor.forward(spans), self._device))

    def _first_spans(self) -> list[ForwardSpan]:
        scale = self._step.scale
        m, span_len = scale.num_sequences[0], scale.span_lens[0]
        return [ForwardSpan(i, scale.context, self._map.answer(1, span_len), span_len) for i in range(m)]

    def measure_drafts(self) -> None:
        """Whole draft commands: two new tokens a request, as after full acceptance, then k drafts."""
        actor = make_actor(Role.DRAFTER, self._executor)
        assert isinstance(actor, DrafterActor), "made for the role"
        context = self._introduce(lambda spans: actor.draft(DraftCommand(_ROUND, spans)))
        rows = []
        for m, k in product(self._step.scale.command_sizes, self._step.scale.draft_lens):
            tokens = tuple(self._map.answer(1, 2))
            command = DraftCommand(_ROUND, tuple(DraftSpan(i, context, tokens, k) for i in range(m)))
            times = self._time(lambda command=command: actor.draft(command))  # type: ignore[misc]
            syncs = count_syncs(lambda command=command: actor.draft(command), self._device)  # type: ignore[misc]
            rows.append({"m": m, "k": k, **times.to_json(), "host_syncs": syncs})
            self.put("drafts", rows)

    def measure_verifies(self) -> None:
        """Whole verify commands: one new token and k drafts a request, all of them right."""
        actor = make_actor(Role.VERIFIER, self._executor)
        assert isinstance(actor, VerifierActor), "made for the role"
        context = self._introduce(
            lambda spans: actor.verify(
                VerifyCommand(
                    _ROUND, tuple(VerifySpan(s.request_id, 0, s.tokens, sample=False, spec=s.spec) for s in spans)
                )
            )
        )
        rows = []
        k = self._step.scale.draft_len
        drafts = tuple(self._map.answer(1, k))
        for m in self._step.scale.command_sizes:
            command = VerifyCommand(_ROUND, tuple(VerifySpan(i, context, (1,), drafts) for i in range(m)))
            times = self._time(lambda command=command: actor.verify(command))  # type: ignore[misc]
            assert all(verdict.accepted_len == k for verdict in actor.verify(command).rows), "the drafts are right"
            syncs = count_syncs(lambda command=command: actor.verify(command), self._device)  # type: ignore[misc]
            found = {"floor_ms": self._floor_ms(m, k + 1), "host_syncs": syncs}
            rows.append({"m": m, "k": k, **times.to_json(), **found})
            self.put("verifies", rows)

    def _introduce(self, run: Callable[[tuple[DraftSpan, ...]], object]) -> int:
        """Introduce as many requests as any command has. Return the tokens that each has cached."""
        self._executor.release_all()
        scale = self._step.scale
        spec = SequenceSpec(SamplingParams(max_new_tokens=64), scale.context, 0, Acceptance.GREEDY)
        for first in range(0, max(scale.command_sizes), 4):
            ids = range(first, min(first + 4, max(scale.command_sizes)))
            run(tuple(DraftSpan(i, 0, tuple(self._map.answer(i, scale.context)), 0, spec) for i in ids))
        return scale.context

    def _time(self, call: Callable[[], object]) -> Times:
        scale = self._step.scale
        return time_calls(call, self._device, warm=scale.warm_calls, most=scale.max_calls, within_s=scale.point_s)

    def _floor_ms(self, num_sequences: int, span_len: int) -> float:
        """Return the least time for reading the weights and the cache, or for the multiplications, if longer."""
        executor, scale = self._executor, self._step.scale
        itemsize = torch.finfo(getattr(torch, executor.dtype_name)).bits // 8
        per_token = sum(shape.num_elements for shape in executor.kv_layers) * itemsize
        read = executor.read_bytes + num_sequences * (scale.context + span_len) * per_token
        flop = 2 * num_sequences * span_len * executor.num_multiplied
        read_ms = read / self._rates["copy_gb_per_s"] / 1e6
        return round(max(read_ms, flop / self._rates["matmul_tflop_per_s"] / 1e9), 5)


def main() -> None:
    step = Step.from_argv("alone")
    # On a CPU one core: two threads on a busy machine wait for each other.
    owned = Device.parse(step.device if step.is_cuda else f"cpu:{usable_cores()[-1]}").here()
    pin(owned)
    scale = step.scale
    rates = step.of("facts")
    if "matmul_tflop_per_s" not in rates:  # that step has not run
        rates = measure_rates(step)
        step.put("rates", rates)
    failed: dict[str, str] = {}
    runs = [(name, "auto") for name in (scale.targets[0], *scale.drafters, *scale.targets[1:])]
    # What transformers' own code takes, launched piece by piece, is what the kernels must beat.
    runs[2:2] = [(name, "transformers") for name in (scale.targets[0], scale.drafters[0])]
    for shape, kernels in runs:
        name = shape if kernels == "auto" else f"{shape} in {kernels}"
        if step.left_s < _MODEL_S and step.is_cuda:
            step.put(name, {"skipped": "no time left"})
            continue
        try:
            _measure(step, name, shape, kernels, owned, rates)
        except Exception as error:  # of one model, by its memory for example: the others are measured
            failed[name] = f"{type(error).__name__}: {error}"
            step.put("failed", failed)
            step.say(f"{name} failed: {failed[name]}")
        _free(step)
    if step.left_s > _MODEL_S or not step.is_cuda:
        try:
            _profile(step, scale.targets[0], owned, rates)
        except Exception as error:
            failed["profile"] = f"{type(error).__name__}: {error}"
            step.put("failed", failed)
            step.say(f"profile failed: {failed['profile']}")
    sys.exit(1 if failed else 0)


def _free(step: Step) -> None:
    gc.collect()
    if step.is_cuda:
        torch.cuda.empty_cache()


def _make(
    step: Step, name: str, shape: str, kernels: str, owned: Device, rates: Mapping[str, float]
) -> tuple[Executor, Alone]:
    """Return a model with room for every size, and what measures it."""
    scale = step.scale
    token_map = TokenMap.make(SHAPES[shape].vocab_size, 1.0)
    sizes: dict[str, Any] = {"dtype": scale.dtype, "kernels": kernels}
    sizes["num_blocks"] = max(scale.num_sequences) * -(-(scale.context + 16) // BLOCK_SIZE) + 8
    executor = make_executor(shape, SHAPES[shape], token_map.target, owned, **sizes)
    return executor, Alone(step, name, executor, token_map, torch.device(step.device), rates)


def _profile(step: Step, shape: str, owned: Device, rates: Mapping[str, float]) -> None:
    executor, alone = _make(step, shape, shape, "auto", owned, rates)
    if executor.graphs is not None:
        executor.graphs.capture()
    alone.profile()


def _measure(step: Step, name: str, shape: str, kernels: str, owned: Device, rates: Mapping[str, float]) -> None:
    """Measure one model, whole with the kernels of its choice, and only forwards of the first size with others."""
    scale = step.scale
    num_sequences = scale.num_sequences if kernels == "auto" else scale.num_sequences[:1]
    start_s = time.monotonic()
    executor, alone = _make(step, name, shape, kernels, owned, rates)
    alone.put("build_s", round(time.monotonic() - start_s, 2))
    alone.put("read_gb", round(executor.read_bytes / 1e9, 3))
    if executor.graphs is not None:
        alone.measure_without_graphs()
        start_s = time.monotonic()
        executor.graphs.capture()
        alone.put("capture_s", round(time.monotonic() - start_s, 2))
    alone.put("kernels", executor.graphs.kernels if executor.graphs is not None else executor.kernels)
    if kernels == "auto" and shape in scale.targets:
        alone.measure_verifies()
    elif kernels == "auto":
        alone.measure_drafts()
    executor.release_all()
    alone.measure_forwards(num_sequences)
    step.say(f"{name} done, {step.left_s:.0f} s left")


if __name__ == "__main__":
    main()
