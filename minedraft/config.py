"""Every setting of a running MineDraft, from flags, a TOML file and defaults, in that order.

One text per field: the descriptions below are `--help`, the comments of the TOML file and the README
table. All problems are found before anything is started and before torch is imported, and all of
them are reported at once.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from minedraft.address import Address, default_listen
from minedraft.device import Device, usable_cores
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.types import MAX_BATCH_SIZE, MAX_DRAFT_LEN, DraftMethod, Mode

_TOKENS_BESIDE_DRAFTS = 3  # of a shortest request with one whole round: its prompt, the first token, the bonus token


def _default_target_device() -> str:
    cores = usable_cores()
    return str(Device("cpu", cores[1:2] or cores))


def _default_draft_device() -> str:
    return str(Device("cpu", usable_cores()[:1]))


def _expand_home(path: Path | None) -> Path | None:
    """`~` as the home folder: a TOML file and `--flag=~/x` come without a shell's help."""
    return None if path is None else Path(os.path.expanduser(path))


_Folder = Annotated[Path | None, Field(strict=False), AfterValidator(_expand_home)]


class Settings(BaseModel):
    """The settings, checked. Frozen: a running service never changes them."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    target: _Folder = Field(
        None, description="Folder of the target model; without it the default pair is used.", examples=["DIR"]
    )
    draft: _Folder = Field(
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
    draft_method: Annotated[DraftMethod, Field(strict=False)] = Field(
        DraftMethod.MODEL,
        description="model: the draft model proposes; ngram: the prompt's own n-grams, no draft model.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Number format of the weights; auto measures which one is faster on the device."
    )
    target_device: str = Field(
        default_factory=_default_target_device,
        description="Where the verifier runs: cpu, cpu:0, cpu:0-3, cpu:0,2 or cuda:0; the second core by default.",
        examples=["DEVICE"],
    )
    draft_device: str = Field(
        default_factory=_default_draft_device,
        description="Where the drafter runs, as for the target; the first core by default.",
        examples=["DEVICE"],
    )
    max_model_len: int | None = Field(
        None, ge=16, le=1 << 20, description="Tokens of prompt and answer together; the target's own limit by default."
    )
    prefill_chunk: int = Field(
        256,
        ge=16,
        le=8192,
        description="Prompt tokens in one verify round, over all newcomers; at most max_model_len.",
    )
    num_blocks: int | None = Field(
        None,
        ge=8,
        le=1 << 24,
        description="Blocks of KV cache in each worker; by default an eighth of the free memory (CUDA: 0.8).",
    )
    block_size: int = Field(16, ge=1, le=256, description="Tokens in a block of KV cache.")
    max_waiting: int = Field(
        256, ge=1, le=65536, description="Requests that may wait for a seat; more are refused at once."
    )
    listen: str = Field(
        default_factory=default_listen,
        description="Where clients connect: unix:PATH or HOST:PORT.",
        examples=["ADDR"],
    )
    insecure_public: bool = Field(
        False,
        description="Listen beyond this host though nothing protects it: no encryption, no login.",
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

    def to_toml_values(self) -> dict[str, Any]:
        """Plain values, without the ones that are unset; `load_settings(flags=...)` gives them back."""
        return {name: value for name, value in self.model_dump(mode="json").items() if value is not None}


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
    values |= {name: value for name, value in (flags or {}).items() if value is not None}
    try:
        settings = Settings.model_validate(values)
    except ValidationError as error:
        errors += [_to_config_error(detail) for detail in error.errors(include_url=False)]
        broken = {str(detail["loc"][0]) for detail in error.errors(include_url=False) if detail["loc"]}
        # The defaults stand in for broken values, so that contradictions among the others show too.
        rest = {name: value for name, value in values.items() if name not in broken}
        settings = Settings.model_validate(rest)
    settings = _shrink_defaults(settings)
    errors += [error for error in _contradictions(settings) if not _is_named(error.field, errors)]
    if errors:
        raise ConfigErrors(errors)
    return settings


def _shrink_defaults(settings: Settings) -> Settings:
    """A limit that nobody gave shrinks to what fits; one that was given is refused by `_contradictions`."""
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


def _contradictions(settings: Settings) -> list[ConfigError]:
    errors: list[ConfigError] = []

    def reject(field: str, value: object, limit: str) -> None:
        errors.append(ConfigError(field, str(value) if isinstance(value, Path) else value, limit))

    if settings.draft_len == 0 and settings.mode.has_drafts:
        reject("draft_len", 0, f"must be at least 1 in mode {settings.mode.value}; without drafts use mode ar")
    if settings.draft is not None and settings.draft_method is DraftMethod.NGRAM:
        reject("draft", settings.draft, "a draft model is not used with draft_method ngram; leave one of them out")
    if settings.draft is not None and settings.draft_address is not None:
        reject("draft", settings.draft, "the drafter at draft_address has its own model; leave one of them out")
    if settings.draft is not None and settings.target is None:
        reject("draft", settings.draft, "needs target: a pair of your own is given by both folders")
    if (
        settings.target is not None
        and settings.draft is None
        and settings.draft_address is None
        and settings.draft_method is DraftMethod.MODEL
        and settings.needs_drafter
    ):
        reject("draft", None, "target needs a draft model: give draft, or draft_method ngram, or mode ar")
    errors += _misfits(settings)
    for field in ("target_device", "draft_device"):
        try:
            Device.parse(getattr(settings, field), field)
        except ConfigError as error:
            errors.append(error)
    addresses: dict[str, str] = {}
    for field in ("listen", "target_address", "draft_address"):
        text = getattr(settings, field)
        if text is None:
            continue
        try:
            address = Address.parse(text, field)
        except ConfigError as error:
            errors.append(error)
            continue
        if address.target in addresses:
            reject(field, text, f"is also {addresses[address.target]}; each needs its own address")
        addresses[address.target] = field
        if field == "listen" and not address.is_local and not settings.insecure_public:
            reject(field, text, "other hosts could connect, unencrypted; --insecure-public says that is meant")
    return errors


def _misfits(settings: Settings) -> list[ConfigError]:
    """Lengths that were given and do not fit into each other."""
    errors: list[ConfigError] = []
    holders: list[tuple[int, str]] = []  # what bounds a request: tokens, and the settings that say so
    if settings.num_blocks is not None:
        kv = f"num_blocks {settings.num_blocks} of block_size {settings.block_size}"
        holders.append((settings.num_blocks * settings.block_size, kv))
        if settings.max_model_len is not None and settings.max_model_len > holders[0][0]:
            errors.append(ConfigError("max_model_len", settings.max_model_len, f"{kv} hold {holders[0][0]} tokens"))
    if settings.max_model_len is not None:
        holders.append((settings.max_model_len, "max_model_len"))
        if settings.prefill_chunk > settings.max_model_len:
            limit = f"must not exceed max_model_len {settings.max_model_len}"
            errors.append(ConfigError("prefill_chunk", settings.prefill_chunk, limit))
    num_tokens = settings.draft_len + _TOKENS_BESIDE_DRAFTS
    if holders and settings.needs_drafter and num_tokens > min(holders)[0]:
        held, holder = min(holders)
        limit = f"a prompt and one round of it need {num_tokens} tokens, {holder} gives {held}"
        errors.append(ConfigError("draft_len", settings.draft_len, limit))
    return errors


def _is_named(field: str, errors: list[ConfigError]) -> bool:
    return any(error.field == field for error in errors)


def _to_config_error(detail: Any) -> ConfigError:  # noqa: ANN401 - pydantic's own TypedDict
    name = ".".join(str(part) for part in detail["loc"])
    value = detail["input"]
    return ConfigError(name, str(value) if isinstance(value, Path) else value, _limit_text(detail))


def _limit_text(detail: Any) -> str:  # noqa: ANN401
    if detail["type"] == "extra_forbidden":
        return f"unknown setting; known are {', '.join(Settings.model_fields)}"
    message: str = detail["msg"]
    return message.replace("Input should be", "must be").replace("Input should", "must")
