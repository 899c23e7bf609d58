"""The paper's system as a machine to simulate: its engine's time beside the GPUs', from two published numbers.

Its engine (a plugin of vLLM 0.9.2) launches kernels one by one, prepares each forward in Python, and leaves scheduling,
broadcasts, probabilities of the whole vocabulary and rejection sampling on the path between two verifies, while both
devices wait. Neither time is published, nor which GPU was used. They follow from the two absolute numbers for one cell
(32B with 1.7B, k = 2, m = 16), of which the differences and ratios leave no choice, once an acceptance is assumed:

    step_sd = m E / 433.18,  step_minedraft = m E / 541.84          E: tokens per round
    k d = step_sd - step_minedraft                                  the drafting that is hidden
    V + o = step_minedraft                                          the verify, and what the engine adds

Every other cell is a prediction from these, the models' sizes and the GPU's data sheet. The engine's time is taken to
be the same in every cell: nothing published tells how it grows with the requests.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from minedraft.sim.acceptance import easy_and_hard
from minedraft.sim.gpus import GPUS
from minedraft.sim.planning import Placed, gpu_machine
from minedraft.sim.service import Machine
from minedraft.sim.shapes import SHAPES
from minedraft.theory.costs import tokens_per_round
from scripts.lib.forecast.published import MINEDRAFT_TOKENS_PER_S, SD_TOKENS_PER_S

GPU, NUM_TARGET_GPUS = "a100", 4
ACCEPTANCE = {
    "qwen3-0.6b": 0.60,
    "qwen3-1.7b": 0.65,
    "qwen3-4b": 0.70,
    "llama-3.1-8b": 0.75,
    "vicuna-33b-eagle": 0.60,
    "vicuna-13b-eagle": 0.60,
}
"""Assumed: none is published but that a larger drafter's is higher. Ratios of methods at one k hardly depend on it."""

_PAIR, _DRAFT_LEN, _BATCH = ("qwen3-32b", "qwen3-1.7b"), 2, 16
_CONTEXT_LEN = 256


@dataclass(frozen=True, slots=True)
class EngineTimes:
    """What the engine adds, in seconds: to each draft forward, and to each verify."""

    draft_s: float
    verify_s: float


def calibrate() -> EngineTimes:
    """Return what the engine adds, by the two published numbers."""
    target, draft = (_placed(name) for name in _PAIR)
    tokens = _BATCH * tokens_per_round([ACCEPTANCE[draft.shape.name]] * _DRAFT_LEN)
    sd_step_s, overlapped_step_s = tokens / SD_TOKENS_PER_S, tokens / MINEDRAFT_TOKENS_PER_S
    forward_s = (sd_step_s - overlapped_step_s) / _DRAFT_LEN
    num_kv = _BATCH * _CONTEXT_LEN
    rows = _BATCH * (_DRAFT_LEN + 1)
    return EngineTimes(
        forward_s - draft.forward("eager").work(_BATCH, num_kv).seconds,
        overlapped_step_s - target.forward("eager").work(rows, num_kv).seconds,
    )


def reference_machine(target: str, draft: str, engine: EngineTimes) -> Machine:
    """Return the paper's system with a pair: a drafter on a GPU of its own, the target on four."""
    placed, drafter = _placed(target), _placed(draft)
    machine = gpu_machine(placed, drafter, easy_and_hard(ACCEPTANCE[draft]), link_s=0.0)
    return replace(
        machine,
        verify=placed.forward("eager", engine.verify_s),
        draft=drafter.forward("eager", engine.draft_s),
    )


def product_machine(target: str, draft: str) -> Machine:
    """Return the same GPUs with captured graphs, and messages of 0.1 ms."""
    return gpu_machine(_placed(target), _placed(draft), easy_and_hard(ACCEPTANCE[draft]))


def _placed(name: str) -> Placed:
    return Placed(SHAPES[name], GPUS[GPU], 1 if name in ACCEPTANCE else NUM_TARGET_GPUS)
