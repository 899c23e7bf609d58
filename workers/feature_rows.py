"""Features between messages and tensors: the verifier packs rows of its forward, the drafter reads a span's pieces."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minedraft.errors import InvalidRequest
from minedraft.messages import DraftSpan, Features, VerifySpan
from minedraft_workers.channels.base import TensorSpec, TokenChannel

_DTYPES = ("float32", "bfloat16")
_HOST = torch.device("cpu")


def pack_features(
    spans: Sequence[VerifySpan], accepted_lens: Sequence[int | None], features: torch.Tensor, channel: TokenChannel
) -> list[Features | None]:
    """Return the features of the committed tokens of each span that wants them: of its tokens and the accepted drafts.

    Args:
        accepted_lens: of each span; None if it gets no features.
        features: [tokens and drafts of all spans, feature size], in their order.
    """
    packed: list[Features | None] = []
    first = 0
    for span, accepted_len in zip(spans, accepted_lens, strict=True):
        if span.wants_features and accepted_len is not None:
            rows = features[first : first + len(span.tokens) + accepted_len]
            packed.append(Features(span.prefix_len, channel.pack(rows)))
        else:
            packed.append(None)
        first += len(span.tokens) + len(span.drafts)
    return packed


def read_features(span: DraftSpan, feature_size: int, channel: TokenChannel) -> torch.Tensor | None:
    """Return the features that a span's tokens need, [tokens, feature size]; None if the drafter reads none (size 0).

    Raises:
        InvalidRequest: they are not all there, are not in one row, or are not of this size; `request_id` is set.
    """
    try:
        if not feature_size:
            if span.features:
                raise _refusal(span, "present", "must be absent: this drafter reads none")
            return None
        return _join(span, [_unpack(span, piece, feature_size, channel) for piece in span.features], feature_size)
    except InvalidRequest as error:
        error.request_id = span.request_id
        raise


def _unpack(span: DraftSpan, piece: Features, feature_size: int, channel: TokenChannel) -> torch.Tensor:
    dtype, shape = piece.states.dtype, piece.states.shape
    if dtype not in _DTYPES:
        raise _refusal(span, f"of {dtype}", f"must be of {' or '.join(_DTYPES)}")
    if len(shape) != 2 or shape[1] != feature_size:
        raise _refusal(span, f"of shape {shape}", f"must have {feature_size} numbers for each token")
    return channel.unpack(piece.states, TensorSpec(dtype, (max(shape[0], 1), feature_size)), _HOST)


def _join(span: DraftSpan, pieces: Sequence[torch.Tensor], feature_size: int) -> torch.Tensor:
    """Return the rows of the wanted positions; pieces may overlap, and reach beyond them."""
    position, end = span.features_start, span.committed_len - 1
    parts = []
    for piece, rows in zip(span.features, pieces, strict=True):
        if piece.start > position:
            break
        if piece.end > position:
            parts.append(rows[position - piece.start : end - piece.start])
            position = min(piece.end, end)
    if position < end:
        has = ", ".join(f"{piece.start} to {piece.end - 1}" for piece in span.features) or "none"
        raise _refusal(span, f"of positions {has}", f"must cover {span.features_start} to {end - 1}")
    return torch.cat(parts) if parts else torch.empty(0, feature_size)


def _refusal(span: DraftSpan, value: str, limit: str) -> InvalidRequest:
    return InvalidRequest(f"features of request {span.request_id}", value, limit)
