"""The contract of the path for vLLM's model runner V2, in the manner of vLLM's own scheduler tests: the real scheduler,
steps in flight as its engine core keeps them, and made-up outputs of a worker. No GPU has run it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from minedraft.vllm.alternation import Alternation
from minedraft.vllm.groups import Groups
from tests.fakes.drafter_link import FakeLink
from tests.vllm.engines import MAX_LEN

_NUM_DRAFTS = 3
_IN_FLIGHT = 2  # vLLM's batch queue without pipeline stages
_BLOCK = 16


def _next(tokens: Sequence[int]) -> int:
    return (31 * tokens[-1] + 17 * len(tokens)) % 300 + 3


def _drafts(tokens: Sequence[int]) -> tuple[int, ...]:
    """Return drafts of which a third is wrong."""
    text = list(tokens)
    for _ in range(_NUM_DRAFTS):
        text.append(_next(text) if len(text) % 3 else 1)
    return tuple(text[len(tokens) :])


class _Runner:
    """A model runner V2 that computes `_next`; its own proposer repeats the last token."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = {}
        self.computed: dict[str, int] = {}
        self.num_ours = 0

    def execute(self, output: Any) -> Any:
        from vllm.v1.outputs import ModelRunnerOutput

        for new in output.scheduled_new_reqs:
            self.tokens[new.req_id] = list(new.prefill_token_ids or new.prompt_token_ids)
            self.computed[new.req_id] = new.num_computed_tokens
        names = list(output.num_scheduled_tokens)
        sampled = [self._sample(name, output) for name in names]
        return ModelRunnerOutput(names, {name: row for row, name in enumerate(names)}, sampled)

    def _sample(self, name: str, output: Any) -> list[int]:
        text, drafts = self.tokens[name], output.scheduled_spec_decode_tokens.get(name, [])
        end = self.computed[name] + output.num_scheduled_tokens[name] - len(drafts)
        if end < len(text):
            self.computed[name] = end
            return []
        assert end == len(text), "the tokens that the scheduler counts are those that the worker has"
        self.num_ours += sum(token >= 0 for token in drafts)
        new: list[int] = []
        for token in [token if token >= 0 else text[-1] for token in drafts]:
            if token != _next(text + new):
                break
            new.append(token)
        new.append(_next(text + new))
        text += new
        self.computed[name] = len(text) - 1
        return new


class _Engine:
    """The scheduler with up to two steps in flight, as `EngineCore.step_with_batch_queue` has them."""

    def __init__(self, scheduler: Any, link: FakeLink) -> None:
        self.scheduler, self.link, self.runner = scheduler, link, _Runner()
        self.queue: deque[tuple[Any, Any]] = deque()
        self.steps: list[set[str]] = []
        self.answers: dict[str, list[int]] = {}

    def add(self, name: str, prompt: list[int], max_tokens: int = 40) -> None:
        from vllm import SamplingParams
        from vllm.v1.request import Request

        params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
        params.update_from_generation_config({}, eos_token_id=2)
        self.scheduler.add_request(Request(name, prompt, params, None))
        self.answers[name] = []

    def step(self) -> None:
        if self.scheduler.has_requests() and len(self.queue) < _IN_FLIGHT:
            output = self.scheduler.schedule()
            self.steps.append(set(output.num_scheduled_tokens))
            self.queue.append((output, self.runner.execute(output)))
            if len(self.queue) < _IN_FLIGHT and output.total_num_scheduled_tokens:
                return
        output, result = self.queue.popleft()
        for outputs in self.scheduler.update_from_output(output, result).values():
            for each in outputs.outputs:
                self.answers[each.request_id] += each.new_token_ids

    def run(self, most: int = 2000) -> None:
        for _ in range(most):
            if not self.queue and not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("requests do not end")

    def expected(self, prompt: list[int], size: int) -> list[int]:
        text = list(prompt)
        for _ in range(size):
            text.append(_next(text))
        return text[len(prompt) :]


@pytest.fixture
def make(target: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes an engine with so many blocks of KV."""
    import torch
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.structured_output import StructuredOutputManager

    from minedraft.vllm import turn_taking
    from minedraft.vllm.async_scheduler import MineDraftAsyncScheduler

    class RunnerV2(MineDraftAsyncScheduler):
        """Without Triton vLLM would choose the other model runner when it is made."""

        use_v2_model_runner = property(lambda self: True, lambda self, value: None)

    def make_engine(num_blocks: int = 200, **options: Any) -> _Engine:
        link = FakeLink(_drafts)
        alternation = Alternation(Groups(), link, wait_s=0.0)
        plugin = SimpleNamespace(link=link, alternation=alternation, close=link.close)
        monkeypatch.setattr(turn_taking, "Plugin", lambda config, path: plugin)
        config = EngineArgs(
            str(target),
            max_model_len=MAX_LEN,
            max_num_seqs=16,
            enable_prefix_caching=False,
            block_size=_BLOCK,
            speculative_config={"method": "ngram", "num_speculative_tokens": _NUM_DRAFTS},
            **options,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(block_size=_BLOCK, num_kv_heads=1, head_size=1, dtype=torch.float32)
        cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        manager = StructuredOutputManager(config)
        return _Engine(RunnerV2(config, cache, manager, block_size=_BLOCK, log_stats=True), link)

    return make_engine


def test_two_groups_are_in_flight_in_turn_and_answers_are_right(make: Any, prompts: list[list[int]]):
    engine = make()
    for index, prompt in enumerate(prompts[:10]):
        engine.add(str(index), prompt, max_tokens=20 + 3 * index)
    engine.run()
    for index, prompt in enumerate(prompts[:10]):
        assert engine.answers[str(index)] == engine.expected(prompt, 20 + 3 * index)
    assert engine.runner.num_ours > 0
    pairs = list(zip(engine.steps[4:12], engine.steps[5:13], strict=True))
    assert all(first and second and not first & second for first, second in pairs)
    assert all(4 <= len(step) <= 6 for step in engine.steps[4:12])


def test_one_request_alone_decodes_as_soon_as_its_tokens_are_known(make: Any, prompts: list[list[int]]):
    engine = make()
    engine.add("0", prompts[2])
    engine.run()
    assert engine.answers["0"] == engine.expected(prompts[2], 40)
    decoding = [step for step in engine.steps if step]
    # A third of the drafts is wrong: every verify that had drafts gave more than two tokens on the average.
    assert len(decoding) < 40 / 2


def test_without_a_drafter_nothing_rests_and_the_workers_own_drafts_are_verified(make: Any, prompts: list[list[int]]):
    engine = make()
    engine.link.info = None
    for index in range(4):
        engine.add(str(index), prompts[index])
    engine.run()
    assert [engine.answers[str(index)] for index in range(4)] == [engine.expected(prompts[i], 40) for i in range(4)]
    assert engine.runner.num_ours == 0
    assert all(step == {"0", "1", "2", "3"} for step in engine.steps[2:20])


def test_a_drafter_that_goes_and_comes_back(make: Any, prompts: list[list[int]]):
    engine = make()
    for index in range(6):
        engine.add(str(index), prompts[index], max_tokens=120)
    for _ in range(14):
        engine.step()
    assert (before := engine.runner.num_ours) > 0
    engine.link.info = None
    for _ in range(14):
        engine.step()
    engine.link.info = "another drafter"
    away = engine.runner.num_ours
    engine.run()
    assert away - before <= 2 * 3 * _NUM_DRAFTS  # of the two steps whose drafts were there already
    assert engine.runner.num_ours > away
    assert [engine.answers[str(index)] for index in range(6)] == [engine.expected(prompts[i], 120) for i in range(6)]


def test_a_drafter_that_is_late_costs_its_drafts_only(make: Any, prompts: list[list[int]]):
    engine = make()
    engine.link.is_late = True
    for index in range(5):
        engine.add(str(index), prompts[index])
    engine.run()
    assert [engine.answers[str(index)] for index in range(5)] == [engine.expected(prompts[i], 40) for i in range(5)]
    assert engine.scheduler._plugin.alternation.counts.num_late > 0


def test_preemption_prompts_in_chunks_and_aborts(make: Any, prompts: list[list[int]]):
    engine = make(num_blocks=30, max_num_batched_tokens=64)
    for index, prompt in enumerate(prompts):
        engine.add(str(index), prompt, max_tokens=60)
    from vllm.v1.request import RequestStatus

    for _ in range(25):
        engine.step()
    engine.scheduler.finish_requests(["2", "5"], RequestStatus.FINISHED_ABORTED)
    requests = dict(engine.scheduler.requests)
    engine.run()
    for index, prompt in enumerate(prompts):
        answer = engine.answers[str(index)]
        assert answer == engine.expected(prompt, 60)[: len(answer)]
        assert len(answer) == 60 or index in (2, 5)
    assert sum(request.num_preemptions for request in requests.values()) > 0
    assert engine.runner.num_ours > 0


def test_drafts_that_the_worker_reports_for_grammars_do_not_replace_ours(make: Any, prompts: list[list[int]]):
    from vllm.v1.outputs import DraftTokenIds

    engine = make()
    for index in range(2):
        engine.add(str(index), prompts[index])
    engine.step()
    output = SimpleNamespace(scheduled_spec_decode_tokens={"0": [7, 8, 9], "1": [-1, -1, -1]})
    reported = DraftTokenIds(["0", "1"], [[1, 1, 1], [2, 2, 2]])
    engine.scheduler.update_draft_token_ids_in_output(reported, output)
    assert output.scheduled_spec_decode_tokens == {"0": [7, 8, 9], "1": [2, 2, 2]}


def test_drafts_are_written_to_where_the_model_runner_reads_them():
    import torch

    from minedraft.vllm.worker import write_drafts

    states = SimpleNamespace(
        draft_tokens=torch.zeros(4, 3, dtype=torch.int64), req_id_to_index={"a": 2, "b": 0, "c": 3}
    )
    states.draft_tokens[3] = 9
    write_drafts({"a": [5, 6, 7], "b": [8], "c": [-1, -1, -1]}, states)
    assert states.draft_tokens.tolist() == [[8, 0, 0], [0, 0, 0], [5, 6, 7], [9, 9, 9]]
