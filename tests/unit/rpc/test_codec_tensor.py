"""Tensors survive the wire as data or as a reference, and a reference that cannot be is refused."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minedraft.carriers import Carrier
from minedraft.errors import InvalidRequest
from minedraft.messages import ITEM_BYTES, Tensor, TensorRef, TruncatedQ
from minedraft.rpc.codec.tensor import (
    MAX_SEGMENT_BYTES,
    q_from_pb,
    q_to_pb,
    tensor_from_pb,
    tensor_to_pb,
)
from minedraft.v1 import common_pb2

MAX_SHAPE = (8, 8)
REFERENCE = TensorRef(Carrier.SHM, 3, 64, 9, 48)
UINT64 = st.integers(0, (1 << 64) - 1)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    dtype = draw(st.sampled_from(sorted(ITEM_BYTES)))
    shape = tuple(draw(st.lists(st.integers(1, 8), min_size=2, max_size=2)))
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if draw(st.booleans()):
        return Tensor(dtype, shape, draw(st.binary(min_size=num_bytes, max_size=num_bytes)))
    carrier = draw(st.sampled_from([Carrier.SHM, Carrier.CUDA_IPC, Carrier.DIST]))
    offset, held = draw(st.integers(0, MAX_SEGMENT_BYTES)), draw(st.integers(num_bytes, MAX_SEGMENT_BYTES))
    return Tensor(dtype, shape, reference=TensorRef(carrier, draw(UINT64), offset, draw(UINT64), held))


@given(tensors())
def test_a_tensor_comes_off_the_wire_as_it_was_put_on(tensor: Tensor) -> None:
    message = common_pb2.Tensor.FromString(tensor_to_pb(tensor).SerializeToString())
    assert tensor_from_pb(message, tensor.dtype, MAX_SHAPE, "x") == tensor


def test_the_rows_that_are_left_of_a_lease_come_off_the_wire() -> None:
    q = TruncatedQ(Tensor("int32", (2, 2), reference=REFERENCE), Tensor("float32", (2, 2), reference=REFERENCE))
    assert q_from_pb(q_to_pb(q), 2, "q") == q


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"num_bytes": 47}, "x.reference.num_bytes is 47"),
        ({"num_bytes": MAX_SEGMENT_BYTES + 1}, "x.reference.num_bytes"),
        ({"offset": MAX_SEGMENT_BYTES + 1}, "x.reference.offset"),
        ({"carrier": Carrier.INLINE}, "x.reference.carrier is 1"),
    ],
)
def test_a_reference_out_of_range_is_refused(changes: dict[str, object], field: str) -> None:
    tensor = Tensor("int32", (3, 4), reference=replace(REFERENCE, **changes))  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=field):
        tensor_from_pb(tensor_to_pb(tensor), "int32", MAX_SHAPE, "x")


def test_an_unknown_carrier_is_refused() -> None:
    message = tensor_to_pb(Tensor("int32", (3, 4), reference=REFERENCE))
    message.reference.carrier = 99  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match=r"x\.reference\.carrier is 99"):
        tensor_from_pb(message, "int32", MAX_SHAPE, "x")


def test_data_beside_a_reference_are_refused() -> None:
    message = tensor_to_pb(Tensor("int32", (3, 4), reference=REFERENCE))
    message.data = bytes(48)
    with pytest.raises(InvalidRequest, match=r"x\.data is .48 bytes"):
        tensor_from_pb(message, "int32", MAX_SHAPE, "x")


@pytest.mark.parametrize(("dtype", "num_bytes"), [("bfloat16", 48), ("int32", 24)])
def test_data_of_another_size_than_the_dtypes_items_are_refused(dtype: str, num_bytes: int) -> None:
    message = tensor_to_pb(Tensor(dtype, (3, 4), bytes(num_bytes)))
    with pytest.raises(InvalidRequest, match=rf"x\.data is .{num_bytes} bytes"):
        tensor_from_pb(message, dtype, MAX_SHAPE, "x")
