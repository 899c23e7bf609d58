"""Messages of one number of tokens and one size: nothing is lost, and the cuts say nothing about rounds."""

from __future__ import annotations

import random

import pytest

from minedraft.messages import TokenLogprobs
from minedraft.output import Output, RequestUsage, join_outputs
from minedraft.rpc.codec.inference import output_from_pb, output_to_pb, pad_reply
from minedraft.server.answers.even_pieces import EvenPieces, block_bytes
from minedraft.types import FinishReason

USAGE = RequestUsage(3, 40, 20, 40, 20, 0.1, 0.2, 0.9)


def pieces(lengths: list[int], seed: int = 0) -> list[Output]:
    """Pieces of one answer with so many tokens each, the last with its end."""
    rng = random.Random(seed)
    found = []
    for length in lengths:
        ids = tuple(rng.randrange(50_000) for _ in range(length))
        marks = tuple(TokenLogprobs(-float(id), (), ()) for id in ids)
        found.append(
            Output("".join(f"<{id}>" for id in ids), ids, logprobs=marks, round_lens=(length,), request_id="r")
        )
    found[-1] = Output(
        found[-1].text, found[-1].token_ids, FinishReason.LENGTH, USAGE, found[-1].logprobs, request_id="r"
    )
    return found


def evened(outputs: list[Output], num_tokens: int) -> list[Output]:
    even = EvenPieces(num_tokens)
    return [piece for output in outputs for piece in even.push(output)]


@pytest.mark.parametrize("num_tokens", [1, 3, 8])
@pytest.mark.parametrize("lengths", [[1] * 24, [5, 1, 1, 9, 8], [24], [23, 1], [0, 24, 0], [8, 8, 8], [8, 8, 7, 0]])
def test_every_token_arrives_and_every_message_but_the_last_has_the_same_number(
    lengths: list[int], num_tokens: int
) -> None:
    outputs = pieces(lengths)
    sent = evened(outputs, num_tokens)
    whole, wanted = join_outputs(sent), join_outputs(outputs)
    assert (whole.text, whole.token_ids, whole.logprobs) == (wanted.text, wanted.token_ids, wanted.logprobs)
    assert (whole.finish_reason, whole.usage) == (FinishReason.LENGTH, USAGE)
    assert {len(piece.token_ids) for piece in sent[:-1]} <= {num_tokens}
    assert len(sent) == max(-(-sum(lengths) // num_tokens), 1)
    assert whole.round_lens == ()


def test_the_messages_of_an_answer_look_alike_however_its_tokens_came() -> None:
    slow, fast = pieces([1] * 40), pieces([6, 4, 1, 5, 5, 3, 1, 6, 5, 4])

    def sizes(outputs: list[Output]) -> list[int]:
        found = []
        for output in evened(outputs, 8):
            message = output_to_pb(output)
            pad_reply(message, block_bytes(8))
            assert output_from_pb(message) == output
            found.append(len(message.SerializeToString()))
        return found

    assert sizes(slow) == sizes(fast)
    assert set(sizes(slow)) <= {block_bytes(8), 2 * block_bytes(8)}


@pytest.mark.parametrize("text_bytes", range(0, 700, 7))
def test_every_message_can_be_padded_to_the_block(text_bytes: int) -> None:
    message = output_to_pb(Output("x" * text_bytes, request_id="r"))
    pad_reply(message, block_bytes(1))
    assert len(message.SerializeToString()) % block_bytes(1) == 0


def test_samples_are_kept_apart_and_an_error_drops_nothing() -> None:
    even = EvenPieces(4)
    assert list(even.push(Output("a", (1, 2, 3)))) == []
    assert list(even.push(Output("b", (7, 8), index=1))) == []
    assert list(even.push(Output("", (4,)))) == [], "the end may come next, alone"
    assert [piece.token_ids for piece in even.push(Output("c", (5,)))] == [(1, 2, 3, 4)]
    assert [(piece.index, piece.token_ids, piece.text) for piece in even.flush()] == [(1, (7, 8), "b"), (0, (5,), "")]
    assert list(even.flush()) == []
