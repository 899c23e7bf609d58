"""The inline token channel gives back what was put in, and refuses what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minedraft.errors import InvalidRequest
from minedraft.types import Tensor
from minedraft_workers.channels.inline import InlineChannel

CHANNEL = InlineChannel()
CPU = torch.device("cpu")
VALUE = torch.arange(6, dtype=torch.int32).reshape(2, 3)


@pytest.mark.parametrize("tensor", [VALUE, VALUE.float() / 7, VALUE.t()], ids=["int32", "float32", "strided"])
def test_a_tensor_comes_back_as_it_was(tensor: torch.Tensor) -> None:
    again = CHANNEL.unpack(CHANNEL.pack(tensor), CPU)
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)


def test_what_comes_back_can_be_written_to() -> None:
    again = CHANNEL.unpack(CHANNEL.pack(VALUE), CPU)
    again[0, 0] = 9
    assert VALUE[0, 0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "int64"},
        {"shape": (2, 4)},
        {"shape": (6,)},
        {"shape": (0, 3), "data": b""},
        {"shape": (65, 1), "data": bytes(65 * 4)},
        {"shape": (1, 1025), "data": bytes(1025 * 4)},
        {"data": b"1234"},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(changes: dict[str, object]) -> None:
    packed: Tensor = CHANNEL.pack(VALUE)
    with pytest.raises(InvalidRequest, match="tensor"):
        CHANNEL.unpack(replace(packed, **changes), CPU)  # type: ignore[arg-type]
