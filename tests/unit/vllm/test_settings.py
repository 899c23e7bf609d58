"""The plugin's settings in vLLM's additional config."""

from __future__ import annotations

import pytest

from minedraft.errors import ConfigError
from minedraft.vllm.settings import PluginSettings


def test_an_address_is_enough():
    settings = PluginSettings.read({"minedraft": {"drafter": "unix:/run/drafter.sock"}, "other": 1})
    assert (settings.groups, settings.wait_ms, settings.is_auto) == (2, 250.0, False)
    assert str(settings.address) == "unix:/run/drafter.sock"


def test_the_number_of_drafts_can_be_automatic():
    assert PluginSettings.read({"minedraft": {"drafter": "h:1", "draft_len": "auto"}}).is_auto


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, 'additional_config.*needs {"minedraft": {"drafter": ADDRESS}}'),
        ({}, "additional_config.minedraft.drafter: must be an address"),
        ({"drafter": "nowhere"}, "additional_config.minedraft.drafter is 'nowhere'"),
        ({"drafter": "h:1", "draft_len": 17}, r"minedraft.draft_len is 17: must be a whole number in \[0, 16\]"),
        ({"drafter": "h:1", "draft_len": "many"}, "minedraft.draft_len is 'many'"),
        ({"drafter": "h:1", "groups": 3}, r"minedraft.groups is 3: must be a whole number in \[1, 2\]"),
        ({"drafter": "h:1", "groups": True}, "minedraft.groups is True"),
        ({"drafter": "h:1", "wait_ms": -1}, r"minedraft.wait_ms is -1: must be a number in \[0, 60000\]"),
        ({"drafter": "h:1", "wait": 1}, "minedraft.wait is 1: no such setting; there are drafter, draft_len, groups"),
    ],
)
def test_a_setting_that_cannot_be_is_named(given: object, message: str):
    with pytest.raises(ConfigError, match=message):
        PluginSettings.read({} if given is None else {"minedraft": given})
