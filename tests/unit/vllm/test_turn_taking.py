"""What the plugin's schedulers set on vLLM's requests, over a made-up scheduler with vLLM's fields and rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from minedraft.vllm import turn_taking
from minedraft.vllm.alternation import Alternation, Turn
from minedraft.vllm.groups import Groups
from minedraft.vllm.turn_taking import TurnTaking
from tests.fakes.drafter_link import FakeLink


@dataclass
class Request:
    request_id: str
    all_token_ids: list[int]
    num_prompt_tokens: int = 2
    max_tokens: int = 64
    is_prefill_chunk: bool = False
    resumable: bool = False
    next_decode_eligible_step: int = 0
    spec_token_ids: list[int] = field(default_factory=list)


class _Scheduler:
    """vLLM's rules: a request decodes when it is eligible. Every step accepts all drafts and adds a 9."""

    def __init__(self, names: str) -> None:
        self.vllm_config = None
        self.current_step = 0
        self.requests = {name: Request(name, [1, 2]) for name in names}
        self.running: list[Request] = []
        # Of a grammar that the token 8 breaks.
        self.structured_output_manager = SimpleNamespace(
            validate_tokens=lambda request, tokens: tokens[: tokens.index(8)] if 8 in tokens else tokens
        )
        self.is_shut_down = False

    def schedule(self, throttle_prefills: bool = False) -> Any:
        self.current_step += 1
        eligible = [each for each in self.running if self.current_step >= each.next_decode_eligible_step]
        new = [each for each in self.requests.values() if each not in self.running]
        self.running += new
        return SimpleNamespace(
            scheduled_new_reqs=[SimpleNamespace(req_id=each.request_id) for each in new],
            num_scheduled_tokens={each.request_id: 1 for each in (*eligible, *new)},
            scheduled_spec_decode_tokens={each.request_id: each.spec_token_ids for each in eligible},
            preempted_req_ids=None,
        )

    def update_from_output(self, output: Any, model_runner_output: Any) -> str:
        for name in output.num_scheduled_tokens:
            drafts = output.scheduled_spec_decode_tokens.get(name, [])
            self.requests[name].all_token_ids += [*drafts, 9]
        return "outputs"

    def shutdown(self) -> None:
        self.is_shut_down = True


class _MineDraft(TurnTaking, _Scheduler):
    path = "V1"

    def _prepare(self, request: Any, turn: Turn) -> None:
        if request.request_id in turn.names:
            self._set_drafts(request, turn.drafts.get(request.request_id, ()))
        else:
            self._rest(request)


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> _MineDraft:
    link = FakeLink(lambda tokens: (6, 7, 8))
    plugin = SimpleNamespace(alternation=Alternation(Groups(), link, 0.0), link=link, close=lambda: None)
    monkeypatch.setattr(turn_taking, "Plugin", lambda config, path: plugin)
    return _MineDraft("abcd")


def test_a_group_rests_while_the_other_decodes_with_drafts_that_its_grammars_allow(scheduler: _MineDraft):
    seen = []
    for _ in range(5):
        output = scheduler.schedule(throttle_prefills=False)
        assert scheduler.update_from_output(output, None) == "outputs"
        seen.append({name: output.scheduled_spec_decode_tokens.get(name) for name in output.num_scheduled_tokens})
    first, second = set(seen[1]), set(seen[2])
    assert [set(step) for step in seen[1:]] == [first, second, first, second]
    assert len(first) == len(second) == 2
    assert not first & second
    assert [drafts for step in seen[3:] for drafts in step.values()] == [[6, 7]] * 4


def test_outputs_that_come_after_the_next_step_was_scheduled_belong_to_their_own_step(scheduler: _MineDraft):
    waiting = [scheduler.schedule()]
    for _ in range(6):
        waiting.append(scheduler.schedule())
        scheduler.update_from_output(waiting.pop(0), None)
    link = scheduler._plugin.link
    assert {name: request.all_token_ids for name, request in scheduler.requests.items()} == link.tokens


def test_the_end_closes_the_plugin_and_vllm(scheduler: _MineDraft):
    scheduler.shutdown()
    assert scheduler.is_shut_down
