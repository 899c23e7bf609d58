"""Stage `answers`: the target answers the prompts, and its hidden states are kept as soft labels.

64 sequences decode together; a sequence that ends makes room for the next prompt (continuous batching). The last
hidden state of every position is stored in half precision: with the frozen output rows it gives the target's whole
distribution back, at a hundredth of the size of the logits.
"""

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from scripts.drafter.config import AnswersConfig, Config
from scripts.drafter.llama import FastLlama
from scripts.drafter.prompts import KINDS, Prompt
from scripts.drafter.store import load_tensors, save_tensors

Report = Callable[[int, int], None]  # sequences answered, tokens generated


@dataclass(slots=True)
class Sequence:
    """One prompt being answered; `tokens` leave out the header that all sequences share."""

    prompt: Prompt
    temperature: float  # 0 is greedy
    rng: random.Random
    tokens: list[int]
    owned: list[bool]  # the target wrote this token (a given prompt's tokens are not its own)
    states: list[list[torch.Tensor]] = field(default_factory=list)  # a list of chunks for every recorded state
    forced: list[int] = field(default_factory=list)  # tokens that close a self-written user turn
    in_question: bool = False
    num_written: int = 0


class Generator:
    """Answers prompts with a target model, `slots` at a time."""

    def __init__(
        self, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, config: Config, max_answer_tokens: int = 0
    ) -> None:
        self.config: AnswersConfig = config.answers
        self.seed = config.seed
        self.max_answer_tokens = max_answer_tokens or config.answers.max_answer_tokens
        self.max_prompt_tokens = config.prompts.max_prompt_tokens
        self.tokenizer = tokenizer
        self.header, self.closing = chat_frame(tokenizer)
        self.end_id = int(tokenizer.eos_token_id)
        longest = len(self.header) + self.max_prompt_tokens + self.config.max_question_tokens
        self.fast = FastLlama(model, self.config.slots, longest + len(self.closing) + self.max_answer_tokens + 2)
        self.recorded = self.config.recorded_layers
        self.header_states = self._prefill_header()

    def run(self, prompts: Iterator[Prompt], temperature_of: Callable[[Prompt], float]) -> Iterator[Sequence]:
        """Yields answered sequences as they end; each depends on its prompt and the seed, not on its neighbours."""
        num_slots = self.config.slots
        active: list[Sequence | None] = [None] * num_slots
        next_ids = torch.zeros(num_slots, dtype=torch.long)
        positions = torch.zeros(num_slots, dtype=torch.long)
        while True:
            for slot in range(num_slots):
                while active[slot] is None:
                    prompt = next(prompts, None)
                    if prompt is None:
                        break
                    started = self._start(prompt, temperature_of(prompt))
                    if len(started.tokens) > self.max_prompt_tokens:
                        continue
                    if self._prefill(slot, started):
                        yield started
                        continue
                    active[slot] = started
            if all(sequence is None for sequence in active):
                return
            for slot, sequence in enumerate(active):
                next_ids[slot] = sequence.tokens[-1] if sequence else 0
                # An idle slot decodes too; it must not touch the header, which the slot's next sequence relies on.
                positions[slot] = len(self.header) + (len(sequence.tokens) - 1 if sequence else 0)
            states = self.fast.decode(next_ids, positions, self.recorded)
            logits = self.fast.head(states[-1])
            halves = [state.half() for state in states]
            choices = self._choose(logits, active)
            for slot, sequence in enumerate(active):
                if sequence is None:
                    continue
                for chunks, half in zip(sequence.states, halves, strict=True):
                    chunks.append(half[slot : slot + 1])
                if self._append(sequence, choices[slot]):
                    active[slot] = None
                    yield sequence

    def _start(self, prompt: Prompt, temperature: float) -> Sequence:
        ids: list[int] = self.tokenizer.encode(prompt.text, add_special_tokens=False) if prompt.text else []
        if prompt.kind == "summarising" and not prompt.is_self_written:
            ids = ids[: self.max_prompt_tokens - len(self.closing)]  # a text to summarise can be cut
        if not prompt.is_self_written:
            ids = ids + self.closing
        # The seed is the prompt's own, so an answer does not depend on which others are made with it.
        rng = random.Random(f"{self.seed} {prompt.id} {temperature}")
        return Sequence(
            prompt,
            temperature,
            rng,
            ids,
            [False] * len(ids),
            [[] for _ in range(len(self.recorded) + 1)],
            in_question=prompt.is_self_written,
        )

    def _prefill_header(self) -> list[torch.Tensor]:
        ids = torch.tensor(self.header)
        states = self.fast.prefill(0, ids, 0, self.recorded)
        num_kv, end = self.fast.num_kv_heads, len(ids)
        for cache in (self.fast.keys, self.fast.values):
            cache.view(len(self.fast.blocks), self.fast.num_slots, num_kv, self.fast.max_len, -1)[:, 1:, :, :end] = (
                cache[:, None, :num_kv, :end]
            )
        self.last_header_logits = self.fast.head(states[-1][-1:])
        return [state.half() for state in states]

    def _prefill(self, slot: int, sequence: Sequence) -> bool:
        if sequence.tokens:
            states = self.fast.prefill(slot, torch.tensor(sequence.tokens), len(self.header), self.recorded)
            for chunks, state in zip(sequence.states, states, strict=True):
                chunks.append(state.half())
            logits = self.fast.head(states[-1][-1:])
        else:
            logits = self.last_header_logits
        return self._append(sequence, self._choose(logits, [sequence])[0])

    def _choose(self, logits: torch.Tensor, active: list[Sequence | None]) -> list[int]:
        values, ids = logits.topk(self.config.top_k)
        best = ids[:, 0].tolist()
        temperatures = torch.tensor([max(self._temperature(one), 1e-3) if one else 1.0 for one in active])
        sums = torch.softmax(values / temperatures[:, None], -1).cumsum(-1)
        for row, sequence in enumerate(active):
            if sequence and self._temperature(sequence) > 0:
                rank = int((sums[row] < sequence.rng.random()).sum())
                best[row] = int(ids[row, min(rank, self.config.top_k - 1)])
        return best

    def _temperature(self, sequence: Sequence) -> float:
        return self.config.question_temperature if sequence.in_question else sequence.temperature

    def _append(self, sequence: Sequence, token: int) -> bool:
        """Adds the next token, a forced one first; returns whether the sequence is complete."""
        owned = not sequence.forced
        if sequence.forced:
            token = sequence.forced.pop(0)
        sequence.tokens.append(token)
        sequence.owned.append(owned)
        sequence.num_written += owned
        if sequence.in_question:
            if token == self.end_id or sequence.num_written >= self.config.max_question_tokens:
                sequence.forced = self.closing[1:] if token == self.end_id else list(self.closing)
                sequence.in_question, sequence.num_written = False, 0
            return False
        if not owned:
            return False
        return token == self.end_id or sequence.num_written >= self.max_answer_tokens


def chat_frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The ids before a first user turn's text and after it, from the target's own chat template."""
    mark = "\u241e"
    turn = [{"role": "user", "content": mark}]
    text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    before, after = str(text).split(mark)
    return (
        list(tokenizer.encode(before, add_special_tokens=False)),
        list(tokenizer.encode(after, add_special_tokens=False)),
    )


def make_answers(
    config: Config,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Prompt],
    folder: Path,
    max_tokens: int,
    report: Report,
    part: int = 0,
    num_parts: int = 1,
) -> None:
    """Answers validation and evaluation prompts (greedy and sampled), then training prompts up to `max_tokens`.

    Existing shards are kept: a stopped run resumes with the prompts that they lack. Several processes can share
    the work: process `part` of `num_parts` answers every `num_parts`-th prompt, into shards of its own.
    """
    generator = Generator(model, tokenizer, config)
    save_tensors(folder / "header.safetensors", pack_header(generator))
    for split in ("validation", "evaluation"):
        path = folder / f"{split}.safetensors"
        if part == 0 and not path.exists():
            held_out = [prompt for prompt in prompts if prompt.split == split]
            generator.max_answer_tokens = config.evaluation.answer_tokens
            save_tensors(path, *pack_sequences(answer_both_ways(generator, held_out)))
    generator.max_answer_tokens = config.answers.max_answer_tokens
    done, num_tokens = _stored(folder, part)
    report(len(done), num_tokens)
    training = [prompt for prompt in prompts if prompt.split == "training"][part::num_parts]
    todo = (prompt for prompt in training if prompt.id not in done)
    shard: list[Sequence] = []
    number = len(shard_paths(folder, part))
    try:
        for sequence in generator.run(todo, lambda prompt: _temperature(config, prompt)):
            shard.append(sequence)
            num_tokens += len(sequence.tokens)
            done.add(sequence.prompt.id)
            report(len(done), num_tokens)
            if len(shard) >= config.answers.shard_sequences:
                save_tensors(folder / f"shard-{part}-{number:04d}.safetensors", *pack_sequences(shard))
                number, shard = number + 1, []
            if num_tokens >= max_tokens:
                break
    finally:
        # Reached by Ctrl-C too: finished answers are kept.
        if shard:
            save_tensors(folder / f"shard-{part}-{number:04d}.safetensors", *pack_sequences(shard))


def answer_both_ways(generator: Generator, prompts: list[Prompt]) -> list[Sequence]:
    """Greedy and sampled answers of the same prompts, in the order of the prompts, all greedy ones first."""
    both = [*((prompt, 0.0) for prompt in prompts), *((prompt, generator.config.temperature) for prompt in prompts)]
    temperatures = iter([temperature for _, temperature in both])
    order = {(prompt.id, temperature): number for number, (prompt, temperature) in enumerate(both)}
    answered = list(generator.run((prompt for prompt, _ in both), lambda _: next(temperatures)))
    return sorted(answered, key=lambda one: order[one.prompt.id, one.temperature])


def shard_paths(folder: Path, part: int | None = None) -> list[Path]:
    """The present shards of one part or of all, oldest first: a resumed training reads them in the same order."""
    paths = folder.glob(f"shard-{'*' if part is None else part}-*.safetensors")
    return sorted(paths, key=lambda path: (path.stat().st_mtime_ns, path.name))


def pack_header(generator: Generator) -> dict[str, torch.Tensor]:
    """The shared header's ids and states."""
    tensors = {f"state{index}": state for index, state in enumerate(generator.header_states)}
    return {"tokens": torch.tensor(generator.header, dtype=torch.int32), **tensors}


def pack_sequences(sequences: list[Sequence]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and metadata of a shard: tokens and states end to end, `starts` says where each sequence begins."""
    lengths = [len(sequence.tokens) for sequence in sequences]
    tensors = {
        "tokens": torch.tensor([token for one in sequences for token in one.tokens], dtype=torch.int32),
        "owned": torch.tensor([owned for one in sequences for owned in one.owned], dtype=torch.uint8),
        "starts": torch.tensor([0, *lengths]).cumsum(0),
        "temperature": torch.tensor([one.temperature for one in sequences]),
        "kind": torch.tensor([KINDS.index(one.prompt.kind) for one in sequences], dtype=torch.uint8),
    }
    num_states = len(sequences[0].states)
    for index in range(num_states):
        rows = []
        for one in sequences:
            state = torch.cat(one.states[index]) if one.states[index] else torch.zeros(0, 0, dtype=torch.half)
            # The last token was never run through the target: its row is zero and no loss uses it.
            rows.append(torch.cat([state, torch.zeros(len(one.tokens) - len(state), state.shape[1]).half()]))
        tensors[f"state{index}"] = torch.cat(rows)
    return tensors, {"prompts": json.dumps([one.prompt.id for one in sequences])}


def _temperature(config: Config, prompt: Prompt) -> float:
    is_sampled = random.Random(f"{config.seed} {prompt.id}").random() < config.answers.sampled_share
    return config.answers.temperature if is_sampled else 0.0


def _stored(folder: Path, part: int) -> tuple[set[str], int]:
    done: set[str] = set()
    num_tokens = 0
    for path in shard_paths(folder, part):
        num_tokens += len(load_tensors(path)["tokens"])
        done.update(read_prompt_ids(path))
    return done, num_tokens


def read_prompt_ids(path: Path) -> list[str]:
    """The ids of the prompts that a shard's sequences answer, in order."""
    with safe_open(path, "pt") as file:
        ids: list[str] = json.loads(file.metadata()["prompts"])
    return ids
