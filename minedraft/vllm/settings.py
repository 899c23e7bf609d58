"""The plugin's settings: the object "minedraft" in vLLM's `--additional-config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from minedraft.address import Address
from minedraft.errors import ConfigError
from minedraft.sampling_params import MAX_DRAFT_LEN

_KEY = "minedraft"
_AUTO = "auto"
_MAX_WAIT_MS = 60_000.0
_MAX_CONNECT_S = 3600.0


@dataclass(frozen=True, slots=True)
class PluginSettings:
    """The settings, checked.

    Attributes:
        drafter: address of a running `minedraft-worker drafter`.
        draft_len: drafts of a request, at most vLLM's num_speculative_tokens; "auto" for as many as measured costs
            and acceptance make the fastest.
        groups: 2 for groups that take turns; 1 for speculative decoding without overlap.
        wait_ms: how long a step waits for drafts before it goes on without them.
        connect_timeout_s: how long the start waits for the drafter before it goes on without it.
    """

    drafter: str
    draft_len: int | str = 0  # 0: as vLLM's num_speculative_tokens
    groups: int = 2
    wait_ms: float = 250.0
    connect_timeout_s: float = 30.0

    @property
    def address(self) -> Address:
        return Address.parse(self.drafter, _name("drafter"))

    @property
    def is_auto(self) -> bool:
        """Whether measured costs and acceptance set the number of drafts."""
        return self.draft_len == _AUTO

    @classmethod
    def read(cls, additional_config: Mapping[str, object]) -> PluginSettings:
        """Return the settings in vLLM's additional config.

        Raises:
            ConfigError: a setting is missing, unknown or out of range.
        """
        given = additional_config.get(_KEY)
        if not isinstance(given, Mapping):
            raise ConfigError(
                "additional_config", dict(additional_config), f'needs {{"{_KEY}": {{"drafter": ADDRESS}}}}'
            )
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigError(_name(str(name)), given[name], f"no such setting; there are {', '.join(known)}")
        if not isinstance(given.get("drafter"), str):
            raise ConfigError(_name("drafter"), given.get("drafter"), "must be an address: unix:PATH or HOST:PORT")
        settings = cls(**given)
        settings._check()
        return settings

    def _check(self) -> None:
        self.address  # noqa: B018 - raises for what is no address
        if not self.is_auto:
            _check_number("draft_len", self.draft_len, 0, MAX_DRAFT_LEN)
        _check_number("groups", self.groups, 1, 2)
        _check_number("wait_ms", self.wait_ms, 0, _MAX_WAIT_MS, is_whole=False)
        _check_number("connect_timeout_s", self.connect_timeout_s, 0, _MAX_CONNECT_S, is_whole=False)


def _check_number(name: str, value: object, least: float, most: float, *, is_whole: bool = True) -> None:
    kinds = (int,) if is_whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= most:
        kind = "a whole number" if is_whole else "a number"
        raise ConfigError(_name(name), value, f"must be {kind} in [{least:g}, {most:g}]")


def _name(setting: str) -> str:
    return f"additional_config.{_KEY}.{setting}"
