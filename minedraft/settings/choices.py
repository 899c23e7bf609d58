"""Settings that can be left to the service: `auto`, or a value that holds."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator

from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.types import Mode

AUTO: Literal["auto"] = "auto"


def _check_draft_len(value: object) -> object:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if value != AUTO and not (is_whole and 0 <= int(str(value)) <= MAX_DRAFT_LEN):
        raise ValueError(f"must be auto or an integer in [0, {MAX_DRAFT_LEN}]")
    return value


def _check_mode(value: object) -> object:
    names = [AUTO, *(mode.value for mode in Mode)]
    if value not in names:
        raise ValueError(f"must be one of {', '.join(names)}")
    return value if value == AUTO else Mode(value)


DraftLenChoice = Annotated[Literal["auto"] | int, BeforeValidator(_check_draft_len)]
ModeChoice = Annotated[Literal["auto"] | Mode, BeforeValidator(_check_mode)]
