"""The drafter gets one row of features for each token that needs one, whatever pieces they come in."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minedraft.errors import InvalidRequest
from minedraft.messages import DraftSpan, Features, VerifySpan
from minedraft_workers.channels.inline import InlineChannel
from minedraft_workers.feature_rows import pack_features, read_features

CHANNEL = InlineChannel()
STATES = torch.arange(60, dtype=torch.float32).reshape(20, 3)


def piece(start: int, end: int, dtype: torch.dtype = torch.float32) -> Features:
    return Features(start, CHANNEL.pack(STATES[start:end].to(dtype)))


@pytest.mark.parametrize(
    ("prefix_len", "num_tokens", "pieces"),
    [
        (0, 5, (piece(0, 4),)),
        (0, 5, (piece(0, 2), piece(2, 9))),
        (5, 3, (piece(4, 7),)),
        (5, 3, (piece(0, 5), piece(5, 6), piece(6, 12))),
        (5, 3, (piece(2, 6), piece(4, 9))),
        (5, 3, (piece(0, 20),)),
        (5, 3, (piece(4, 6, torch.bfloat16), piece(6, 7))),
        (0, 1, ()),
    ],
)
def test_pieces_become_one_row_for_each_token(prefix_len: int, num_tokens: int, pieces: tuple[Features, ...]) -> None:
    span = DraftSpan(7, prefix_len, (1,) * num_tokens, 2, features=pieces)
    rows = read_features(span, 3, CHANNEL)
    assert rows is not None
    assert torch.equal(rows.float(), STATES[max(prefix_len - 1, 0) : prefix_len + num_tokens - 1])


@pytest.mark.parametrize(
    ("pieces", "limit"),
    [
        ((), "of positions none.*must cover 4 to 6"),
        ((piece(4, 6),), "4 to 5.*must cover 4 to 6"),
        ((piece(5, 7),), "must cover 4 to 6"),
        ((piece(4, 5), piece(6, 7)), "4 to 4, 6 to 6.*must cover 4 to 6"),
        ((Features(4, CHANNEL.pack(STATES[:3, :2])),), "must have 3 numbers for each token"),
        ((Features(4, CHANNEL.pack(STATES[4])),), "must have 3 numbers"),
        ((Features(4, CHANNEL.pack(STATES[4:7].int())),), "of int32.*must be of float32 or bfloat16"),
        ((Features(4, replace(CHANNEL.pack(STATES[4:7]), data=b"abc")),), "does not fill"),
    ],
)
def test_a_span_whose_features_do_not_fit_is_refused_with_its_request(pieces: tuple[Features, ...], limit: str) -> None:
    with pytest.raises(InvalidRequest, match=limit) as caught:
        read_features(DraftSpan(7, 5, (1, 2, 3), 2, features=pieces), 3, CHANNEL)
    assert caught.value.request_id == 7


def test_a_drafter_without_features_takes_none() -> None:
    assert read_features(DraftSpan(7, 5, (1, 2, 3), 2), 0, CHANNEL) is None
    with pytest.raises(InvalidRequest, match="this drafter reads none"):
        read_features(DraftSpan(7, 5, (1, 2, 3), 2, features=(piece(4, 7),)), 0, CHANNEL)


def test_what_is_packed_are_the_committed_rows_of_each_span_that_wants_them() -> None:
    spans = (
        VerifySpan(1, 4, (1, 2), drafts=(3, 4, 5), wants_features=True),  # rows 0 to 4
        VerifySpan(2, 4, (1,), drafts=(3,)),
        VerifySpan(3, 0, (1, 2, 3), sample=False, wants_features=True),  # rows 7 to 9
        VerifySpan(4, 9, (1,), wants_features=True),
    )
    packed = pack_features(spans, [1, 1, 0, None], STATES, CHANNEL)
    assert [features and (features.start, features.end) for features in packed] == [(4, 7), None, (0, 3), None]
    assert torch.equal(_rows(packed[0]), STATES[0:3])
    assert torch.equal(_rows(packed[2]), STATES[7:10])


def _rows(features: Features | None) -> torch.Tensor:
    assert features is not None
    rows = read_features(
        DraftSpan(0, features.start + 1, (1,) * (features.end - features.start), 0, features=(features,)), 3, CHANNEL
    )
    assert rows is not None
    return rows
