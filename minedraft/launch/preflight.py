"""The checks of models, devices and addresses that are made before a process is started."""

from __future__ import annotations

import os
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from minedraft.address import Address
from minedraft.device import Device
from minedraft.errors import ConfigError, ConfigErrors
from minedraft.models.catalogue import check_fetch
from minedraft.models.folder import FolderInfo, check_model_folder, check_pair
from minedraft.models.heads.folder import check_head_folder, is_head_folder
from minedraft.process.claim import ListenClaim
from minedraft.process.run_folder.folder import RunFolder
from minedraft.settings.service import Settings
from minedraft.settings.writable import check_writable_file
from minedraft.text.tokenizer import Tokenizer
from minedraft.types import NO_RUNNING_AHEAD, DraftMethod, Mode, Role

_T = TypeVar("_T")

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
    problems = _Problems()
    _check_models(settings, problems)
    if Role.VERIFIER in settings.own_workers:
        problems.found_by(lambda: Device.parse(settings.target_device).here("target_device"))
    if Role.DRAFTER in settings.own_workers:
        problems.found_by(lambda: Device.parse(settings.draft_device).here("draft_device"))
    problems.found_by(_check_working_folder)
    problems.found_by(lambda: _allow_files(settings))
    for field in ("listen", "http", "metrics"):
        problems.found_by(partial(_check_address, settings, field))
    problems.found_by(partial(check_writable_file, "trace", settings.trace))
    problems.found_by(lambda: RunFolder().remove())
    if problems.errors:
        raise ConfigErrors(problems.errors)


class _Problems:
    """Collects what several checks find."""

    def __init__(self) -> None:
        self.errors: list[ConfigError] = []

    def found_by(self, check: Callable[[], _T]) -> _T | None:
        """Return what the check returns; None if it has found a problem."""
        try:
            return check()
        except ConfigErrors as error:
            self.errors += error.errors
        except ConfigError as error:
            self.errors.append(error)
        return None


def _check_models(settings: Settings, problems: _Problems) -> None:
    """Check the folders, and that the draft model or head and the context fit the target."""
    if settings.target is None:  # the default pair, which is not fetched yet
        problems.found_by(check_fetch)
    target = None if settings.target is None else problems.found_by(partial(_check_target, settings.target))
    if settings.draft is not None and settings.needs_drafter:
        if settings.draft_method is not DraftMethod.EAGLE:
            draft = problems.found_by(partial(check_model_folder, settings.draft, "draft"))
            if target is not None and draft is not None:
                problems.found_by(partial(check_pair, target, draft))
        elif target is not None:
            problems.found_by(partial(check_head_folder, settings.draft, target, "draft"))
    if target is not None and (settings.max_model_len or 0) > target.max_context:
        limit = f"the target's context has {target.max_context} tokens"
        problems.errors.append(ConfigError("max_model_len", settings.max_model_len, limit))


def _check_target(path: Path) -> FolderInfo:
    folder = check_model_folder(path, "target")
    Tokenizer.load(folder.path)  # the scheduler tokenises with the target's files
    return folder


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
