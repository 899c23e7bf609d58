from collections.abc import Iterable

import pytest

from minedraft.errors import InternalError
from minedraft.messages import TokenLogprobs
from minedraft.output import RequestUsage, join_outputs
from minedraft.sampling_params import SamplingParams
from minedraft.server.answers.answer import MAX_MESSAGE_CHARS, MAX_MESSAGE_TOKENS, MAX_UNSENT_TOKENS, Answer
from minedraft.server.intake import derive_seed
from minedraft.types import FinishReason

USAGE = RequestUsage(1, 99, 1, 0, 0, 0.0, 0.0, 0.0)


class Letters:
    """Token i is the letter i; capital letters come out one token late, as unfinished characters do."""

    def __init__(self) -> None:
        self._held = ""

    def push(self, ids: Iterable[int]) -> str:
        text = self._held + "".join(map(chr, ids))
        self._held = text[-1] if text[-1:].isupper() else ""
        return text.removesuffix(self._held) if self._held else text

    def flush(self) -> str:
        text, self._held = self._held, ""
        return text


class Holds:
    """A listener that remembers when the sample was to be held, and when not."""

    def __init__(self) -> None:
        self.told: list[tuple[int, bool]] = []

    def notify(self, is_end: bool) -> None:
        pass

    def hold(self, index: int, is_full: bool) -> None:
        self.told.append((index, is_full))


def answer_for(listener: Holds | None = None, **params: object) -> Answer:
    return Answer(0, Letters(), SamplingParams(**params), listener or Holds(), "r")


def feed(answer: Answer, text: str) -> bool:
    return answer.on_tokens(tuple(map(ord, text)), ())


def test_what_waits_is_sent_as_one_message_with_the_end_in_it():
    answer = answer_for()
    feed(answer, "ab")
    feed(answer, "cd")
    answer.on_finish(FinishReason.LENGTH, None, USAGE)
    (output,) = answer.take()
    assert (output.text, output.token_ids) == ("abcd", (97, 98, 99, 100))
    assert output.finish_reason is FinishReason.LENGTH
    assert output.usage is not None
    assert output.usage.output_tokens == 4
    assert list(answer.take()) == []


def test_a_message_has_a_bounded_number_of_tokens():
    answer = answer_for(max_new_tokens=4 * MAX_MESSAGE_TOKENS)
    for _ in range(3 * MAX_MESSAGE_TOKENS // 8):
        feed(answer, "abcdefgh")
    sizes = [len(output.token_ids) for output in answer.take()]
    assert sizes == [MAX_MESSAGE_TOKENS] * 3


@pytest.mark.parametrize("pieces", [["abENDcd"], ["abE", "NDcd"], list("abENDcd")])
def test_a_stop_string_cuts_text_and_tokens_wherever_it_is_split(pieces):
    answer = Answer(0, LettersPlain(), SamplingParams(stop=("END",)), Holds(), "r")
    stops = [feed(answer, piece) for piece in pieces]
    assert stops[-1]
    answer.on_finish(FinishReason.STOP, None, USAGE)
    whole = join_outputs(list(answer.take()))
    assert whole.text == "ab"
    assert whole.token_ids == tuple(map(ord, "abEND"))
    assert whole.usage is not None
    assert whole.usage.output_tokens == 5


class LettersPlain(Letters):
    def push(self, ids: Iterable[int]) -> str:
        return "".join(map(chr, ids))


def test_the_logprobs_are_cut_with_the_tokens():
    answer = Answer(0, LettersPlain(), SamplingParams(stop=("b",), logprobs=0), Holds(), "r")
    assert answer.on_tokens((97, 98, 99), tuple(TokenLogprobs(-float(i)) for i in range(3)))
    (output,) = answer.take()
    assert [entry.logprob for entry in output.logprobs] == [0.0, -1.0]


def test_text_held_back_comes_at_the_end():
    answer = answer_for(stop=("xyz",))
    feed(answer, "axyB")
    assert [output.text for output in answer.take()] == ["a"]
    answer.on_finish(FinishReason.LENGTH, None, USAGE)
    (output,) = answer.take()
    assert output.text == "xyB"
    assert output.finish_reason is FinishReason.LENGTH


def test_a_stop_string_that_only_the_flush_completes_still_stops():
    answer = answer_for(stop=("aB",))
    feed(answer, "caB")
    answer.on_finish(FinishReason.LENGTH, None, USAGE)
    whole = join_outputs(list(answer.take()))
    assert (whole.text, whole.finish_reason) == ("c", FinishReason.STOP)


def test_stop_strings_wait_for_the_minimum_length():
    answer = Answer(0, LettersPlain(), SamplingParams(stop=("a",), min_new_tokens=3), Holds(), "r")
    assert not feed(answer, "aaa")
    assert feed(answer, "ba")
    assert join_outputs(list(answer.take())).text == "aaab"


def test_samples_have_seeds_of_their_own_that_follow_from_the_first():
    seeds = [derive_seed(42, index) for index in range(64)]
    assert seeds[0] == 42
    assert len(set(seeds)) == 64
    assert seeds == [derive_seed(42, index) for index in range(64)]
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.parametrize("params", [{}, {"stop": ("a long stop string",)}])
def test_what_was_held_back_is_sent_before_an_error_and_nothing_after_it(params):
    answer = answer_for(**params)
    feed(answer, "ab a longC")
    answer.fail(InternalError("broken"))
    feed(answer, "late")
    answer.on_finish(FinishReason.ABORT, None, USAGE)
    outputs = list(answer.take())
    assert "".join(output.text for output in outputs) == "ab a longC"
    assert [output.finish_reason for output in outputs] == [None] * len(outputs)
    assert isinstance(answer.error, InternalError)
    assert answer.num_tokens == 10
    assert not answer.is_sent


def test_an_error_without_anything_to_send_sends_nothing():
    answer = answer_for()
    answer.fail(InternalError("broken"))
    assert list(answer.take()) == []


@pytest.mark.parametrize("params", [{}, {"stop": "de"}])
def test_the_rounds_of_the_tokens_are_told(params):
    answer = answer_for(**params)
    for text in ("ab", "c", "xdefg"):
        feed(answer, text)
    answer.on_finish(FinishReason.STOP, None, USAGE)
    pieces = list(answer.take())
    whole = join_outputs(pieces)
    assert whole.round_lens == ((2, 1, 3) if params else (2, 1, 5))
    assert sum(whole.round_lens) == len(whole.token_ids)


@pytest.mark.parametrize("params", [{}, {"stop": ("never",)}])
def test_what_waits_is_bounded_and_goes_on_once_all_of_it_was_taken(params):
    holds = Holds()
    answer = answer_for(holds, max_new_tokens=4 * MAX_UNSENT_TOKENS, **params)
    for _ in range(MAX_UNSENT_TOKENS // 8 + 1):
        feed(answer, "abcdefgh")
    assert holds.told == [(0, True)]
    outputs = answer.take()
    next(outputs)
    assert holds.told == [(0, True)], "half of it waits still"
    assert len(list(outputs)) == 2
    assert holds.told == [(0, True), (0, False)]
    for _ in range(MAX_UNSENT_TOKENS // 8):
        feed(answer, "abcdefgh")
    assert holds.told[2:] == [(0, True)]


def test_a_message_has_a_bounded_number_of_characters():
    class LongWords(Letters):
        def push(self, ids: Iterable[int]) -> str:
            return "🎉" * 1000 * len(list(ids))

    answer = Answer(0, LongWords(), SamplingParams(max_new_tokens=900), Holds(), "r")
    for _ in range(100):
        feed(answer, "a")
    outputs = list(answer.take())
    assert sum(len(output.token_ids) for output in outputs) == 100
    assert max(len(output.text) for output in outputs) <= MAX_MESSAGE_CHARS + 1000
