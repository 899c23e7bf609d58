"""Tensors in messages: their data, or a reference to where they lie."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from minedraft.carriers import Carrier
from minedraft.errors import InvalidRequest
from minedraft.messages import ITEM_BYTES, Features, Tensor, TensorRef, TruncatedQ
from minedraft.types import MAX_FEATURE_LAYERS, MAX_FEATURE_SIZE, MAX_TOP_M
from minedraft.v1 import common_pb2, worker_pb2

MAX_SEGMENT_BYTES = 1 << 40  # of the memory that a worker shares

_DTYPE_TO_PB = {
    "int32": common_pb2.Tensor.DTYPE_INT32,
    "float32": common_pb2.Tensor.DTYPE_FLOAT32,
    "bfloat16": common_pb2.Tensor.DTYPE_BFLOAT16,
}
CARRIER_TO_PB = {
    Carrier.INLINE: common_pb2.CARRIER_INLINE,
    Carrier.SHM: common_pb2.CARRIER_SHM,
    Carrier.CUDA_IPC: common_pb2.CARRIER_CUDA_IPC,
    Carrier.DIST: common_pb2.CARRIER_DIST,
}
_FEATURE_DTYPES = {_DTYPE_TO_PB[dtype]: dtype for dtype in ("float32", "bfloat16")}
_CARRIER_FROM_PB: dict[int, Carrier] = {value: carrier for carrier, value in CARRIER_TO_PB.items()}


def carrier_from_pb(value: int, field: str, *, with_inline: bool = False) -> Carrier:
    """Return a carrier. Raise InvalidRequest if there is none such; `INLINE` is one only `with_inline`."""
    carrier = _CARRIER_FROM_PB.get(value)
    if carrier is None or (carrier is Carrier.INLINE and not with_inline):
        raise InvalidRequest(field, int(value), "must be shm, cuda_ipc or dist")
    return carrier


def tensor_to_pb(tensor: Tensor) -> common_pb2.Tensor:
    message = common_pb2.Tensor(dtype=_DTYPE_TO_PB[tensor.dtype], shape=tensor.shape, data=tensor.data)
    if (reference := tensor.reference) is not None:
        message.reference.carrier = CARRIER_TO_PB[reference.carrier]
        message.reference.segment = reference.segment
        message.reference.offset = reference.offset
        message.reference.generation = reference.generation
        message.reference.num_bytes = reference.num_bytes
    return message


def tensor_from_pb(message: common_pb2.Tensor, dtype: str, max_shape: tuple[int, ...], field: str) -> Tensor:
    """Return a tensor of exactly `dtype`, with as many dimensions as `max_shape` and none larger than there. Whether
    its reference is good is checked where it is used."""
    shape = tuple(message.shape)
    if message.dtype != _DTYPE_TO_PB[dtype]:
        raise InvalidRequest(f"{field}.dtype", int(message.dtype), f"must be {dtype}")
    if len(shape) != len(max_shape) or any(
        not 1 <= size <= limit for size, limit in zip(shape, max_shape, strict=False)
    ):
        raise InvalidRequest(f"{field}.shape", shape, f"must be {len(max_shape)} sizes of at most {max_shape}")
    num_bytes = math.prod(shape) * ITEM_BYTES[dtype]
    if message.HasField("reference"):
        if message.data:
            raise InvalidRequest(f"{field}.data", f"{len(message.data)} bytes", "must be absent beside a reference")
        return Tensor(dtype, shape, b"", _reference_from_pb(message.reference, num_bytes, f"{field}.reference"))
    if len(message.data) != num_bytes:
        raise InvalidRequest(f"{field}.data", f"{len(message.data)} bytes", f"shape {shape} needs {num_bytes}")
    return Tensor(dtype, shape, message.data)


def _reference_from_pb(message: common_pb2.TensorRef, least_bytes: int, field: str) -> TensorRef:
    carrier = carrier_from_pb(message.carrier, f"{field}.carrier")
    if not least_bytes <= message.num_bytes <= MAX_SEGMENT_BYTES:
        limit = f"must be in [{least_bytes}, {MAX_SEGMENT_BYTES}]"
        raise InvalidRequest(f"{field}.num_bytes", message.num_bytes, limit)
    if message.offset > MAX_SEGMENT_BYTES:
        raise InvalidRequest(f"{field}.offset", message.offset, f"at most {MAX_SEGMENT_BYTES}")
    return TensorRef(carrier, message.segment, message.offset, message.generation, message.num_bytes)


def generations_in(tensors: Iterable[common_pb2.Tensor]) -> list[int]:
    """Return the generations of the references among tensors, unchecked."""
    return [tensor.reference.generation for tensor in tensors if tensor.HasField("reference")]


def q_to_pb(q: TruncatedQ) -> worker_pb2.TruncatedQ:
    return worker_pb2.TruncatedQ(ids=tensor_to_pb(q.ids), probs=tensor_to_pb(q.probs))


def q_from_pb(message: worker_pb2.TruncatedQ, num_drafts: int, field: str) -> TruncatedQ:
    """Return the truncated q of `num_drafts` draft tokens; its values are checked where they are used."""
    if num_drafts == 0:
        raise InvalidRequest(field, "present", "must be absent in a span without drafts")
    ids = tensor_from_pb(message.ids, "int32", (num_drafts, MAX_TOP_M), f"{field}.ids")
    probs = tensor_from_pb(message.probs, "float32", (num_drafts, MAX_TOP_M), f"{field}.probs")
    if ids.shape != probs.shape or ids.shape[0] != num_drafts:
        raise InvalidRequest(field, f"{ids.shape} ids, {probs.shape} probs", f"both must be [{num_drafts}, m]")
    return TruncatedQ(ids, probs)


def features_to_pb(features: Features) -> worker_pb2.Features:
    return worker_pb2.Features(start=features.start, states=tensor_to_pb(features.states))


def features_from_pb(message: worker_pb2.Features, max_len: int, field: str) -> Features:
    """Return features of tokens at positions below `max_len`; their numbers are not read here."""
    dtype = _FEATURE_DTYPES.get(message.states.dtype)
    if dtype is None:
        limit = f"must be {' or '.join(_FEATURE_DTYPES.values())}"
        raise InvalidRequest(f"{field}.states.dtype", int(message.states.dtype), limit)
    if message.start >= max_len:
        raise InvalidRequest(f"{field}.start", message.start, f"must be below {max_len}")
    max_shape = (max_len - message.start, MAX_FEATURE_SIZE)
    return Features(message.start, tensor_from_pb(message.states, dtype, max_shape, f"{field}.states"))


def layers_from_pb(layers: Sequence[int], field: str) -> tuple[int, ...]:
    """Return numbers of layers; which of them a model has is checked where it is known."""
    wanted = tuple(layers)
    if len(wanted) > MAX_FEATURE_LAYERS:
        raise InvalidRequest(field, f"{len(wanted)} layers", f"at most {MAX_FEATURE_LAYERS} are allowed")
    if wanted and not -1 <= min(wanted) <= max(wanted) < MAX_FEATURE_LAYERS:
        raise InvalidRequest(field, wanted, f"layers must be in [-1, {MAX_FEATURE_LAYERS - 1}]")
    return wanted
