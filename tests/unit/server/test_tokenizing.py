"""Prompts of any length: the same ids as ever, or an early refusal, and nobody waits for another's."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from tokenizers import Tokenizer as RawTokenizer

from minedraft.errors import InvalidRequest, Overloaded
from minedraft.prompts import MAX_PROMPT_BYTES, ChatPrompt, TextPrompt, TokenPrompt
from minedraft.server.tokenizing import MAX_WAITING_CHARS, PromptTokenizer
from minedraft.text.tokenizer import Tokenizer
from tests.support.tiny_models import write_tiny_tokenizer

# Tokens that reach across words and swallow white space: the worst that a cut can divide.
LONG_TOKENS = ("The small model drafts and the large", "===" * 20, "verified " * 5)
GREEDY_TOKEN = "<|user|>"


class Watched(Tokenizer):
    """The real tokenizer, which remembers what it was given, and by whom."""

    texts: list[str]
    niceness: int

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        self._watch(text)
        return super().encode(text, add_special_tokens)

    def count_tokens(self, text: str) -> int:
        self._watch(text)
        return super().count_tokens(text)

    def _watch(self, text: str) -> None:
        self.texts.append(text)
        self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    write_tiny_tokenizer(folder)
    raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
    raw.add_tokens([AddedToken(text, normalized=False) for text in LONG_TOKENS])
    raw.add_special_tokens([AddedToken(GREEDY_TOKEN, rstrip=True, special=True)])
    raw.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def tokenizer(folder: Path) -> Watched:
    tokenizer = Watched.load(folder)
    assert isinstance(tokenizer, Watched)
    tokenizer.texts = []
    return tokenizer


PARTS = [*LONG_TOKENS, GREEDY_TOKEN, " ", " " * 3000, "\n\n", "one batch ", "x", "你好世界", "🎉", "a" * 5000, "é "]


@settings(max_examples=30, deadline=None)
@example(parts=[(LONG_TOKENS[0], 292), (GREEDY_TOKEN, 223), (" " * 3000, 1)])  # a cut within the token takes its spaces
@given(parts=st.lists(st.tuples(st.sampled_from(PARTS), st.integers(1, 400)), min_size=1, max_size=6))
def test_a_prompt_that_fits_has_the_ids_of_the_whole_and_one_token_less_room_refuses_it(folder, parts) -> None:
    tokenizer = Tokenizer.load(folder)
    text = "".join(part * times for part, times in parts)[: 1 << 16]
    ids = tokenizer.encode(text)

    async def check() -> None:
        prompts = PromptTokenizer(tokenizer)
        assert list(await prompts.encode(TextPrompt(text), "a", len(ids))) == ids
        with pytest.raises(InvalidRequest, match=f"prompt is '.*tokens': at most {len(ids) - 1} fit"):
            await prompts.encode(TextPrompt(text), "a", len(ids) - 1)

    asyncio.run(check())


@pytest.mark.parametrize("unit", ["lorem ipsum ", "x", "你好世界", "a  b\n"])
@pytest.mark.parametrize("is_chat", [False, True])
async def test_a_prompt_that_cannot_fit_is_never_tokenised_whole(tokenizer, unit: str, is_chat: bool) -> None:
    text = unit * (MAX_PROMPT_BYTES // len(unit.encode()))
    prompt = ChatPrompt(({"role": "user", "content": text},)) if is_chat else TextPrompt(text)
    with pytest.raises(InvalidRequest, match="prompt is 'more than 2047 tokens': at most 2047 fit"):
        await PromptTokenizer(tokenizer).encode(prompt, "a", 2047)
    assert sum(map(len, tokenizer.texts)) < 40_000


async def test_token_ids_are_taken_as_they_are_if_they_fit(tokenizer) -> None:
    prompts = PromptTokenizer(tokenizer)
    assert await prompts.encode(TokenPrompt((5, 6)), "a", 2) == (5, 6)
    with pytest.raises(InvalidRequest, match="prompt is '3 tokens': at most 2 fit"):
        await prompts.encode(TokenPrompt((5, 6, 7)), "a", 2)


async def test_the_long_prompts_of_clients_take_turns(tokenizer) -> None:
    prompts = PromptTokenizer(tokenizer)
    sent = [("a", 1), ("a", 2), ("a", 3), ("a", 4), ("b", 1), ("c", 1), ("c", 2)]
    calls = [prompts.encode(TextPrompt(f"{name}{i} " * 800), name, 10_000) for name, i in sent]
    await asyncio.gather(*calls)
    assert [text[:2] for text in tokenizer.texts] == ["a1", "a2", "b1", "c1", "a3", "c2", "a4"]


async def test_a_request_that_has_gone_is_not_tokenised(tokenizer) -> None:
    prompts = PromptTokenizer(tokenizer)
    first, gone, last = (
        asyncio.create_task(prompts.encode(TextPrompt(f"{name} " * 800), "a", 10_000)) for name in ("1", "2", "3")
    )
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(first, last)
    assert gone.cancelled()
    assert [text[0] for text in tokenizer.texts] == ["1", "3"]


async def test_too_much_of_one_client_is_refused_and_the_others_are_not(tokenizer) -> None:
    prompts = PromptTokenizer(tokenizer)
    text = TextPrompt("x" * (MAX_WAITING_CHARS // 4))
    greedy = [asyncio.create_task(prompts.encode(text, "a", 100)) for _ in range(5)]  # one in the thread, four wait
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=f"the limit is {MAX_WAITING_CHARS}"):
        await prompts.encode(text, "a", 100)
    assert await prompts.encode(TextPrompt("modest " * 800), "b", 10_000)
    errors = await asyncio.gather(*greedy, return_exceptions=True)
    assert {type(error) for error in errors} == {InvalidRequest}


async def test_long_prompts_give_way_to_everything_else(tokenizer) -> None:
    await PromptTokenizer(tokenizer).encode(TextPrompt("x" * 5000), "a", 10_000)
    assert tokenizer.niceness > os.getpriority(os.PRIO_PROCESS, 0)


async def test_the_event_loop_goes_on_while_a_prompt_is_tokenised(tokenizer) -> None:
    text = "lorem ipsum " * 20_000
    work = asyncio.create_task(asyncio.to_thread(tokenizer.encode, text))
    started_s = last_s = time.monotonic()
    largest_gap_s = 0.0
    while not work.done():
        await asyncio.sleep(0)
        now_s = time.monotonic()
        largest_gap_s, last_s = max(largest_gap_s, now_s - last_s), now_s
    assert largest_gap_s < 0.7 * (last_s - started_s), (
        "the encoding keeps the interpreter lock from its begin to its end"
    )
