"""The layouts of dataset files. The records are made up; their fields are those of the files of that name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minedraft.bench.datasets.files import read_dataset
from minedraft.bench.datasets.prompt import BenchPrompt
from minedraft.bench.prompts import as_prompt, choose_prompts, load_prompts
from minedraft.errors import ConfigError

HASH = "0123456789abcdef0123456789abcdef"
SPEC_BENCH = {"question_id": 161, "category": "translation", "turns": ["Translate: Guten Tag."]}
MT_BENCH = {"question_id": 81, "category": "writing", "turns": ["Write a poem.", "Now in prose."], "reference": ["x"]}
SPEED_BENCH = {
    "question_id": HASH,
    "category": "coding",
    "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Sort a list."}],
}
SPEED_BENCH_TURNS = {"question_id": HASH, "category": "low_entropy", "turns": ["Sort a list."], "source": "x"}
SHAREGPT = {"id": "a", "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]}
HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": "def f():\n",
    "entry_point": "f",
    "canonical_solution": "    pass\n",
    "test": "",
}
CUSTOM = {"prompt": "What is the capital of India?", "output_tokens": 10}


def write(folder: Path, *records: object, is_list: bool = False) -> Path:
    path = folder / "prompts.json"
    text = json.dumps(list(records)) if is_list else "\n".join(map(json.dumps, records)) + "\n"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("is_list", [False, True])
@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (SPEC_BENCH, BenchPrompt("translation", "Translate: Guten Tag.")),
        (MT_BENCH, BenchPrompt("writing", "Write a poem.")),
        (SPEED_BENCH, BenchPrompt("coding", "Be brief.\n\nSort a list.", tuple(SPEED_BENCH["messages"]))),
        (SPEED_BENCH_TURNS, BenchPrompt("low_entropy", "Sort a list.")),
        (SHAREGPT, BenchPrompt("sharegpt", "Hi?")),
        (HUMANEVAL, BenchPrompt("humaneval", "def f():\n")),
        (CUSTOM, BenchPrompt("-", "What is the capital of India?", output_len=10)),
        ({"prompt": "one", "kind": "chat"}, BenchPrompt("chat", "one")),
    ],
)
def test_a_layout_is_recognised_by_its_first_record(
    tmp_path: Path, record: dict[str, Any], expected: BenchPrompt, is_list: bool
) -> None:
    assert read_dataset(write(tmp_path, record, record, is_list=is_list)) == [expected, expected]


def test_a_packed_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    assert [prompt.kind for prompt in read_dataset(path)] == ["humaneval"]


def test_line_ends_within_a_text_are_part_of_it(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "one\u2028two\x85three"}\r\n\r\n{"prompt": "four"}', encoding="utf-8")
    assert [prompt.text for prompt in read_dataset(path)] == ["one\u2028two\x85three", "four"]


def test_conversations_without_a_question_and_an_answer_are_left_out(tmp_path: Path) -> None:
    alone = {"id": "b", "conversations": [{"from": "human", "value": "Hi?"}]}
    answer_first = {"id": "c", "conversations": [{"from": "gpt", "value": "Yes."}, {"from": "human", "value": "Hm."}]}
    assert len(read_dataset(write(tmp_path, alone, SHAREGPT, answer_first, is_list=True))) == 1
    with pytest.raises(ConfigError, match=r"prompts.json': has no prompt \(sharegpt\)"):
        read_dataset(write(tmp_path, alone, is_list=True))


@pytest.mark.parametrize(
    ("records", "is_list", "expected"),
    [
        ([SPEC_BENCH, {"question_id": 2}], False, r"json:2': must have \"turns\", a list of texts \(spec_bench\)"),
        ([MT_BENCH, {**MT_BENCH, "turns": []}], False, r"json:2': must have \"turns\", a list of texts \(mt_bench\)"),
        ([SHAREGPT, {"id": "x"}], True, r"json:entry 2': must have \"conversations\".*\(sharegpt\)"),
        ([SPEED_BENCH, {**SPEED_BENCH, "messages": [{"role": "user"}]}], False, r"json:2': must have \"messages\""),
        ([HUMANEVAL, {"task_id": "HumanEval/1"}], False, r"json:2': must have \"prompt\", a text \(humaneval\)"),
        ([CUSTOM, {"prompt": " "}], False, r"json:2': must have \"prompt\", a text \(custom\)"),
        ([{**CUSTOM, "output_tokens": 0}], False, r"json:1': must have \"output_tokens\" that is an integer above 0"),
        ([{"text": "x"}], False, r"json:1': must have the fields of a known layout \(sharegpt: .*custom: \"prompt\"\)"),
        ([CUSTOM, [1]], False, r"json:2': must be a JSON object"),
        ([], True, r"prompts.json': must have at least one record"),
    ],
)
def test_a_wrong_record_is_named_by_file_and_line(
    tmp_path: Path, records: list[Any], is_list: bool, expected: str
) -> None:
    with pytest.raises(ConfigError, match="dataset is .*" + expected):
        read_dataset(write(tmp_path, *records, is_list=is_list))


def test_texts_that_are_not_there_are_refused(tmp_path: Path) -> None:
    placeholder = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"
    with pytest.raises(ConfigError, match=r":1': must have the text of the prompt: this is the placeholder"):
        read_dataset(write(tmp_path, {**SPEED_BENCH_TURNS, "turns": [placeholder]}))


def test_a_layout_that_is_asked_for_is_not_guessed(tmp_path: Path) -> None:
    path = write(tmp_path, HUMANEVAL)
    assert read_dataset(path, "custom") == [BenchPrompt("-", "def f():\n")]
    with pytest.raises(ConfigError, match=r"must have \"turns\".*\(spec_bench\)"):
        read_dataset(path, "spec_bench")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b'{"prompt": "one"}\nnot json', ":2': must be a JSON object on each line, or one JSON list"),
        (b'[{"prompt": "one"},\n', ":2': must be a JSON object on each line, or one JSON list"),
        (b'{"prompt": "\xff"}', "must be UTF-8 text: byte 12 is not"),
        (b"\x1f\x8b\x08\x00", "cannot be read"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, expected: str) -> None:
    path = tmp_path / "prompts.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=expected):
        load_prompts(path)


def test_prompts_are_shuffled_by_the_seed_and_repeated_if_there_are_too_few() -> None:
    prompts = [BenchPrompt("-", str(number)) for number in range(10)]
    assert choose_prompts(prompts, 12, None) == [*prompts, *prompts[:2]]
    chosen = choose_prompts(prompts, 4, 0)
    assert chosen == choose_prompts(prompts, 4, 0) != choose_prompts(prompts, 4, 1)
    assert chosen != prompts[:4]
    assert len(set(choose_prompts(prompts, 10, 0))) == 10


def test_a_prompt_is_sent_as_messages_or_as_text() -> None:
    plain, conversation = BenchPrompt("-", "Hi?"), BenchPrompt("-", "a\n\nb", tuple(SPEED_BENCH["messages"]))
    assert as_prompt(plain, has_template=True) == [{"role": "user", "content": "Hi?"}]
    assert as_prompt(conversation, has_template=True) == tuple(SPEED_BENCH["messages"])
    assert as_prompt(plain, has_template=False) == "Hi?"
