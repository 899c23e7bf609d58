"""Random messages of any type, made from its descriptor: a field that is added later is fuzzed without a word here.

Values are mostly at the edges of what a field can hold or what this package allows, because that is where a missing
check shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

_SIGNED = {FieldDescriptor.CPPTYPE_INT32: 31, FieldDescriptor.CPPTYPE_INT64: 63}
_UNSIGNED = {FieldDescriptor.CPPTYPE_UINT32: 32, FieldDescriptor.CPPTYPE_UINT64: 64}
_EDGES = (0, 1, 2, 3, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 1 << 16, 1 << 20, 1 << 24, 1 << 30)
_NUMBERS = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, -2.0, 100.0, 1e-45, 1e38, float("nan"), float("inf"), float("-inf")]
_WORDS = [
    "",
    "x",
    "user",
    "verifier",
    "drafter",
    "sd",
    "\x00",
    "\n",
    "é" * 40,
    "x" * 65,
    "x" * 300,
    "🎉" * 20,
    "x" * 9000,
]
_Path: TypeAlias = tuple[tuple[str, int | None], ...]
_MAX_REPEATED = 4


def messages(descriptor: Descriptor, depth: int = 5) -> st.SearchStrategy[Message]:
    """Return random messages of a type: each field is absent, at an edge, or anything its type can hold."""
    kind = message_factory.GetMessageClass(descriptor)
    values = {field.name: _field(field, depth) for field in descriptor.fields}

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = kind()
        for field in descriptor.fields:
            if draw(st.booleans()):
                _put(message, field, draw(values[field.name]))
        return message

    return build()


def mutated(data: bytes) -> st.SearchStrategy[bytes]:
    """Return the bytes with some of them changed, dropped or repeated."""

    @st.composite
    def mutate(draw: st.DrawFn) -> bytes:
        out = bytearray(data)
        for _ in range(draw(st.integers(1, 6))):
            at = draw(st.integers(0, max(len(out) - 1, 0)))
            match draw(st.integers(0, 4)):
                case 0 if out:
                    out[at] ^= 1 << draw(st.integers(0, 7))
                case 1 if out:
                    del out[at : at + draw(st.integers(1, 9))]
                case 2:
                    out[at:at] = draw(st.binary(max_size=9))
                case 3:
                    out[at:at] = out[at : at + draw(st.integers(1, 30))]
                case _:
                    out[at : at + 1] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"[: draw(st.integers(1, 10))]
        return bytes(out)

    return mutate()


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        return st.dictionaries(_scalar(key), _scalar(value), max_size=_MAX_REPEATED)
    if field.message_type is not None:
        one: st.SearchStrategy[Any] = messages(field.message_type, depth - 1) if depth else st.nothing()
    else:
        one = _scalar(field)
    return st.lists(one, max_size=_MAX_REPEATED) if field.is_repeated else one


def _scalar(field: FieldDescriptor) -> st.SearchStrategy[Any]:
    """Return an edge, or anything that the field can hold."""
    kind, edges = field.cpp_type, st.sampled_from(_scalar_edges(field))
    if kind in _SIGNED:
        most = (1 << _SIGNED[kind]) - 1
        return edges | st.integers(-most - 1, most)
    if kind in _UNSIGNED:
        return edges | st.integers(0, (1 << _UNSIGNED[kind]) - 1)
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return edges | (st.binary(max_size=40) if field.type == FieldDescriptor.TYPE_BYTES else st.text(max_size=12))
    if kind in (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE):
        return edges | st.floats(width=32)
    return edges


def _put(message: Message, field: FieldDescriptor, value: object) -> None:
    if isinstance(value, dict):
        getattr(message, field.name).update(value)
    elif isinstance(value, list):
        getattr(message, field.name).extend(value)
    elif isinstance(value, Message):
        getattr(message, field.name).CopyFrom(value)
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, value)


def spoilt(valid: Message) -> st.SearchStrategy[Message]:
    """Return a valid message with one to three of its fields, however deep, replaced by anything."""

    @st.composite
    def spoil(draw: st.DrawFn) -> Message:
        whole = type(valid)()
        whole.CopyFrom(valid)
        for _ in range(draw(st.integers(1, 3))):
            message: Message = whole
            while inner := _inside(message):
                if not draw(st.booleans()):
                    break
                message = draw(st.sampled_from(inner))
            field = draw(st.sampled_from(list(message.DESCRIPTOR.fields) or list(whole.DESCRIPTOR.fields)))
            message = message if message.DESCRIPTOR.fields else whole
            message.ClearField(field.name)
            if draw(st.integers(0, 5)):
                _put(message, field, draw(_field(field, 2)))
        return whole

    return spoil()


def _inside(message: Message) -> list[Message]:
    """Return the messages that are set in a message."""
    found: list[Message] = []
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        found.extend(value if field.is_repeated else [value])
    return found


def each_field_at_its_edges(valid: Message) -> Iterator[Message]:
    """Yield a valid message once for each field in it, however deep, and each edge of what that field can hold: absent,
    and if it is repeated, empty, one, and far more than any limit."""
    for path in _paths(valid):
        for field in _at(valid, path).DESCRIPTOR.fields:
            for value in _edges_of(field):
                whole = type(valid)()
                whole.CopyFrom(valid)
                message = _at(whole, path)
                if field.is_repeated and value is not None and getattr(message, field.name):
                    yield _with_last(whole, path, field, value)
                message.ClearField(field.name)
                if value is not None:
                    _put(message, field, value)
                yield whole


def _with_last(valid: Message, path: _Path, field: FieldDescriptor, value: Any) -> Message:
    """Return a copy with the entries of a repeated field that it has, and after them those of `value`."""
    whole = type(valid)()
    whole.CopyFrom(valid)
    _put(_at(whole, path), field, value)
    return whole


def _paths(message: Message) -> Iterator[_Path]:
    yield ()
    for field, value in message.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for index, inner in enumerate(value) if field.is_repeated else ((None, value),):
            for rest in _paths(inner):
                yield ((field.name, index), *rest)


def _at(message: Message, path: _Path) -> Message:
    for name, index in path:
        message = getattr(message, name)
        if index is not None:
            message = message[index]
    return message


def _edges_of(field: FieldDescriptor) -> list[Any]:
    """Return values for a field; None: absent."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = field.message_type.fields
        singles = [{k: v} for k in _scalar_edges(key) for v in _scalar_edges(value)]
        is_text = key.cpp_type == FieldDescriptor.CPPTYPE_STRING
        many = [str(number) if is_text else number for number in range(2000)]
        return [None, *singles, dict.fromkeys(many, 1)]
    if field.message_type is not None:
        kind = message_factory.GetMessageClass(field.message_type)
        return [None, [kind()], [kind()] * 20_000] if field.is_repeated else [None, kind()]
    edges = _scalar_edges(field)
    return [None, *([edge] for edge in edges), edges[:1] * 300_000] if field.is_repeated else [None, *edges]


def _scalar_edges(field: FieldDescriptor) -> list[Any]:
    kind = field.cpp_type
    if kind in _SIGNED:
        most = (1 << _SIGNED[kind]) - 1
        return sorted({sign * edge for edge in _EDGES for sign in (1, -1)} | {most, -most - 1})
    if kind in _UNSIGNED:
        most = (1 << _UNSIGNED[kind]) - 1
        return [*_EDGES, most >> 1, most]
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return [False, True]
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return [*(value.number for value in field.enum_type.values), 99, -1, 1 << 30]
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return [b"", b"\0" * 7, bytes(1 << 16)] if field.type == FieldDescriptor.TYPE_BYTES else _WORDS
    return _NUMBERS
