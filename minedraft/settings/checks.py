"""Checks that types and ranges cannot express: contradictions between settings, devices and addresses."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from minedraft.address import Address
from minedraft.device import Device, usable_cores
from minedraft.errors import ConfigError
from minedraft.settings.choices import AUTO
from minedraft.settings.door import wrong_door, wrong_worker_tls
from minedraft.types import DraftMethod

if TYPE_CHECKING:
    from minedraft.settings.service import Settings
    from minedraft.settings.shared import SharedSettings

_EXPORTER = "opentelemetry.exporter.otlp.proto.grpc.trace_exporter"
_LEAST_HANG_S = 1.0  # in less, a process on a busy machine misses its pings, and would be killed for ever
_TOKENS_BESIDE_DRAFTS = 3  # of the shortest request with one whole round: prompt, first token, bonus token


def contradictions(settings: Settings) -> list[ConfigError]:
    """Return an error for each setting of a service that cannot work."""
    return [
        *_wrong_models(settings),
        *_wrong_lengths(settings),
        *wrong_devices(settings, "target_device", "draft_device"),
        *wrong_addresses(settings, "listen", "http", "target_address", "draft_address", "metrics"),
        *_wrong_shares(settings),
        *_wrong_observing(settings),
        *wrong_door(settings),
        *wrong_worker_tls(settings, "target_address", "draft_address"),
    ]


def wrong_devices(settings: SharedSettings, *fields: str) -> list[ConfigError]:
    """Return an error for each of `fields` that names no device."""
    errors: list[ConfigError] = []
    for field in fields:
        text = getattr(settings, field)
        if text is None:
            continue
        try:
            Device.parse(text, field)
        except ConfigError as error:
            errors.append(error)
    return errors


def wrong_addresses(settings: SharedSettings, *fields: str) -> list[ConfigError]:
    """Return an error for each of `fields` that is malformed or used twice."""
    errors: list[ConfigError] = []
    fields_of: dict[str, str] = {}
    for field in fields:
        text = getattr(settings, field)
        if text is None:
            continue
        try:
            address = Address.parse(text, field)
        except ConfigError as error:
            errors.append(error)
            continue
        if address.target in fields_of:
            limit = f"already used for {fields_of[address.target]}; each needs its own address"
            errors.append(ConfigError(field, text, limit))
        fields_of[address.target] = field
    return errors


def _wrong_observing(settings: Settings) -> list[ConfigError]:
    """Return an error for each way to observe the service that other hosts could use."""
    errors: list[ConfigError] = []
    if settings.reflection and not _is_local(settings.listen):
        limit = f"only at an address of this host; listen is {settings.listen}"
        errors.append(ConfigError("reflection", settings.reflection, limit))
    if settings.metrics is not None and settings.metrics.startswith("unix:"):
        errors.append(ConfigError("metrics", settings.metrics, "must be HOST:PORT"))
    elif settings.metrics is not None and not _is_local(settings.metrics):
        limit = "only at an address of this host; a collector that runs here can carry them on"
        errors.append(ConfigError("metrics", settings.metrics, limit))
    if settings.otlp_traces_endpoint is not None:
        errors += _wrong_collector(settings.otlp_traces_endpoint)
    return errors


def _wrong_collector(url: str) -> list[ConfigError]:
    scheme, _, rest = url.partition("://")
    limit = ""
    if scheme not in ("http", "https") or not rest:
        limit = "must be http://HOST:PORT, or https:// for TLS"
    elif scheme == "http" and not _is_local(rest.rstrip("/")):
        limit = "on another host, without encryption; use https://"
    elif not _has_exporter():
        limit = "needs OpenTelemetry: pip install 'minedraft[otel]'"
    return [ConfigError("otlp_traces_endpoint", url, limit)] if limit else []


def _has_exporter() -> bool:
    """Return whether the packages that send spans are installed; only the service itself loads them."""
    try:
        return find_spec(_EXPORTER) is not None
    except ModuleNotFoundError:  # a package that it is in
        return False


def _is_local(text: str) -> bool:
    """Return whether only this host reaches the address; also if it is none, which is told elsewhere."""
    try:
        return Address.parse(text).is_local
    except ConfigError:
        return True


def _wrong_shares(settings: Settings) -> list[ConfigError]:
    """Return an error if two workers would share one GPU and ask for more than it has."""
    target, draft, device = settings.target_memory_share, settings.draft_memory_share, settings.target_device
    if target is None or draft is None or not settings.shares_gpu:
        return []
    limit = f"with target_memory_share {target:g} that is more than all of {device}, which both workers use"
    return [ConfigError("draft_memory_share", draft, limit)] if target + draft > 1 else []


def _wrong_models(settings: Settings) -> list[ConfigError]:
    """Return an error for each model folder that is missing or would not be used."""
    errors: list[ConfigError] = []
    draft, is_ngram = settings.draft, settings.draft_method is DraftMethod.NGRAM
    if draft is not None and is_ngram:
        limit = "draft_method ngram uses no draft model; remove one of the two"
        errors.append(ConfigError("draft", str(draft), limit))
    if draft is not None and settings.draft_address is not None:
        limit = "the drafter at draft_address has its own model; remove one of the two"
        errors.append(ConfigError("draft", str(draft), limit))
    if draft is not None and settings.target is None:
        errors.append(ConfigError("draft", str(draft), "requires target: give both folders, or neither"))
    has_drafter = draft is not None or settings.draft_address is not None or is_ngram
    is_eagle = settings.draft_method is DraftMethod.EAGLE
    if is_eagle and settings.needs_drafter and not has_drafter:
        return [ConfigError("draft", None, "required with draft_method eagle: the folder of the drafting head")]
    if settings.target is not None and settings.needs_drafter and not has_drafter:
        limit = "required with target: give draft, or use draft_method ngram or mode ar"
        errors.append(ConfigError("draft", None, limit))
    return errors


def _wrong_lengths(settings: Settings) -> list[ConfigError]:
    """Return an error for each given length, of tokens or time, that cannot work or contradicts another setting."""
    errors: list[ConfigError] = []
    if 0 < settings.hang_timeout_s < _LEAST_HANG_S:
        errors.append(ConfigError("hang_timeout_s", settings.hang_timeout_s, "must be at least 1, or 0 for never"))
    if settings.draft_len == 0 and settings.needs_drafter:
        mode = AUTO if settings.mode == AUTO else settings.mode.value
        limit = f"must be at least 1 in mode {mode}; use mode ar to decode without drafts"
        errors.append(ConfigError("draft_len", 0, limit))
    holders: list[tuple[int, str]] = []  # bounds of a request: tokens, and the settings that set them
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
    num_drafts = 0 if settings.draft_len == AUTO else settings.draft_len
    num_tokens = num_drafts + _TOKENS_BESIDE_DRAFTS
    if holders and settings.needs_drafter and num_tokens > min(holders)[0]:
        held, holder = min(holders)
        limit = f"the shortest prompt and one round need {num_tokens} tokens, {holder} allows {held}"
        errors.append(ConfigError("draft_len", settings.draft_len, limit))
    return errors


def cores_of_both(settings: Settings) -> str | None:
    """Return the cores of both workers as a device, if both compute on CPUs of this host and may share them."""
    devices = [Device.parse(text) for text in (settings.target_device, settings.draft_device)]
    is_remote = settings.target_address is not None or settings.draft_address is not None
    if settings.keep_cores or is_remote or any(device.kind != "cpu" for device in devices):
        return None
    return str(Device("cpu", tuple(sorted({core for d in devices for core in d.cores or usable_cores()}))))
