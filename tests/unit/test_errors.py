"""Errors travel: between processes, into logs, over the wire; whatever they are about."""

from __future__ import annotations

import copy
import pickle
import pkgutil
import re
from collections.abc import Iterator
from importlib import import_module

import pytest

import minedraft
from minedraft import errors
from minedraft.core.blocks import BlocksExhausted
from minedraft.errors import ConfigError, ConfigErrors, InvalidRequest, MineDraftError, Overloaded


def _kinds(kind: type[MineDraftError] = MineDraftError) -> Iterator[type[MineDraftError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)


def _make(kind: type[MineDraftError]) -> MineDraftError:
    if issubclass(kind, ConfigErrors):
        return kind([ConfigError("listen", "x", "must be unix:PATH"), ConfigError("draft", None, "is needed")])
    if issubclass(kind, ConfigError | InvalidRequest):
        return kind("top_p", 2.0, "must be in (0, 1]")
    if issubclass(kind, BlocksExhausted):
        return kind(5, 2, 1)
    if issubclass(kind, Overloaded):
        return kind("9 requests wait", 2.5)
    return kind("it is so")


for module in pkgutil.walk_packages(minedraft.__path__, "minedraft."):
    if not module.name.startswith("minedraft.vllm."):  # it imports vLLM, which is in another environment
        import_module(module.name)
EVERY_KIND = [kind for kind in _kinds() if not kind.__name__.startswith("_")]


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_error_can_be_pickled_and_copied(kind: type[MineDraftError]) -> None:
    error = _make(kind)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert {name: str(value) for name, value in vars(again).items()} == {
            name: str(value) for name, value in vars(error).items()
        }


def test_a_message_is_one_line_of_bounded_length_whatever_it_is_about() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError("no words")

    for value in ("x" * 10_000, 10**5000, Broken(), "a\nb", "\ud800"):
        message = str(InvalidRequest("prompt", value, "line one\nline two\x1b[31m" + "x" * 10_000))
        assert message.isprintable()
        assert len(message) < 1200
        assert "line one line two" in message


TREE = [
    (m[1], m[2], m[3], m[4], m[5])
    for m in re.finditer(r"[├└]── (\w+) +([A-Z_]+|-) +(\d+|-) +(yes|no)[^\d\n(]*(\d*)", errors.__doc__ or "")
]


def test_a_value_that_was_not_given_is_not_shown() -> None:
    assert str(errors.ConfigError("listen", None, "must be given")) == "listen: must be given"
    assert str(errors.ConfigError("listen", "", "must be given")) == "listen is '': must be given"


def test_the_tree_has_every_error_of_its_module() -> None:
    kinds = [kind.__name__ for kind in EVERY_KIND if kind.__module__ == errors.__name__ and kind is not MineDraftError]
    assert sorted(row[0] for row in TREE) == sorted(kinds)


@pytest.mark.parametrize(("name", "grpc_code", "http_status", "retry", "exit_code"), TREE)
def test_the_tree_says_what_each_error_is_to_a_client_and_to_a_shell(
    name: str, grpc_code: str, http_status: str, retry: str, exit_code: str
) -> None:
    kind: type[MineDraftError] = getattr(errors, name)
    crosses = grpc_code != "-"
    assert crosses is (http_status != "-"), "an error that a client can get has a code for every door"
    # What no client gets is, should it come to one, an internal error.
    assert kind.grpc_code == (grpc_code if crosses else "INTERNAL")
    assert kind.http_status == (int(http_status) if crosses else 500)
    assert kind.retryable is (retry == "yes")
    assert kind.exit_code == int(exit_code or errors.EXIT_INTERNAL)
