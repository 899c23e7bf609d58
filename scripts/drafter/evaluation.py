"""Stage `evaluation`: acceptance on prompts never trained on, compared with prompt lookup and the untrained cut."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import DynamicCache, LlamaForCausalLM

from scripts.drafter.acceptance import Rounds, acceptance_probability, draw_flags, walk_proposals, walk_rounds
from scripts.drafter.config import Config, EvaluationConfig
from scripts.drafter.llama import Linear, pack_linear
from scripts.drafter.prompts import KINDS
from scripts.drafter.store import DrafterError, load_tensors
from scripts.drafter.student import Student, make_batch

MODES = ("greedy", "sampled")
MAX_RELATIVE_ERROR = 0.02
SAMPLED_DRAWS = 8  # accept or reject draws of each sampled answer


@dataclass(frozen=True, slots=True)
class Answer:
    """An evaluation prompt with the target's answer."""

    tokens: list[int]  # header, prompt and answer
    start: int  # index of the answer's first token
    inputs: torch.Tensor  # [tokens after the header, hidden], the target's states after the student's prefix
    states: torch.Tensor  # [answer, hidden], the target's last states in front of each answer token
    kind: str
    mode: str


@dataclass(frozen=True, slots=True)
class Drafter:
    """A drafter to measure: a causal LM, its trained layers and the ids it may draft.

    The answers' states after the prefix are recorded, so `layers` alone give the model's last states at half the
    cost; `measure` checks on its first answer that they do.
    """

    model: LlamaForCausalLM
    layers: Student
    ids: torch.Tensor


def load_answers(folder: Path, config: Config) -> list[Answer]:
    """The target's answers to the evaluation prompts."""
    header = load_tensors(folder / "header.safetensors")["tokens"].tolist()
    tensors = load_tensors(folder / "evaluation.safetensors")
    inputs = tensors[f"state{config.answers.recorded_layers.index(config.student.prefix)}"]
    last = tensors[f"state{len(config.answers.recorded_layers)}"]
    starts = tensors["starts"].tolist()
    answers = []
    for number, (begin, end) in enumerate(pairwise(starts)):
        first = begin + int((~tensors["owned"][begin:end].bool()).nonzero()[-1]) + 1
        end = min(end, first + config.evaluation.answer_tokens)
        answers.append(
            Answer(
                header + tensors["tokens"][begin:end].tolist(),
                len(header) + first - begin,
                inputs[begin : end - 1],
                last[first - 1 : end - 1].float(),
                KINDS[int(tensors["kind"][number])],
                MODES[int(float(tensors["temperature"][number]) > 0)],
            )
        )
    return answers


def check_layers(drafter: Drafter, answer: Answer, header: torch.Tensor) -> None:
    """Compares the trained layers on recorded states with transformers' forward pass of the whole model.

    Raises:
        DrafterError: they differ by more than recording in half precision explains.
    """
    with torch.inference_mode():
        whole = drafter.model.model(torch.tensor([answer.tokens[:-1]]), use_cache=False).last_hidden_state[0]
        part = drafter.layers(make_batch(header, [answer.inputs]))
    error = float((whole - part).norm() / whole.norm())
    if error > MAX_RELATIVE_ERROR:
        raise DrafterError(
            f"the assembled model and the trained layers differ by {error:.1%}: export and answers disagree"
        )


def acceptance_of(
    drafter: Drafter, answer: Answer, header: torch.Tensor, target_rows: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The probability that each answer token came out as an accepted draft."""
    with torch.inference_mode():
        states = drafter.layers(make_batch(header, [answer.inputs]))
        to_draft = torch.full((len(target_rows),), -1)
        to_draft[drafter.ids] = torch.arange(len(drafter.ids))
        rows = drafter.model.lm_head.weight[drafter.ids]
        return acceptance_probability(
            states[answer.start - 1 :],
            answer.states,
            torch.tensor(answer.tokens[answer.start :]),
            lambda x: x @ rows.T,
            lambda x: x @ target_rows.T,
            to_draft,
            temperature,
        )


def measure(
    answers: list[Answer],
    drafters: dict[str, Drafter],
    header: torch.Tensor,
    target_rows: torch.Tensor,
    config: Config,
    report: Callable[[int], None],
) -> dict[str, Any]:
    """Rounds of every drafter by mode and kind, as plain values.

    Returns:
        {mode: {kind or "all": {drafter: {"tokens_per_round": [k = 1 ..], "accepted_at": [position 1 ..],
        "accepted_given_reached": [...]}}}}; prompt lookup is among the drafters, and so is the first of `drafters`
        with lookup ("trained + lookup").
    """
    settings = config.evaluation
    first = next(iter(drafters))
    totals: dict[tuple[str, str, str, int], Rounds] = {}

    def add(answer: Answer, name: str, k: int, rounds: Rounds) -> None:
        for kind in (answer.kind, "all"):
            key = (answer.mode, kind, name, k)
            totals[key] = totals[key] + rounds if key in totals else rounds

    for number, answer in enumerate(answers):
        draws: dict[str, list[list[bool]]] = {}
        for name, drafter in drafters.items():
            temperature = settings.temperature if answer.mode == "sampled" else 0.0
            if number == 0:
                check_layers(drafter, answer, header)
            probabilities = acceptance_of(drafter, answer, header, target_rows, temperature)
            draws[name] = draw_flags(probabilities, SAMPLED_DRAWS if temperature else 1, config.seed + number)
        for k in range(1, settings.max_k + 1):
            copied = walk_proposals(answer.tokens, answer.start, k, settings.lookup_max_ngram, None)
            add(answer, "prompt lookup", k, copied)
            for name, flags in draws.items():
                for one in flags:
                    add(answer, name, k, walk_rounds(one, k))
            for one in draws[first]:
                rounds = walk_proposals(answer.tokens, answer.start, k, settings.lookup_max_ngram, one)
                add(answer, f"{first} + lookup", k, rounds)
        report(number + 1)
    names = [*drafters, "prompt lookup", f"{first} + lookup"]
    ks = range(1, settings.max_k + 1)

    def summary(mode: str, kind: str) -> dict[str, Any]:
        return {name: _summary([totals.get((mode, kind, name, k), _none(k)) for k in ks]) for name in names}

    return {mode: {kind: summary(mode, kind) for kind in (*KINDS, "all")} for mode in MODES}


def timing(
    target: LlamaForCausalLM, drafter: LlamaForCausalLM, draft_ids: torch.Tensor, settings: EvaluationConfig
) -> dict[str, Any]:
    """t_draft (k steps) and t_verify of a batch on one core: transformers' forward with prepacked linears, fp32."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        num, k, context = settings.timing_requests, settings.timing_k, settings.timing_context
        draft_head = pack_linear(drafter.lm_head.weight[draft_ids], num)
        target_head = pack_linear(target.lm_head.weight, num * (k + 1))
        ids = torch.randint(0, target.config.vocab_size, (num, context), generator=torch.Generator().manual_seed(0))

        def verify(cache: DynamicCache) -> None:
            states = target.model(ids[:, : k + 1], past_key_values=cache, use_cache=True).last_hidden_state
            target_head(states.flatten(0, 1)).argmax(-1)

        def draft(cache: DynamicCache) -> None:
            for _ in range(k):
                states = drafter.model(ids[:, :1], past_key_values=cache, use_cache=True).last_hidden_state
                draft_head(states.flatten(0, 1)).argmax(-1)

        with packed_linears(target, num * (k + 1)):
            verify_ms = _time_ms(target, verify, ids, k + 1)
        with packed_linears(drafter, num):
            draft_ms = _time_ms(drafter, draft, ids, k)
    finally:
        torch.set_num_threads(threads)
    return {
        "executor": "transformers with prepacked linears, fp32, one core",
        "requests": num,
        "k": k,
        "context": context,
        "t_verify_ms": round(verify_ms, 1),
        "t_draft_ms": round(draft_ms, 1),
        "ratio": round(draft_ms / verify_ms, 3),
    }


@contextmanager
def packed_linears(model: LlamaForCausalLM, num_rows: int) -> Iterator[None]:
    """Gives a model's layers prepacked linears for a while, as the runtime's executor does."""
    linears = [module for module in model.model.modules() if isinstance(module, torch.nn.Linear)]

    def fast(weight: torch.Tensor) -> Linear:
        packed = pack_linear(weight, num_rows)
        return lambda x: packed(x.flatten(0, -2)).view(*x.shape[:-1], -1)

    try:
        for linear in linears:
            linear.forward = fast(linear.weight.detach())  # type: ignore[assignment, method-assign]
        yield
    finally:
        for linear in linears:
            del linear.forward


def save_plot(result: dict[str, Any], path: Path) -> None:
    """Draws rounds, acceptance by position and the training curve."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4.2))
    greedy = result["acceptance"]["greedy"]
    for kind in KINDS:
        line = axes[0].plot(
            range(1, len(greedy[kind]["trained"]["tokens_per_round"]) + 1),
            greedy[kind]["trained"]["tokens_per_round"],
            marker="o",
            label=kind,
        )
        axes[0].plot(
            range(1, len(greedy[kind]["prompt lookup"]["tokens_per_round"]) + 1),
            greedy[kind]["prompt lookup"]["tokens_per_round"],
            linestyle=":",
            color=line[0].get_color(),
        )
    axes[0].set(title="Tokens a round, greedy (dotted: prompt lookup)", xlabel="k", ylabel="tokens a round")
    axes[0].legend()
    for mode in MODES:
        values = result["acceptance"][mode]["all"]["trained"]["accepted_at"]
        axes[1].plot(range(1, len(values) + 1), values, marker="o", label=mode)
    axes[1].set(title="Drafts accepted by position", xlabel="position", ylabel="share of rounds", ylim=(0, 1))
    axes[1].legend()
    curve = result["curve"]
    tokens = [point["trained_tokens"] / 1000 for point in curve]
    for mode in MODES:
        axes[2].plot(tokens, [point[f"{mode}_tokens_per_round"] for point in curve], marker=".", label=mode)
    axes[2].set(title="Validation: tokens a round at k = 4", xlabel="trained tokens (thousands)")
    axes[2].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110, format="png")
    pyplot.close(figure)


def _summary(by_k: list[Rounds]) -> dict[str, Any]:
    longest = by_k[-1]
    reached = [longest.num_rounds, *longest.reached]
    return {
        "tokens_per_round": [round(rounds.tokens_per_round, 3) for rounds in by_k],
        "accepted_at": [round(count / max(1, longest.num_rounds), 3) for count in longest.reached],
        "accepted_given_reached": [round(after / before, 3) if before else 0.0 for before, after in pairwise(reached)],
        "rounds": longest.num_rounds,
    }


def _none(k: int) -> Rounds:
    return Rounds(0, 0, [0] * k)


def _time_ms(
    model: LlamaForCausalLM, step: Callable[[DynamicCache], None], ids: torch.Tensor, num_added: int, repeats: int = 5
) -> float:
    with torch.inference_mode():
        cache = DynamicCache()
        model.model(ids, past_key_values=cache, use_cache=True)
        times = []
        for _ in range(repeats + 1):
            # The thread's own time: on one core it is the wall's, and other programs of a busy machine do not count.
            began = time.thread_time()
            step(cache)
            times.append((time.thread_time() - began) * 1000)
            cache.crop(-num_added)
    return statistics.median(times[1:])
