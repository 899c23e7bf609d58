"""The inline token channel gives back what was put in, and refuses what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minedraft.errors import InvalidRequest
from minedraft.messages import Tensor
from minedraft_workers.channels.base import TensorSpec
from minedraft_workers.channels.inline import InlineChannel

CHANNEL = InlineChannel()
CPU = torch.device("cpu")
SPEC = TensorSpec("int32", (4, 4))
VALUE = torch.arange(6, dtype=torch.int32).reshape(2, 3)


@pytest.mark.parametrize("tensor", [VALUE, VALUE.float() / 7, VALUE.t()], ids=["int32", "float32", "strided"])
def test_a_tensor_comes_back_as_it_was(tensor: torch.Tensor) -> None:
    packed = CHANNEL.pack(tensor)
    again = CHANNEL.unpack(packed, TensorSpec(packed.dtype, (4, 4)), CPU)
    assert again.dtype == tensor.dtype
    assert torch.equal(again, tensor)


def test_what_comes_back_can_be_written_to() -> None:
    again = CHANNEL.unpack(CHANNEL.pack(VALUE), SPEC, CPU)
    again[0, 0] = 9
    assert VALUE[0, 0] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "int64"},
        {"dtype": "float32"},
        {"shape": (2, 4)},
        {"shape": (6,)},
        {"shape": (0, 3), "data": b""},
        {"shape": (5, 1), "data": bytes(5 * 4)},
        {"shape": (1, 5), "data": bytes(5 * 4)},
        {"shape": (1, 2, 3)},
        {"data": b"1234"},
    ],
)
def test_what_is_not_asked_for_or_does_not_belong_together_is_refused(changes: dict[str, object]) -> None:
    packed: Tensor = CHANNEL.pack(VALUE)
    with pytest.raises(InvalidRequest, match="tensor"):
        CHANNEL.unpack(replace(packed, **changes), SPEC, CPU)  # type: ignore[arg-type]


def test_a_tensor_has_as_many_dimensions_as_the_receiver_takes() -> None:
    cube = torch.arange(8, dtype=torch.float32).reshape(2, 2, 2)
    assert torch.equal(CHANNEL.unpack(CHANNEL.pack(cube), TensorSpec("float32", (2, 2, 2)), CPU), cube)
