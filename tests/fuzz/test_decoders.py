"""No message, whoever made it, brings anything but a typed error out of a decoder."""

from __future__ import annotations

from contextlib import suppress

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from minedraft.errors import MineDraftError
from minedraft.messages import DraftCommand, VerifyCommand
from tests.fakes.workers import FakeDrafter, FakeVerifier
from tests.fuzz.decoders import DECODERS, WITHOUT_DECODER, Decoder, arriving
from tests.fuzz.messages import each_field_at_its_edges, messages, mutated, spoilt

QUICKLY = settings(max_examples=40, deadline=None, derandomize=True, database=None)
by_name = pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.name)


def take(decoder: Decoder, message: object) -> None:
    """Decode a message and, if it is a command, have a worker execute it. Only typed errors are allowed."""
    with suppress(MineDraftError):
        decoded = decoder.decode(message)
        if isinstance(decoded, VerifyCommand):
            FakeVerifier(max_model_len=128).run(decoded)
        elif isinstance(decoded, DraftCommand):
            FakeDrafter(max_model_len=128).run(decoded)


def test_every_type_that_can_arrive_has_a_decoder_here() -> None:
    known = {decoder.kind.DESCRIPTOR.full_name for decoder in DECODERS} | {
        kind.DESCRIPTOR.full_name for kind in WITHOUT_DECODER
    }
    assert arriving() == known


@by_name
def test_the_valid_messages_are(decoder: Decoder) -> None:
    for message in decoder.valid:
        decoder.decode(message)


@by_name
def test_every_field_of_a_valid_message_at_every_edge(decoder: Decoder) -> None:
    for valid in decoder.valid:
        for message in each_field_at_its_edges(valid):
            take(decoder, message)


@by_name
def test_messages_of_anything(decoder: Decoder) -> None:
    @QUICKLY
    @given(message=messages(decoder.kind.DESCRIPTOR))
    def check(message: object) -> None:
        take(decoder, message)

    check()


@by_name
def test_valid_messages_with_some_fields_replaced(decoder: Decoder) -> None:
    @QUICKLY
    @given(message=st.one_of([spoilt(valid) for valid in decoder.valid]))
    def check(message: object) -> None:
        take(decoder, message)

    check()


@by_name
def test_valid_bytes_with_some_changed(decoder: Decoder) -> None:
    @QUICKLY
    @given(data=st.one_of([mutated(valid.SerializeToString()) for valid in decoder.valid]))
    def check(data: bytes) -> None:
        with suppress(DecodeError):
            take(decoder, decoder.kind.FromString(data))

    check()
