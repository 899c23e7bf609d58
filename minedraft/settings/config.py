"""The settings of the service and of a single worker. Flags go before the TOML file, the file before the defaults.

One text per field: the descriptions below are `--help`, the comments of the TOML file and the README
table. All problems are found before a process is started or torch is imported, and are reported together.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from minedraft.address import Address, default_listen
from minedraft.device import DEVICE_FORMS, GPU_MEMORY_SHARE, Device, usable_cores
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.sampling_params import MAX_DRAFT_LEN
from minedraft.settings.checks import contradictions, cores_of_both, wrong_addresses, wrong_devices
from minedraft.settings.choices import AUTO, DraftLenChoice, Folder, ModeChoice, OptionalFolder
from minedraft.types import MAX_BATCH_SIZE, MAX_BRANCHES, Batch, DraftMethod, Mode, Role

_S = TypeVar("_S", bound="SharedSettings")


class Positional:
    """Marks a setting that is a positional argument of the command line."""


class Switch:
    """Marks a setting that is on by default: the command line has a flag that turns it off, too."""


def _default_target_device() -> str:
    cores = usable_cores()
    return str(Device("cpu", cores[1:2] or cores))


def _default_draft_device() -> str:
    return str(Device("cpu", usable_cores()[:1]))


_Share = Annotated[float | None, Field(gt=0, le=1)]


class SharedSettings(BaseModel):
    """The settings that the service shares with its workers. Frozen: they never change in a running process."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    draft_method: Annotated[DraftMethod | None, Field(strict=False)] = Field(
        None,
        description="model: use the draft model; ngram: look up n-grams in the request, no draft model; eagle: use the "
        "drafting head in the draft folder, which reads the target's features; default: what the draft folder holds.",
    )
    lookup: Annotated[bool, Switch()] = Field(
        True,
        description="Draft by n-grams of the request where that promises more than the draft model, which drafts else.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the weights; auto picks the faster one for the device."
    )
    kernels: Literal["auto", "native", "triton", "torch", "transformers"] = Field(
        "auto",
        description="What computes a forward pass. native: this package's CPU kernels; triton: its GPU kernels; torch: "
        "torch's operators, layers fused likewise; all three for models of the Llama kind. transformers: the model's "
        "own code, for any model. auto: the first of them that fits.",
    )
    max_model_len: int | None = Field(
        None, ge=16, le=1 << 20, description="Maximum tokens of prompt and answer together; default: the model's limit."
    )
    num_blocks: int | None = Field(
        None,
        ge=8,
        le=1 << 24,
        description="KV cache blocks per worker; default: what fits in its share of the memory.",
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens per KV cache block.")
    insecure_public: bool = Field(
        False,
        description="Allow a non-local address without TLS or authentication.",
    )

    @classmethod
    def own_first(cls) -> list[tuple[str, FieldInfo]]:
        """Return names and fields in the order they are shown in: the class's own before the shared ones."""
        return sorted(cls.model_fields.items(), key=lambda item: item[0] in SharedSettings.model_fields)

    def to_plain_values(self) -> dict[str, Any]:
        """Return the set values as texts and numbers; given as flags, they make the same settings again."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


class WorkerSettings(SharedSettings):
    """The settings of one worker process."""

    role: Annotated[Role, Field(strict=False), Positional()] = Field(description="The worker's role.")
    model: Folder = Field(
        description="Model folder; with --draft-method ngram the target's, for its tokenizer.", examples=["DIR"]
    )
    target: OptionalFolder = Field(
        None,
        description="With draft_method eagle: the target's model folder, for its tokenizer, embedding and output rows.",
        examples=["DIR"],
    )
    listen: str = Field(description="Address to serve the scheduler on: unix:PATH or HOST:PORT.", examples=["ADDR"])
    device: str = Field("cpu", description=f"Device to run on: {DEVICE_FORMS}.", examples=["DEVICE"])
    max_device: str | None = Field(
        None,
        description="All cores that the scheduler may have it compute on while it runs, as cpu:0-3; default: its own.",
        examples=["DEVICE"],
    )
    memory_share: _Share = Field(
        None,
        description="Part of a GPU's memory that weights and KV cache may take, or of the free memory of a CPU "
        f"that the KV cache may take; default: {GPU_MEMORY_SHARE:g} and 1/8.",
        examples=["SHARE"],
    )
    max_requests: int | None = Field(
        None, ge=1, description="Requests that can have KV at once; on a GPU the cache gets no more than they can use."
    )

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def has_model(self) -> bool:
        """Whether the worker runs a model; a verifier always does."""
        return self.role is Role.VERIFIER or self.draft_method is not DraftMethod.NGRAM


class Settings(SharedSettings):
    """The settings of the service."""

    target: OptionalFolder = Field(
        None, description="Target model folder; if omitted, the default pair is used.", examples=["DIR"]
    )
    draft: OptionalFolder = Field(
        None,
        description="Draft model folder, which must have the target's tokenizer, or the folder of an EAGLE head.",
        examples=["DIR"],
    )
    mode: ModeChoice = Field(
        AUTO,
        description="minedraft: two batches, drafting and verifying overlap; sd: one batch, taking turns; "
        "pearl: one batch, drafted on while it is verified; ar: no drafts; auto: whichever of the others but pearl "
        "measured costs make the fastest at the present load.",
    )
    max_batch_size: int = Field(
        8, ge=1, le=MAX_BATCH_SIZE, description="Requests per batch (m); minedraft has two; auto seats as many as two."
    )
    draft_len: DraftLenChoice = Field(
        AUTO,
        description="Draft tokens per request and round (k), ignored in mode ar; auto: as many as measured costs and "
        "acceptance make the fastest, for each request.",
    )
    branches: int = Field(
        4,
        ge=1,
        le=MAX_BRANCHES,
        description="Ways a verify may end that pearl prepares for; 1: as in its paper.",
    )
    draft_policy: Literal["fixed", "tetris", "tetris-exact"] = Field(
        "fixed",
        description="Which drafts to verify. fixed: all; tetris: of extra drafts the best of the batch; tetris-exact: "
        "the same by the paper's rule, which changes the distribution of sampled answers without a seed.",
    )
    extra_drafts: int = Field(
        1, ge=1, le=MAX_DRAFT_LEN, description="Drafts beyond draft_len that tetris chooses from, per request."
    )
    verify_capacity: int = Field(
        0, ge=0, le=65536, description="Drafts that tetris verifies per round; 0: as many as without extra ones."
    )
    target_device: str = Field(
        default_factory=_default_target_device,
        description=f"Device of the verifier: {DEVICE_FORMS}; default: the second core.",
        examples=["DEVICE"],
    )
    draft_device: str = Field(
        default_factory=_default_draft_device,
        description="Device of the drafter, in the same form; default: the first core.",
        examples=["DEVICE"],
    )
    keep_cores: bool = Field(
        False, description="Leave the drafter's cores idle in mode ar; otherwise the verifier computes on them too."
    )
    keep_drafting: bool = Field(
        False, description="Draft even if no draft is accepted; otherwise drafting is suspended and tried again later."
    )
    target_memory_share: _Share = Field(
        None,
        description="Part of a GPU's memory that the verifier's weights and KV cache may take, or of the free memory "
        f"of a CPU that its KV cache may take; default: 1/8 on a CPU, {GPU_MEMORY_SHARE:g} on a GPU, which two workers "
        "on one GPU divide by the sizes of their models.",
        examples=["SHARE"],
    )
    draft_memory_share: _Share = Field(None, description="The same for the drafter.", examples=["SHARE"])
    prefill_chunk: int = Field(
        256,
        ge=16,
        le=8192,
        description="Prompt tokens per verify round, over all new requests; at most max_model_len.",
    )
    max_waiting: int = Field(
        256, ge=1, le=65536, description="Requests that may wait for a seat; further ones are refused."
    )
    listen: str = Field(
        default_factory=default_listen,
        description="Address to serve clients on: unix:PATH or HOST:PORT.",
        examples=["ADDR"],
    )
    allow_configure: bool = Field(
        False, description="Let a client change mode and batch limits temporarily, as `minedraft bench` does."
    )
    target_address: str | None = Field(
        None, description="Use the verifier already running at this address.", examples=["ADDR"]
    )
    draft_address: str | None = Field(
        None, description="Use the drafter already running at this address.", examples=["ADDR"]
    )
    channel: Literal["auto", "inline", "shm", "cuda_ipc", "dist"] = Field(
        "auto",
        description="What carries large tensors (draft distributions, hidden states) between the workers. inline: "
        "messages, through the scheduler; shm: shared memory; cuda_ipc: GPU memory of one host; dist: "
        "torch.distributed. auto: the fastest that both workers have; it falls back to inline.",
    )
    load_timeout_s: float = Field(600.0, gt=0, le=86400, description="Seconds within which the workers must be ready.")
    drain_timeout_s: float = Field(
        30.0, ge=0, le=3600, description="Seconds that running requests have to finish at shutdown."
    )

    @property
    def listen_address(self) -> Address:
        return Address.parse(self.listen, "listen")

    @property
    def max_draft_len(self) -> int:
        """The most drafts that a request can have in a round."""
        return MAX_DRAFT_LEN if self.draft_len == AUTO else self.draft_len

    @property
    def first_mode(self) -> Mode:
        """The mode to begin with; drafts are to be measured before they can be judged."""
        return Mode.SD if self.mode == AUTO else self.mode

    @property
    def max_in_flight(self) -> int:
        """Requests decoding at the same time over all batches."""
        return self.max_batch_size * (len(Batch) if self.mode == AUTO else self.mode.num_batches)

    @property
    def shares_gpu(self) -> bool:
        """Whether both workers belong to this service and run on one GPU."""
        try:
            devices = {Device.parse(text) for text in (self.target_device, self.draft_device)}
        except ConfigError:  # told elsewhere
            return False
        return len(self.own_workers) == len(Role) and len(devices) == 1 and devices.pop().kind == "cuda"

    @property
    def _max_with_kv(self) -> int | None:
        """Requests that have KV on a worker at once; None where a client may change the limits of the batches."""
        # Two batches, whatever the mode is now; and a request may come before the KV of the last one is released.
        return None if self.allow_configure else 4 * self.max_batch_size

    @property
    def needs_drafter(self) -> bool:
        return self.mode == AUTO or self.mode.has_drafts

    @property
    def own_workers(self) -> tuple[Role, ...]:
        """The workers that belong to this service: those without a given address, where one runs already."""
        roles = []
        if self.target_address is None:
            roles.append(Role.VERIFIER)
        if self.needs_drafter and self.draft_address is None:
            roles.append(Role.DRAFTER)
        return tuple(roles)

    def for_worker(self, role: Role, address: str) -> WorkerSettings:
        """Return the settings of a worker of this service that listens at `address`. The folders must be set."""
        is_verifier = role is Role.VERIFIER
        is_of_target = is_verifier or self.draft_method is DraftMethod.NGRAM
        own = {
            "role": role,
            "model": self.target if is_of_target else self.draft,
            "target": self.target if not is_verifier and self.draft_method is DraftMethod.EAGLE else None,
            "listen": address,
            "device": self.target_device if is_verifier else self.draft_device,
            "max_device": cores_of_both(self) if is_verifier else None,
            "memory_share": self.target_memory_share if is_verifier else self.draft_memory_share,
            "max_requests": self._max_with_kv,
        }
        return WorkerSettings.model_validate(own | {name: getattr(self, name) for name in SharedSettings.model_fields})


def load_settings(flags: Mapping[str, Any] | None = None, file: Path | None = None) -> Settings:
    """Return the checked settings: flags go before the TOML file, the file before the defaults.

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
                errors.append(ConfigError(f"{file}: {key}", value, f"unknown setting; known settings: {known}"))
    settings = _validate(Settings, values | _given(flags or {}), errors)
    settings = _shrink_defaults(settings)
    _raise_all(errors, contradictions(settings))
    return settings


def load_worker_settings(flags: Mapping[str, Any]) -> WorkerSettings:
    """Return the checked settings of a single worker.

    Args:
        flags: field name -> value; None means "not given".

    Raises:
        ConfigErrors: every unknown name, wrong type and value out of range.
    """
    errors: list[ConfigError] = []
    settings = _validate(WorkerSettings, _given(flags), errors)
    _raise_all(errors, [*wrong_devices(settings, "device", "max_device"), *wrong_addresses(settings, "listen")])
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
