"""The kinds of values that settings have beside plain ones: `auto` or a value that holds, and folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import MAX_STEPS, Mode

AUTO: Literal["auto"] = "auto"


def _auto_or_within(least: int, most: int) -> BeforeValidator:
    """Return a check that a value is auto or a whole number from `least` to `most`."""

    def check(value: object) -> object:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if value != AUTO and not (is_whole and least <= int(str(value)) <= most):
            raise ValueError(f"must be auto or an integer in [{least}, {most}]")
        return value

    return BeforeValidator(check)


def _check_mode(value: object) -> object:
    names = [AUTO, *(mode.value for mode in Mode)]
    if value not in names:
        raise ValueError(f"must be one of {', '.join(names)}")
    return value if value == AUTO else Mode(value)


def _expand_home(path: Path | None) -> Path | None:
    """Return the path with `~` expanded: in a TOML file and in `--flag=~/x` no shell does it."""
    return None if path is None else Path(os.path.expanduser(path))


DraftLenChoice = Annotated[Literal["auto"] | int, _auto_or_within(0, MAX_DRAFT_LEN)]
StepsChoice = Annotated[Literal["auto"] | int, _auto_or_within(1, MAX_STEPS)]
ModeChoice = Annotated[Literal["auto"] | Mode, BeforeValidator(_check_mode)]
Folder = Annotated[Path, Field(strict=False), AfterValidator(_expand_home)]
OptionalPath = Annotated[Path | None, Field(strict=False), AfterValidator(_expand_home)]

Share = Annotated[float | None, Field(gt=0, le=1)]
"""A part of a device's memory."""
