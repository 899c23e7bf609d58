"""The layouts of dataset files: how each is recognised by one of its records, and what a record's prompt is.

spec_bench    Spec-Bench, question.jsonl: github.com/hemingkx/Spec-Bench
mt_bench      MT-bench, question.jsonl: github.com/lm-sys/FastChat
speed_bench   SPEED-Bench, prepared or as published: huggingface.co/datasets/nvidia/SPEED-Bench
sharegpt      ShareGPT_V3_unfiltered_cleaned_split.json
humaneval     HumanEval.jsonl: github.com/openai/human-eval
custom        `vllm bench serve --dataset-name custom`, and our own list of {"prompt", "kind"}
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minedraft.bench.datasets.prompt import BenchPrompt

Record = Mapping[str, Any]

MT_BENCH_KINDS = frozenset({"writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"})
_PLACEHOLDER = "FULL BENCHMARK DATA SHOULD BE FETCHED"  # SPEED-Bench: texts that may not be passed on
_HUMAN = ("human", "user")


class WrongRecord(ValueError):
    """A record is not of the layout; the text says what it must have."""


@dataclass(frozen=True, slots=True)
class Layout:
    """A layout.

    Attributes:
        is_like: whether a record looks like one of this layout.
        prompt_of: the prompt of a record; None for one that has no question. Raises WrongRecord.
        expects: what a record must have, in words.
    """

    name: str
    expects: str
    is_like: Callable[[Record], bool]
    prompt_of: Callable[[Record], BenchPrompt | None]


def _turns(record: Record) -> BenchPrompt:
    first = _first_text(record.get("turns"), '"turns", a list of texts')
    return BenchPrompt(_text(record.get("category"), '"category", a text'), first)


def _speed_bench(record: Record) -> BenchPrompt:
    kind = _text(record.get("category"), '"category", a text')
    if "messages" not in record:
        prompt = BenchPrompt(kind, _first_text(record.get("turns"), '"messages" or "turns"'))
        messages: Sequence[Mapping[str, str]] = ()
    else:
        messages = _messages(record["messages"])
        prompt = BenchPrompt(kind, "\n\n".join(message["content"] for message in messages), tuple(messages))
    if _PLACEHOLDER in prompt.text:
        raise WrongRecord("the text of the prompt: this is the placeholder that SPEED-Bench's prepare script fills in")
    return prompt


def _sharegpt(record: Record) -> BenchPrompt | None:
    said = record.get("conversations")
    if not isinstance(said, list) or not all(isinstance(turn, Mapping) for turn in said):
        raise WrongRecord('"conversations", a list of {"from", "value"}')
    if len(said) < 2 or said[0].get("from") not in _HUMAN:  # as vLLM and the paper: it needs a question and an answer
        return None
    return BenchPrompt("sharegpt", _text(said[0].get("value"), '"value", a text, in its first turn'))


def _humaneval(record: Record) -> BenchPrompt:
    return BenchPrompt("humaneval", _text(record.get("prompt"), '"prompt", a text'))


def _custom(record: Record) -> BenchPrompt:
    num = record.get("output_tokens")
    if num is not None and (not isinstance(num, int) or isinstance(num, bool) or num < 1):
        raise WrongRecord('"output_tokens" that is an integer above 0, or none')
    text = _text(record.get("prompt"), '"prompt", a text')
    return BenchPrompt(str(record.get("kind", "-")), text, output_len=num)


def _has_turns(record: Record) -> bool:
    return "turns" in record and not _is_hash(record.get("question_id"))


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("sharegpt", '"conversations"', lambda r: "conversations" in r, _sharegpt),
        Layout("humaneval", '"task_id" and "prompt"', lambda r: "task_id" in r and "prompt" in r, _humaneval),
        Layout(
            "speed_bench",
            '"category" and "messages" (or "turns" and a "question_id" of 32 hexadecimal digits)',
            lambda r: "category" in r and ("messages" in r or ("turns" in r and _is_hash(r.get("question_id")))),
            _speed_bench,
        ),
        Layout("mt_bench", '"category" (of MT-bench) and "turns"', lambda r: False, _turns),
        Layout("spec_bench", '"category" and "turns"', _has_turns, _turns),
        Layout("custom", '"prompt"', lambda r: "prompt" in r, _custom),
    )
}


def recognise(records: Sequence[Record]) -> Layout | None:
    """Return the layout of the first record; None if it has none of those known. Spec-Bench and MT-bench have the
    same one, and differ in the kinds of their questions."""
    layout = next((layout for layout in LAYOUTS.values() if layout.is_like(records[0])), None)
    if layout is LAYOUTS["spec_bench"] and {record.get("category") for record in records} <= MT_BENCH_KINDS:
        return LAYOUTS["mt_bench"]
    return layout


def _is_hash(value: object) -> bool:
    return isinstance(value, str) and len(value) == 32 and all(char in "0123456789abcdef" for char in value)


def _text(value: object, expects: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise WrongRecord(expects)
    return value


def _first_text(value: object, expects: str) -> str:
    if not isinstance(value, list) or not value:
        raise WrongRecord(expects)
    return _text(value[0], expects)


def _messages(value: object) -> list[Mapping[str, str]]:
    expects = '"messages", a list of {"role", "content"} with texts'
    if not isinstance(value, list) or not value or not all(isinstance(message, Mapping) for message in value):
        raise WrongRecord(expects)
    return [{name: _text(message.get(name), expects) for name in ("role", "content")} for message in value]
