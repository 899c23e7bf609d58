"""Every setting of a running MineDraft, and of a worker alone, from flags, a TOML file and defaults, in that order.

One text per field: the descriptions below are `--help`, the comments of the TOML file and the README
table. All problems are found before anything is started and before torch is imported, and all of
them are reported at once.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from minedraft.address import Address, default_listen
from minedraft.config_checks import contradictions, wrong_addresses, wrong_devices
from minedraft.device import DEVICE_FORMS, Device, usable_cores
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.types import MAX_BATCH_SIZE, MAX_DRAFT_LEN, DraftMethod, Mode, Role

_S = TypeVar("_S", bound="SharedSettings")


class Positional:
    """Marks a setting that a command line gives by its place, without a flag."""


def _default_target_device() -> str:
    cores = usable_cores()
    return str(Device("cpu", cores[1:2] or cores))


def _default_draft_device() -> str:
    return str(Device("cpu", usable_cores()[:1]))


def _expand_home(path: Path | None) -> Path | None:
    """`~` as the home folder: a TOML file and `--flag=~/x` come without a shell's help."""
    return None if path is None else Path(os.path.expanduser(path))


_Folder = Annotated[Path, Field(strict=False), AfterValidator(_expand_home)]
_OptionalFolder = Annotated[Path | None, Field(strict=False), AfterValidator(_expand_home)]


class SharedSettings(BaseModel):
    """What the service is told and tells its workers. Frozen: a running process never changes its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    draft_method: Annotated[DraftMethod, Field(strict=False)] = Field(
        DraftMethod.MODEL,
        description="model: the draft model proposes; ngram: the prompt's own n-grams, no draft model.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the weights; auto measures which one is faster on the device."
    )
    max_model_len: int | None = Field(
        None, ge=16, le=1 << 20, description="Tokens of prompt and answer together; the model's own limit by default."
    )
    num_blocks: int | None = Field(
        None,
        ge=8,
        le=1 << 24,
        description="Blocks of KV cache in a worker; by default an eighth of the free memory (CUDA: 0.8).",
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens in a block of KV cache.")
    insecure_public: bool = Field(
        False,
        description="Listen beyond this host though nothing protects it: no encryption, no login.",
    )

    @classmethod
    def own_first(cls) -> list[tuple[str, FieldInfo]]:
        """Names and fields as they are shown: those of the class before those it shares."""
        return sorted(cls.model_fields.items(), key=lambda item: item[0] in SharedSettings.model_fields)

    def to_plain_values(self) -> dict[str, Any]:
        """Texts and numbers, without what is unset; given as flags they make the same settings again."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


class WorkerSettings(SharedSettings):
    """What one worker process is told."""

    role: Annotated[Role, Field(strict=False), Positional()] = Field(description="Which worker it is.")
    model: _Folder = Field(
        description="Model folder; where n-grams propose, the target's, for its tokenizer.", examples=["DIR"]
    )
    listen: str = Field(description="Where it serves the scheduler: unix:PATH or HOST:PORT.", examples=["ADDR"])
    device: str = Field("cpu", description=f"Where it computes: {DEVICE_FORMS}.", examples=["DEVICE"])

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def has_model(self) -> bool:
        """Whether it runs a model; a verifier always does."""
        return self.role is Role.VERIFIER or self.draft_method is DraftMethod.MODEL


class Settings(SharedSettings):
    """What the service is told."""

    target: _OptionalFolder = Field(
        None, description="Folder of the target model; without it the default pair is used.", examples=["DIR"]
    )
    draft: _OptionalFolder = Field(
        None, description="Folder of the draft model, with the target's tokenizer.", examples=["DIR"]
    )
    mode: Annotated[Mode, Field(strict=False)] = Field(
        Mode.MINEDRAFT,
        description="minedraft: two batches, drafting and verifying overlap; sd: one batch, taking turns; "
        "ar: no drafts.",
    )
    max_batch_size: int = Field(
        8, ge=1, le=MAX_BATCH_SIZE, description="Requests in each batch (m); minedraft has two batches, sd and ar one."
    )
    draft_len: int = Field(
        3,
        ge=0,
        le=MAX_DRAFT_LEN,
        description="Tokens the drafter proposes per request and round (k); not used in mode ar.",
    )
    target_device: str = Field(
        default_factory=_default_target_device,
        description=f"Where the verifier runs: {DEVICE_FORMS}; the second core by default.",
        examples=["DEVICE"],
    )
    draft_device: str = Field(
        default_factory=_default_draft_device,
        description="Where the drafter runs, as for the target; the first core by default.",
        examples=["DEVICE"],
    )
    prefill_chunk: int = Field(
        256,
        ge=16,
        le=8192,
        description="Prompt tokens in one verify round, over all newcomers; at most max_model_len.",
    )
    max_waiting: int = Field(
        256, ge=1, le=65536, description="Requests that may wait for a seat; more are refused at once."
    )
    listen: str = Field(
        default_factory=default_listen,
        description="Where clients connect: unix:PATH or HOST:PORT.",
        examples=["ADDR"],
    )
    allow_configure: bool = Field(
        False, description="Let a client borrow the service to switch its mode for a while, as `minedraft bench` does."
    )
    target_address: str | None = Field(
        None, description="Use the verifier that already runs at this address.", examples=["ADDR"]
    )
    draft_address: str | None = Field(
        None, description="Use the drafter that already runs at this address.", examples=["ADDR"]
    )
    load_timeout_s: float = Field(
        600.0, gt=0, le=86400, description="Seconds the workers may take until they are ready."
    )
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests get to finish at shutdown."
    )

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def max_in_flight(self) -> int:
        """Requests decoding at the same time over all batches."""
        return self.max_batch_size * self.mode.num_batches

    @property
    def needs_drafter(self) -> bool:
        return self.mode.has_drafts

    @property
    def own_workers(self) -> tuple[Role, ...]:
        """The workers that belong to this service: not those that run already, at an address that was given."""
        roles = []
        if self.target_address is None:
            roles.append(Role.VERIFIER)
        if self.needs_drafter and self.draft_address is None:
            roles.append(Role.DRAFTER)
        return tuple(roles)

    def for_worker(self, role: Role, address: str) -> WorkerSettings:
        """What a worker of this service is told that listens at `address`. The folders must be known."""
        is_verifier = role is Role.VERIFIER
        is_of_target = is_verifier or self.draft_method is DraftMethod.NGRAM
        own = {
            "role": role,
            "model": self.target if is_of_target else self.draft,
            "listen": address,
            "device": self.target_device if is_verifier else self.draft_device,
        }
        return WorkerSettings.model_validate(own | {name: getattr(self, name) for name in SharedSettings.model_fields})


def load_settings(flags: Mapping[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Merge flags over the TOML file over the defaults, and check everything.

    Args:
        flags: field name -> value; None means "not given".
        file: TOML file with the same field names at its top level ("-" and "_" are the same).

    Raises:
        ConfigErrors: every unknown key, wrong type, value out of range and contradiction.
    """
    errors: list[ConfigError] = []
    values: dict[str, Any] = {}
    if file is not None:
        for key, value in _read_toml(file).items():
            name = key.replace("-", "_")
            if name in Settings.model_fields:
                values[name] = value
            else:
                known = ", ".join(Settings.model_fields)
                errors.append(ConfigError(f"{file}: {key}", value, f"unknown setting; known are {known}"))
    settings = _validate(Settings, values | _given(flags or {}), errors)
    settings = _shrink_defaults(settings)
    _raise_all(errors, contradictions(settings))
    return settings


def load_worker_settings(flags: Mapping[str, Any]) -> WorkerSettings:
    """Check the settings of a worker alone.

    Args:
        flags: field name -> value; None means "not given".

    Raises:
        ConfigErrors: every unknown name, wrong type and value out of range.
    """
    errors: list[ConfigError] = []
    settings = _validate(WorkerSettings, _given(flags), errors)
    _raise_all(errors, [*wrong_devices(settings, "device"), *wrong_addresses(settings, "listen")])
    return settings


def _given(flags: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in flags.items() if value is not None}


def _validate(kind: type[_S], values: Mapping[str, Any], errors: list[ConfigError]) -> _S:
    """The settings, with the defaults of those that are wrong and added to `errors`: so contradictions among
    the others show too.

    Raises:
        ConfigErrors: one that has no default is wrong.
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
    """Raise ConfigErrors with `errors` and what was found besides, where there is any; each setting is named once."""
    named = {error.field for error in errors}
    errors = [*errors, *(error for error in found if error.field not in named)]
    if errors:
        raise ConfigErrors(errors)


def _shrink_defaults(settings: Settings) -> Settings:
    """A limit that nobody gave shrinks to what fits; one that was given is refused by `contradictions`."""
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
        if detail["type"] == "extra_forbidden":
            limit = f"unknown setting; known are {', '.join(kind.model_fields)}"
        elif detail["type"] == "missing":  # its input is everything that was given
            value, limit = None, "must be given"
        errors.append(ConfigError(name, str(value) if isinstance(value, Path) else value, limit))
    return errors
