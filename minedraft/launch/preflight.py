"""The checks of models, devices and addresses that are made before a process is started."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

from minedraft.address import Address
from minedraft.device import Device
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.models.catalogue import check_fetch
from minedraft.models.folder import FolderInfo, check_model_folder, check_pair
from minedraft.models.heads.folder import check_head_folder, is_head_folder
from minedraft.process.claim import ListenClaim
from minedraft.process.run_folder import RunFolder
from minedraft.settings.service import Settings
from minedraft.settings.writable import check_writable_file
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import NO_RUNNING_AHEAD, DraftMethod, Mode, Role

_FILES_BESIDE_CLIENTS = 128


def settle_draft_method(settings: Settings) -> Settings:
    """Return the settings with a draft method: if none was given, what the draft folder holds says which.

    Raises:
        ConfigError: the mode cannot be had with it.
    """
    if settings.draft_method is None:
        is_head = settings.draft is not None and is_head_folder(settings.draft)
        method = DraftMethod.EAGLE if is_head else DraftMethod.MODEL
        settings = settings.model_copy(update={"draft_method": method})
    assert settings.draft_method is not None, "set above"
    if settings.mode == Mode.PEARL and not settings.draft_method.can_run_ahead:
        raise ConfigError("mode", Mode.PEARL.value, NO_RUNNING_AHEAD)
    return settings


def check_machine(settings: Settings) -> None:
    """Check the models, devices and addresses that the settings name. Imports no torch.

    Raises:
        ConfigErrors: all problems, in the order of the settings.
    """
    errors: list[ConfigError] = []

    def collect(check: Callable[[], object]) -> object:
        try:
            return check()
        except ConfigErrors as error:
            errors.extend(error.errors)
        except ConfigError as error:
            errors.append(error)
        return None

    target = draft = None
    if settings.target is None:  # the default pair, which is not fetched yet
        collect(check_fetch)
    else:
        target = collect(lambda: _check_target(settings.target))
    is_eagle = settings.draft_method is DraftMethod.EAGLE
    if settings.draft is not None and settings.needs_drafter and not is_eagle:
        draft = collect(lambda: _check_folder(settings.draft, "draft"))
    if settings.draft is not None and settings.needs_drafter and is_eagle and isinstance(target, FolderInfo):
        head = settings.draft, target
        collect(lambda: check_head_folder(*head, "draft"))
    if isinstance(target, FolderInfo) and isinstance(draft, FolderInfo):
        pair = target, draft
        collect(lambda: check_pair(*pair))
    if isinstance(target, FolderInfo) and settings.max_model_len is not None:
        limit = target.max_context
        if settings.max_model_len > limit:
            errors.append(
                ConfigError("max_model_len", settings.max_model_len, f"the target's context has {limit} tokens")
            )
    if Role.VERIFIER in settings.own_workers:
        collect(lambda: Device.parse(settings.target_device).here("target_device"))
    if Role.DRAFTER in settings.own_workers:
        collect(lambda: Device.parse(settings.draft_device).here("draft_device"))
    collect(_check_working_folder)
    collect(lambda: _allow_files(settings))
    for field in ("listen", "http", "metrics"):
        collect(partial(_check_address, settings, field))
    collect(partial(check_writable_file, "trace", settings.trace))
    collect(lambda: RunFolder().remove())
    if errors:
        raise ConfigErrors(errors)


def _check_working_folder() -> None:
    """Raise ConfigError if the working folder was removed: libraries of the workers then cannot be loaded, and say so
    in words of their own."""
    try:
        os.getcwd()
    except OSError as error:
        limit = f"the working folder cannot be used: {error.strerror}; start in another one"
        raise ConfigError("PWD", os.environ.get("PWD"), limit) from None


def _allow_files(settings: Settings) -> None:
    """Raise this process's limit of open files, which its children inherit, to what the settings can need: a
    connection for each request, and what every process has open."""
    needed = settings.max_waiting + settings.max_in_flight + _FILES_BESIDE_CLIENTS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        limit = f"that many clients need {needed} open files, and the limit is {hard} (ulimit -Hn)"
        raise ConfigError("max_waiting", settings.max_waiting, limit)
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _check_address(settings: Settings, field: str) -> None:
    if (text := getattr(settings, field)) is not None:
        ListenClaim(Address.parse(text, field), field).release()


def _check_target(path: Path | None) -> FolderInfo:
    folder = _check_folder(path, "target")
    Tokenizer.load(folder.path)  # the scheduler tokenises with the target's files
    return folder


def _check_folder(path: Path | None, field: str) -> FolderInfo:
    assert path is not None, "the caller has checked"
    return check_model_folder(path, field)
