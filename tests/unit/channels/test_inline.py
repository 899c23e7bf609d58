"""The inline token channel gives back what was put in, and refuses what does not fit together."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from minedraft.carriers import Carrier
from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.messages import Tensor, TensorRef
from minedraft_workers.channels.base import TensorSpec
from minedraft_workers.channels.inline import InlineChannel

CHANNEL = InlineChannel()
CPU = torch.device("cpu")
SPEC = TensorSpec("int32", (4, 4))
VALUE = torch.arange(6, dtype=torch.int32).reshape(2, 3)


@pytest.mark.parametrize(
    "tensor",
    [VALUE, VALUE.float() / 7, (VALUE / 7).bfloat16(), VALUE.t(), VALUE.bfloat16().t()],
    ids=["int32", "float32", "bfloat16", "strided", "strided bfloat16"],
)
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


def test_a_reference_cannot_be_followed_without_its_carrier() -> None:
    tensor = Tensor("int32", (2, 3), reference=TensorRef(Carrier.SHM, 1, 0, 1, 24))
    with pytest.raises(ChannelFailed, match="no shm carrier is open here"):
        CHANNEL.unpack(tensor, SPEC, CPU)


def test_a_tensor_has_as_many_dimensions_as_the_receiver_takes() -> None:
    cube = torch.arange(8, dtype=torch.float32).reshape(2, 2, 2)
    assert torch.equal(CHANNEL.unpack(CHANNEL.pack(cube), TensorSpec("float32", (2, 2, 2)), CPU), cube)


def test_a_tensor_of_a_dtype_that_messages_do_not_have_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"tensor.dtype is torch.int64: must be one of int32, float32, bfloat16"):
        CHANNEL.pack(VALUE.long())


def test_bfloat16_keeps_every_bit() -> None:
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).reshape(256, 256)  # NaN and infinities too
    packed = CHANNEL.pack(bits.view(torch.bfloat16))
    again = CHANNEL.unpack(packed, TensorSpec("bfloat16", (256, 256)), CPU)
    assert len(packed.data) == 2 << 16
    assert torch.equal(again.view(torch.int16), bits)
