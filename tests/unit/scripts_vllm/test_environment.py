"""vLLM's environment where it must not be made."""

from __future__ import annotations

from pathlib import Path

import pytest

from minedraft.models.cache import CACHE_VARIABLE
from scripts.lib.vllm import environment


def test_nothing_is_made_where_only_a_cached_environment_is_to_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(environment.sys, "argv", ["environment", environment.IF_CACHED, "-m", "pytest"])
    environment.main()
    assert "not in the cache: scripts/vllm --install" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
