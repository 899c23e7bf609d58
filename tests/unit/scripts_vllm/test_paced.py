"""The drafter that sleeps: as long as the table says, less what the model took."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from minedraft.messages import DraftCommand, DraftSpan
from minedraft.types import Batch, Role, RoundId
from minedraft_workers.drafter import DrafterActor
from scripts.lib.null_worker import NullActor
from scripts.lib.vllm import paced


@pytest.mark.parametrize(("num_requests", "taken_s", "slept_s"), [(5, 0.01, 0.03), (8, 0.05, 0.0), (9, 0.01, 0.06)])
def test_a_draft_takes_its_time_and_has_the_model_s_tokens(
    num_requests: int, taken_s: float, slept_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, slept = [100.0], list[float]()

    class Slow(NullActor):
        def draft(self, command: DraftCommand):
            now_s[0] += taken_s
            return super().draft(command)

    monkeypatch.setattr(paced.time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(paced.time, "sleep", slept.append)
    file = tmp_path / "times.json"
    drafter = paced.PacedDrafter(cast(DrafterActor, Slow(Role.DRAFTER)), paced.Pace(file))
    spans = tuple(DraftSpan(n, 4, (5,), 3) for n in range(1, num_requests + 1))
    command = DraftCommand(RoundId(1, Batch.A, 1), spans)
    drafter.draft(command)
    assert slept == [0.0], "without a file the model's own pace"
    file.write_text(json.dumps({8: {3: 40.0}, 16: {3: 70.0}}))
    assert [proposal.tokens for proposal in drafter.draft(command).rows] == [(1, 2, 3)] * num_requests
    assert slept[1:] == [pytest.approx(slept_s)]
    drafter.prefill(replace(command, spans=(replace(spans[0], draft_len=0),)))
    assert len(slept) == 2, "prompts are cached at the model's own pace"
