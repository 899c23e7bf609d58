"""The policies that the settings ask for, and what these must be told."""

from __future__ import annotations

import pytest

from minedraft.core.policy.auto_mode import AutoMode
from minedraft.core.policy.base import FixedDraftLen, FixedMode
from minedraft.core.policy.draft_len import AutoDraftLen
from minedraft.core.policy.tetris import TetrisPolicy
from minedraft.server.policies import choose_policies, choose_scores
from minedraft.settings.loading import load_settings
from minedraft.types import ScoreKind


@pytest.mark.parametrize(
    ("flags", "kind", "scores"),
    [
        ({"draft_len": 2}, FixedDraftLen, ScoreKind.NONE),
        ({}, AutoDraftLen, ScoreKind.NONE),
        ({"draft_policy": "tetris"}, TetrisPolicy, ScoreKind.PEAK),
        ({"draft_policy": "tetris-exact", "draft_len": 2}, TetrisPolicy, ScoreKind.DRAWN),
    ],
)
def test_each_setting_has_its_policy(flags: dict[str, object], kind: type, scores: ScoreKind) -> None:
    settings = load_settings(flags)
    assert type(choose_policies(settings).draft) is kind
    assert choose_scores(settings) is scores


def test_the_mode_is_chosen_only_where_the_settings_leave_it_open() -> None:
    assert type(choose_policies(load_settings({})).mode) is AutoMode
    assert type(choose_policies(load_settings({"mode": "sd"})).mode) is FixedMode
