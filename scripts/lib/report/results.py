"""Result files, and expressions over them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment

Json = Any  # what json.loads returns


class SourceError(ValueError):
    """A result file, or what a page takes from it, is not there; the message names both."""


class Results:
    """The committed result files.

    Args:
        root: folder of the repository.

    """

    FOLDER = "scripts/results"

    def __init__(self, root: Path) -> None:
        self._root = root
        self._contents: dict[str, Any] = {}
        self._used: list[str] = []
        self._shown: set[str] = set()
        self._expressions = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
        self._expressions.filters |= {"one": _one, "median": median, "spread": _spread}

    def path(self, name: str) -> str:
        """Return the file's path in the repository: names are relative to the folder of results, or to the root."""
        return name if name.startswith("scripts/") else f"{self.FOLDER}/{name}"

    def load(self, name: str) -> Json:
        """Return the content of a result file.

        Raises:
            SourceError: there is no such file, or it is no JSON.
        """
        path = self.path(name)
        if path not in self._contents:
            try:
                self._contents[path] = json.loads((self._root / path).read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise SourceError(f"{path}: {error}") from error
        if path not in self._used:
            self._used.append(path)
        self._shown.add(path)
        return self._contents[path]

    def pop_used(self) -> list[str]:
        """Return the files that were read since the last call, in the order of their first use."""
        used, self._used = self._used, []
        return used

    def unused(self) -> list[str]:
        """Return the files in the folder of results that nothing has read."""
        found = (path.relative_to(self._root).as_posix() for path in (self._root / self.FOLDER).rglob("*.json"))
        return sorted(set(found) - self._shown)

    def value(self, name: str, expression: str) -> Json:
        """Return what a Jinja expression says of a file: its keys are variables, `all` is the whole content.

        Besides Jinja's filters there are `median`; `spread`, the most of the least; and `one("key", value)`, the only
        row whose key, which may have dots, has the value.

        Raises:
            SourceError: the file or the value is not there, or the expression is none.
        """
        content = self.load(name)
        variables = {"all": content, **(content if isinstance(content, dict) else {})}
        try:
            value = self._expressions.compile_expression(expression, undefined_to_none=False)(**variables)
            found = not isinstance(value, Undefined)
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise SourceError(f"{expression} of {self.path(name)}: {error}") from error
        if not found:
            raise SourceError(f"{expression}: not in {self.path(name)}")
        return value


def _one(rows: Iterable[Mapping[str, Any]], *wanted: Json) -> Mapping[str, Any]:
    """Return the only row with the wanted values, given as key, value, key, value ...

    Raises:
        LookupError: there is none, or there are several.
    """
    pairs = list(zip(wanted[::2], wanted[1::2], strict=True))
    found = [row for row in rows if all(_at(row, key) == value for key, value in pairs)]
    if len(found) != 1:
        said = ", ".join(f"{key} = {value}" for key, value in pairs)
        raise LookupError(f"{len(found)} rows with {said}")
    return found[0]


def _spread(values: Sequence[float]) -> float:
    """Return how many times the least of the values the most is."""
    return max(values) / min(values)


def _at(row: Json, key: str) -> Json:
    for part in key.split("."):
        row = row[part]
    return row
