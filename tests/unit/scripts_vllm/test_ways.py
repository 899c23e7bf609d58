"""The command lines of the servers, and the environment that they run in."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

from minedraft.vllm.settings import PluginSettings
from scripts.lib.vllm.ways import Places, ServerPlan, Way

PLACES = Places(verifier=1, drafter=0)


@pytest.mark.parametrize("way", Way)
def test_each_way_has_its_flags_and_the_plugin_takes_those_for_it(way: Way, tmp_path: Path) -> None:
    draft = tmp_path / "model"
    draft.mkdir()
    for name in ("config.json", "model.safetensors", "draft_vocab.safetensors"):
        (draft / name).touch()
    plan = ServerPlan(Path("T"), draft, "bfloat16", 3, 16, 512, tmp_path)
    words = plan.argv(way, Path("python"), "unix:/run/drafter.sock")
    flags = dict(pairwise(words))
    assert flags["--uds"] == f"{tmp_path}/{way.name.lower()}.sock"
    if not way.groups:
        assert "--scheduler-cls" not in flags
        assert ("--speculative-config" in flags) == (way is Way.OWN)
        if way is Way.OWN:
            model = Path(json.loads(flags["--speculative-config"])["model"])
            assert sorted(path.name for path in model.iterdir()) == ["config.json", "model.safetensors"]
        return
    assert json.loads(flags["--speculative-config"])["num_speculative_tokens"] == 3
    settings = PluginSettings.read(json.loads(flags["--additional-config"]))
    assert (settings.groups, str(settings.address)) == (way.groups, "unix:/run/drafter.sock")


def test_a_target_has_one_core_but_where_it_is_given_both() -> None:
    assert {way: PLACES.of(way) for way in Way} == dict.fromkeys(Way, (1,)) | {Way.AR_WIDE: (0, 1)}
