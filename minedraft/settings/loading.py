"""Loads settings: flags go before the TOML file, the file before the defaults.

All problems are found before a process is started or torch is imported, and are reported together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from minedraft.errors import ConfigError, ConfigErrors
from minedraft.settings.checks import contradictions, wrong_addresses, wrong_devices
from minedraft.settings.door import wrong_worker_tls
from minedraft.settings.service import Settings
from minedraft.settings.shared import SharedSettings
from minedraft.settings.worker import WorkerSettings

_S = TypeVar("_S", bound=SharedSettings)


def load_settings(
    flags: Mapping[str, Any] | None = None, file: Path | None = None, found: Sequence[ConfigError] = ()
) -> Settings:
    """Return the checked settings: flags go before the TOML file, the file before the defaults.

    Args:
        flags: field name -> value; None means "not given".
        file: TOML file with the same field names at its top level ("-" and "_" are the same).
        found: errors of the command line, to be told with the others.

    Raises:
        ConfigErrors: every unknown key, wrong type, value out of range and contradiction.
    """
    errors = list(found)
    values: dict[str, Any] = {}
    if file is not None:
        for key, value in _read_toml(file).items():
            name = key.replace("-", "_")
            if name in Settings.model_fields:
                values[name] = value
            else:
                known = ", ".join(Settings.model_fields)
                errors.append(ConfigError(f"{file}: {key}", value, f"unknown setting; known settings: {known}"))
    settings = _validate(Settings, values | _given(flags or {}), errors)
    settings = _shrink_defaults(settings)
    _raise_all(errors, contradictions(settings))
    return settings


def load_worker_settings(flags: Mapping[str, Any], found: Sequence[ConfigError] = ()) -> WorkerSettings:
    """Return the checked settings of a single worker.

    Args:
        flags: field name -> value; None means "not given".
        found: errors of the command line, to be told with the others.

    Raises:
        ConfigErrors: every unknown name, wrong type and value out of range.
    """
    errors = list(found)
    settings = _validate(WorkerSettings, _given(flags), errors)
    wrong = [*wrong_devices(settings, "device", "max_device"), *wrong_addresses(settings, "listen")]
    _raise_all(errors, [*wrong, *wrong_worker_tls(settings, "listen")])
    return settings


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _validate(kind: type[_S], values: Mapping[str, Any], errors: list[ConfigError]) -> _S:
    """Return the settings. Wrong ones are added to `errors` and get their defaults, so that contradictions
    among the others are found too.

    Raises:
        ConfigErrors: a setting without a default is wrong.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        errors += _to_config_errors(error, kind)
    broken = {error.field for error in errors}
    if any(kind.model_fields[name].is_required() for name in broken & kind.model_fields.keys()):
        raise ConfigErrors(errors)
    return kind.model_validate({name: value for name, value in values.items() if name not in broken})


def _raise_all(errors: list[ConfigError], found: list[ConfigError]) -> None:
    """Raise ConfigErrors if `errors` or `found` has any; each setting is named once."""
    named = {error.field for error in errors}
    errors = [*errors, *(error for error in found if error.field not in named)]
    if errors:
        raise ConfigErrors(errors)


def _shrink_defaults(settings: Settings) -> Settings:
    """Return the settings with default limits reduced to what fits; given limits are checked by `contradictions`."""
    limit = settings.max_model_len
    if limit is None or "prefill_chunk" in settings.model_fields_set:
        return settings
    return settings.model_copy(update={"prefill_chunk": min(settings.prefill_chunk, limit)})


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigErrors([ConfigError("config", str(file), f"cannot be read: {error.strerror}")]) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigErrors([ConfigError("config", str(file), f"is not valid TOML: {error}")]) from None


def _to_config_errors(error: ValidationError, kind: type[SharedSettings]) -> list[ConfigError]:
    errors = []
    for detail in error.errors(include_url=False):
        name, value = ".".join(str(part) for part in detail["loc"]), detail["input"]
        limit = detail["msg"].replace("Input should be", "must be").replace("Input should", "must")
        limit = limit.removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            limit = f"unknown setting; known settings: {', '.join(kind.model_fields)}"
        elif detail["type"] == "missing":  # the detail's input is then the whole mapping
            value, limit = None, "must be given"
        errors.append(ConfigError(name, str(value) if isinstance(value, Path) else value, limit))
    return errors
