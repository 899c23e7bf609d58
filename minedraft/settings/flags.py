"""Command line flags from the fields of settings, and back: one text, one name, one default.

A `SettingsCommand` leaves all that is wrong with its flags to `load_settings`, which tells it together.
"""

from __future__ import annotations

import os
import typing
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic.fields import FieldInfo

from minedraft.errors import ConfigError
from minedraft.settings.shared import Positional, SharedSettings, Switch
from minedraft.types import Mode

_F = TypeVar("_F", bound=Callable[..., Any])

_UNKNOWN = "minedraft.unknown_flags"


class UserPath(click.Path):
    """A path with `~` expanded, also in `--flag=~/x`, where no shell does it."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        return super().convert(os.path.expanduser(value), param, ctx)


config_flag = click.option(
    "--config",
    type=UserPath(),
    default=None,
    metavar="FILE.toml",
    help="TOML file with the same settings; flags take precedence.",
)


class NumberOrWord(click.ParamType[Any]):
    """A whole number, or one of a few words."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = words
        self.name = "|".join(("N", *words))

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        if value in self._words or isinstance(value, int):
            return value
        try:
            return int(value)
        except ValueError:
            self.fail(f"{value!r} is not a number or one of {', '.join(self._words)}", param, ctx)


class _ToldLater(click.ParamType[Any]):
    """What `kind` reads. A value that it cannot read is passed on as it is, for `load_settings` to refuse."""

    def __init__(self, kind: click.ParamType[Any]) -> None:
        self._kind = kind
        self.name = kind.name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401
        try:
            return self._kind.convert(value, param, ctx)
        except click.BadParameter:
            return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        return self._kind.get_metavar(param, ctx)


class SettingsCommand(click.Command):
    """A command that runs although flags are unknown; `unknown_flags` then has them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        unknown: list[ConfigError] = []
        while (error := self._find_unknown(ctx, args)) is not None:
            near = f"; did you mean {error.possibilities[0]}" if error.possibilities else ""  # the nearest
            unknown.append(ConfigError(error.option_name, None, f"there is no such flag{near}"))
            known = [argument for argument in args if argument.partition("=")[0] != error.option_name]
            if len(known) == len(args):  # one of several letters behind one dash
                raise error
            args = known
        ctx.meta[_UNKNOWN] = unknown
        ctx.allow_extra_args = bool(unknown)  # their values
        return super().parse_args(ctx, args)

    def _find_unknown(self, ctx: click.Context, args: list[str]) -> click.NoSuchOption | None:
        try:
            self.make_parser(ctx).parse_args(list(args))
        except click.NoSuchOption as error:
            return error
        return None


def unknown_flags() -> list[ConfigError]:
    """Return an error for each unknown flag of the running `SettingsCommand`."""
    found: list[ConfigError] = click.get_current_context().meta[_UNKNOWN]
    return found


def settings_flags(kind: type[SharedSettings]) -> Callable[[_F], _F]:
    """Return a decorator that gives a click command a parameter for every setting of `kind`, None if not given."""

    def decorate(function: _F) -> _F:
        for name, field in reversed(kind.own_first()):
            if _has(field, Positional):
                function = click.argument(name, type=_option(field)["type"])(function)
            else:
                function = click.option(_flag(name, field), name, **_option(field))(function)
        return function

    return decorate


def to_flags(settings: SharedSettings) -> list[str]:
    """Return the arguments that give these settings again, without a file."""
    argv: list[str] = []
    fields = type(settings).model_fields
    for name, value in settings.to_plain_values().items():
        if _has(fields[name], Positional):
            argv.insert(0, str(value))
        elif value is True:
            argv.append(f"--{_dashed(name)}")
        elif value is False and _has(fields[name], Switch):
            argv.append(f"--no-{_dashed(name)}")
        elif value is not False:
            argv += [f"--{_dashed(name)}", str(value)]
    return argv


def _flag(name: str, field: FieldInfo) -> str:
    return f"--{_dashed(name)}/--no-{_dashed(name)}" if _has(field, Switch) else f"--{_dashed(name)}"


def _has(field: FieldInfo, mark: type[Positional | Switch]) -> bool:
    return any(isinstance(other, mark) for other in field.metadata)


def _option(field: FieldInfo) -> dict[str, Any]:
    kind = _plain_type(field.annotation)
    option: dict[str, Any] = {"help": _help_text(field), "required": field.is_required(), "default": None}
    # Values are checked with all other settings, so that all problems are reported together.
    if kind is bool and _has(field, Switch):
        option["is_flag"] = True
    elif kind is bool:
        option |= {"is_flag": True, "flag_value": True}
    elif words := _words_beside(kind, int):
        option["type"] = _ToldLater(NumberOrWord(words))
        option["metavar"] = option["type"].name
    elif words := _words_beside(kind, Mode):
        option["type"] = _ToldLater(click.Choice([*words, *(mode.value for mode in Mode)]))
    elif get_origin(kind) is Literal:
        option["type"] = _ToldLater(click.Choice(get_args(kind)))
    elif isinstance(kind, type) and issubclass(kind, Enum):
        option["type"] = _ToldLater(click.Choice([member.value for member in kind]))
    elif kind is Path:
        option |= {"type": click.Path(path_type=Path), "metavar": str(field.examples[0]) if field.examples else "DIR"}
    elif kind in (int, float):
        option["type"] = _ToldLater(click.INT if kind is int else click.FLOAT)
        option["metavar"] = str(field.examples[0]) if field.examples else "N" if kind is int else "SECONDS"
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
    """Return `int` for `int | None`."""
    members = [member for member in get_args(annotation) if member is not type(None)]
    is_optional = type(None) in get_args(annotation)
    plain = members[0] if is_optional else annotation
    return typing.get_args(plain)[0] if get_origin(plain) is typing.Annotated else plain


def _words_beside(kind: Any, other: type) -> tuple[str, ...]:  # noqa: ANN401 - a type expression
    """Return ("auto",) for `Literal["auto"] | other`, and nothing for another type."""
    members = get_args(kind)
    return next((get_args(m) for m in members if get_origin(m) is Literal), ()) if other in members else ()


def _dashed(name: str) -> str:
    return name.replace("_", "-")
