"""Command line flags made from the fields of `Settings`, and back: one text, one name, one default."""

from __future__ import annotations

import os
import typing
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from minedraft.config import Settings

_F = TypeVar("_F", bound=Callable[..., Any])


class UserPath(click.Path):
    """A path whose `~` is the home folder, also in `--flag=~/x`, which shells leave alone."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return super().convert(os.path.expanduser(value), param, ctx)


def settings_flags(function: _F) -> _F:
    """Give a click command one flag for every setting; a flag that is not given is None."""
    for name, field in reversed(Settings.model_fields.items()):
        function = click.option(f"--{_dashed(name)}", name, **_option(field))(function)
    return function


def to_flags(settings: Settings) -> list[str]:
    """The command line that gives these settings again, with no file."""
    argv: list[str] = []
    for name, value in settings.to_toml_values().items():
        if value is True:
            argv.append(f"--{_dashed(name)}")
        elif value is not False:
            argv += [f"--{_dashed(name)}", str(value)]
    return argv


def _option(field: FieldInfo) -> dict[str, Any]:
    kind = _plain_type(field.annotation)
    option: dict[str, Any] = {"default": None, "help": _help_text(field)}
    if kind is bool:
        option |= {"is_flag": True, "flag_value": True}
    elif get_origin(kind) is Literal:
        option["type"] = click.Choice(get_args(kind))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        option["type"] = click.Choice([member.value for member in kind])
    elif kind is Path:
        option |= {"type": click.Path(path_type=Path), "metavar": "DIR"}
    elif kind in (int, float):
        # Ranges are checked with all other settings, so that every problem is reported at once.
        option["type"] = kind
        option["metavar"] = "N" if kind is int else "SECONDS"
    else:
        option["metavar"] = str(field.examples[0]) if field.examples else "TEXT"
    return option


def _help_text(field: FieldInfo) -> str:
    text = str(field.description)
    default = field.get_default(call_default_factory=False)
    if default is None or default is False or repr(default) == "PydanticUndefined":
        return text
    return f"{text} [default: {default.value if isinstance(default, Enum) else default}]"


def _plain_type(annotation: Any) -> Any:  # noqa: ANN401 - a type expression
    """`int` of `int | None`."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    is_optional = type(None) in get_args(annotation)
    plain = members[0] if is_optional else annotation
    return typing.get_args(plain)[0] if get_origin(plain) is typing.Annotated else plain


def _dashed(name: str) -> str:
    return name.replace("_", "-")
