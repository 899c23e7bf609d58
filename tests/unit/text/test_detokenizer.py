from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as RawTokenizer
from tokenizers import decoders, models, pre_tokenizers

from minedraft.text.detokenizer import ByteLevelDecoder, WindowDecoder, make_stream_decoder
from minedraft.text.tokenizer import Tokenizer
from tests.support.tiny_models import write_tiny_tokenizer


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("byte_level")
    write_tiny_tokenizer(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def byte_fallback() -> RawTokenizer:
    """Llama 2's and Gemma's kind: words with a mark for the space before them, bytes as <0xHH>."""
    words = ["<unk>", "</s>", "▁", "▁the", "▁cat", "s", "ing", "▁run", "!", "\ufffd"]
    tokens = words + [f"<0x{byte:02X}>" for byte in range(256)]
    raw = RawTokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, [], unk_token="<unk>"))
    raw.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return raw


def _stream(decoder, ids: list[int], sizes: list[int]) -> str:
    pieces, start = [], 0
    for size in [*sizes, len(ids)]:
        pieces.append(decoder.push(ids[start : start + size]))
        start += size
    return "".join(pieces) + decoder.flush()


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 330), max_size=40), sizes=st.lists(st.integers(0, 5), max_size=20))
def test_any_ids_in_any_pieces_join_to_the_one_shot_decode(byte_level, ids, sizes):
    assert _stream(byte_level.stream_decoder(), ids, sizes) == byte_level.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=30), sizes=st.lists(st.integers(0, 5), max_size=20))
def test_text_comes_back_as_it_was(byte_level, text, sizes):
    assert _stream(byte_level.stream_decoder(), byte_level.encode(text), sizes) == text


def test_no_piece_shows_half_a_character(byte_level):
    decoder = byte_level.stream_decoder()
    pieces = [decoder.push([token_id]) for token_id in byte_level.encode("é🎉")]
    assert [piece for piece in pieces if piece] == ["é", "🎉"]
    assert decoder.flush() == ""


def test_a_character_cut_off_at_the_end_is_one_replacement_character(byte_level):
    decoder = byte_level.stream_decoder()
    assert decoder.push(byte_level.encode("🎉")[:3]) == ""
    assert decoder.flush() == "\ufffd"


def test_special_tokens_are_left_out_unless_asked_for(byte_level):
    ids = byte_level.encode("<|im_start|>the<|im_end|>")
    assert _stream(byte_level.stream_decoder(), ids, []) == "the"
    assert _stream(byte_level.stream_decoder(skip_special_tokens=False), ids, []) == "<|im_start|>the<|im_end|>"


def test_an_added_token_outside_the_byte_alphabet_is_spelled_as_it_is():
    raw = RawTokenizer(models.BPE({char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    raw.decoder = decoders.ByteLevel()
    raw.add_tokens(["two words"])
    ids = raw.encode("two words").ids
    decoder = make_stream_decoder(raw, frozenset())
    assert isinstance(decoder, ByteLevelDecoder)
    assert _stream(decoder, ids, []) == raw.decode(ids) == "two words"


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.one_of(st.integers(2, 8).map(lambda i: [i]), st.characters(codec="utf-8")), max_size=20),
    sizes=st.lists(st.integers(0, 5), max_size=20),
)
def test_byte_fallback_text_joins_to_the_one_shot_decode(byte_fallback, parts, sizes):
    ids: list[int] = []
    for part in parts:
        ids += part if isinstance(part, list) else [10 + byte for byte in part.encode()]
    decoder = make_stream_decoder(byte_fallback, frozenset())
    assert isinstance(decoder, WindowDecoder)
    assert _stream(decoder, ids, sizes) == byte_fallback.decode(ids)


def test_an_answer_without_a_prompt_loses_the_space_of_its_first_word(byte_fallback):
    decoder = make_stream_decoder(byte_fallback, frozenset({1}))
    assert [decoder.push([i]) for i in (1, 3, 4, 1, 7, 6)] == ["", "the", " cat", "", " run", "ing"]


def test_the_first_word_behind_a_prompt_keeps_its_space(byte_fallback):
    decoder = make_stream_decoder(byte_fallback, frozenset({1}), prompt_ids=[1, 3, 1])
    assert [decoder.push([i]) for i in (1, 4, 7)] == ["", " cat", " run"]
    only_special = make_stream_decoder(byte_fallback, frozenset({1}), prompt_ids=[1])
    assert only_special.push([3]) == "the"


@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(st.one_of(st.integers(2, 8).map(lambda i: [i]), st.characters(codec="utf-8")), max_size=40),
    cut=st.integers(0, 200),
)
def test_prompt_and_answer_read_as_the_decode_of_both_wherever_the_prompt_ends(byte_fallback, parts, cut):
    ids: list[int] = []
    for part in parts:
        ids += part if isinstance(part, list) else [10 + byte for byte in part.encode()]
    before = make_stream_decoder(byte_fallback, frozenset()).push(ids[:cut])
    text = _stream(make_stream_decoder(byte_fallback, frozenset(), ids[:cut]), ids[cut:], [1] * 40)
    assert before + text == byte_fallback.decode(ids)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), cut=st.integers(0, 100))
def test_a_character_that_the_prompt_begins_is_completed_by_the_answer(byte_level, text, cut):
    ids = byte_level.encode(text)
    before = byte_level.stream_decoder().push(ids[:cut])
    answer = _stream(byte_level.stream_decoder(prompt_ids=ids[:cut]), ids[cut:], [1] * 40)
    assert before + answer == byte_level.decode(ids)


def _wrapped(byte_level: Tokenizer, *others: decoders.Decoder) -> RawTokenizer:
    raw = RawTokenizer.from_str(byte_level._raw.to_str())
    raw.decoder = decoders.Sequence([decoders.ByteLevel(), *others])
    return raw


@pytest.mark.parametrize("others", [(), (decoders.Fuse(),), (decoders.Strip("x", 1, 0),)])
def test_no_decoder_shows_half_a_character(byte_level, others):
    raw = _wrapped(byte_level, *others)
    ids = byte_level.encode("é🎉")
    decoder = make_stream_decoder(raw, frozenset())
    assert [piece for token_id in ids if (piece := decoder.push([token_id]))] == ["é", "🎉"]
    broken_first = byte_level.encode("🎉")[:2] * 3
    decoder = make_stream_decoder(raw, frozenset())
    pieces = [decoder.push([token_id]) for token_id in [*broken_first, *ids]]
    assert "".join(pieces) == "\ufffd" * 3 + "é🎉"


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 330), max_size=40), sizes=st.lists(st.integers(0, 5), max_size=20))
def test_any_ids_join_to_the_one_shot_decode_of_a_decoder_in_a_sequence(byte_level, ids, sizes):
    raw = _wrapped(byte_level)
    assert _stream(make_stream_decoder(raw, frozenset()), ids, sizes) == raw.decode(ids, skip_special_tokens=False)


def test_bytes_that_never_become_text_do_not_hold_back_the_answer(byte_level, byte_fallback):
    decoder = make_stream_decoder(byte_fallback, frozenset())
    shown = "".join(decoder.push([10 + 0xFF]) for _ in range(40))
    assert len(shown) == 40
    assert set(shown) == {"\ufffd"}
    assert decoder.push([3]).endswith(" the")
    in_sequence, broken = _wrapped(byte_level), byte_level.encode("🎉")[:1]
    decoder = make_stream_decoder(in_sequence, frozenset())
    shown = "".join(decoder.push(broken) for _ in range(1000))
    assert len(shown) >= 1000 - 3  # as many as may belong to an unfinished character


def test_ids_that_no_token_has_give_no_text(byte_level, byte_fallback):
    assert _stream(byte_level.stream_decoder(), [100_000], []) == ""
    assert _stream(make_stream_decoder(byte_fallback, frozenset()), [100_000], []) == ""


def test_the_fingerprint_is_of_ids_and_tokens_only(byte_level, tmp_path: Path):
    write_tiny_tokenizer(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))
    assert Tokenizer.load(tmp_path).fingerprint == byte_level.fingerprint
    write_tiny_tokenizer(tmp_path, vocab_size=319)
    assert Tokenizer.load(tmp_path).fingerprint != byte_level.fingerprint
