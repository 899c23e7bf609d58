"""A round whose tokens stay on the device gives the drafts of one in which the host chooses each of them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from minedraft.device import Device, usable_cores
from minedraft.messages import DraftCommand, DraftSpan, Proposal, RunAhead
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, RoundId, ScoreKind, SequenceSpec
from minedraft_workers.execution.executor import Executor
from minedraft_workers.execution.options import LoadOptions
from minedraft_workers.proposers import choosing
from minedraft_workers.sampling.batched.transfer import Arrival
from tests.support.in_process import InProcessDrafter, InProcessVerifier
from tests.support.tiny_models import add_noise, make_tiny_model

NUM_BLOCKS = 64
SAMPLINGS = {
    Acceptance.GREEDY: SamplingParams(),
    Acceptance.COUPLED: SamplingParams(temperature=0.9, top_p=0.9),
    Acceptance.REJECTION: SamplingParams(temperature=1.2, top_k=30, min_p=0.01),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_noise(make_tiny_model(tmp_path_factory.mktemp("loop") / "model", seed=4, head_dim=16), 0.05)


@pytest.fixture(params=[0, 120], ids=["whole-vocabulary", "smaller-target"])
def target_vocab(request: pytest.FixtureRequest) -> int:
    return request.param


class Drafter:
    def __init__(
        self,
        folder: Path,
        *,
        as_on_gpu: bool,
        target_vocab: int = 0,
        num_blocks: int = NUM_BLOCKS,
        kernels: str = "torch",
    ) -> None:
        device = Device("cpu", usable_cores()[:1])
        options = LoadOptions(device, dtype="float32", kernels=kernels, num_blocks=num_blocks, block_size=4)
        self.executor = Executor.load(folder, options)
        self.actor = InProcessDrafter(self.executor, InProcessVerifier(self.executor), as_on_gpu=as_on_gpu).actor
        self.actor.reset(target_vocab)

    def ask(
        self, *spans: DraftSpan, scores: ScoreKind = ScoreKind.NONE, released: tuple[int, ...] = ()
    ) -> Sequence[Proposal]:
        return self.actor.draft(DraftCommand(RoundId(1, Batch.A, 1), spans, released, scores=scores)).rows


def both(folder: Path, **options: Any) -> tuple[Drafter, Drafter]:
    return Drafter(folder, as_on_gpu=False, **options), Drafter(folder, as_on_gpu=True, **options)


def assert_same(wanted: Sequence[Proposal], found: Sequence[Proposal]) -> None:
    assert [(p.request_id, p.committed_len, p.tokens, p.branch) for p in found] == [
        (p.request_id, p.committed_len, p.tokens, p.branch) for p in wanted
    ]
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.scores == pytest.approx(theirs.scores, rel=1e-6)
        assert (mine.q is None) == (theirs.q is None)
        if mine.q is not None and theirs.q is not None:
            assert mine.q.ids == theirs.q.ids
            sides = [np.frombuffer(q.probs.data, "<f4") for q in (mine.q, theirs.q)]
            np.testing.assert_allclose(*sides, rtol=1e-5, atol=1e-7)


def make_spec(acceptance: Acceptance, prompt_len: int, seed: int) -> SequenceSpec:
    return SequenceSpec(SAMPLINGS[acceptance], prompt_len, seed, acceptance, (2,))


@pytest.mark.parametrize("kernels", ["auto", "torch", "transformers"])
def test_rounds_of_a_mixed_batch(kernels: str, folder: Path, target_vocab: int) -> None:
    """Other laws, lengths of draft, and outcomes in each request, some of them without drafts."""
    rng, drafters = random.Random(kernels), both(folder, target_vocab=target_vocab, kernels=kernels)
    tokens = {i: tuple(rng.choices(range(3, 110), k=rng.randint(1, 9))) for i in range(5)}
    spans = [
        DraftSpan(
            i, 0, text, rng.randint(0, 5), make_spec(rng.choice(list(Acceptance)), len(text), rng.getrandbits(60))
        )
        for i, text in tokens.items()
    ]
    for number in range(4):
        scores = list(ScoreKind)[number % 3]
        wanted, found = (drafter.ask(*spans, scores=scores) for drafter in drafters)
        assert_same(wanted, found)
        drafts = {proposal.request_id: proposal.tokens for proposal in wanted}
        spans = []
        for i, text in tokens.items():
            accepted = drafts.get(i, ())[: rng.randint(0, 5)]
            tokens[i] = (*text, *accepted, rng.randint(3, 110))
            # The KV of the last draft is not cached.
            kept = len(text) + max(min(len(accepted), len(drafts.get(i, ())) - 1), 0)
            spans.append(DraftSpan(i, kept, tokens[i][kept:], rng.randint(0, 5)))


@pytest.mark.parametrize("acceptance", list(Acceptance))
def test_branches_of_a_run_ahead_beside_a_plain_row(acceptance: Acceptance, folder: Path) -> None:
    drafters = both(folder)
    prompt = (5, 17, 9, 80, 41, 5, 17)
    spec = make_spec(acceptance, len(prompt), 11)
    drafts = [drafter.ask(DraftSpan(1, 0, prompt, 3, spec))[0].tokens for drafter in drafters]
    assert drafts[0] == drafts[1]
    ahead = DraftSpan(1, len(prompt) - 1, (prompt[-1], *drafts[0]), 3, ahead=RunAhead(3, 6))
    plain = DraftSpan(2, 0, prompt[:4], 2, make_spec(acceptance, 4, 12))
    wanted, found = (drafter.ask(ahead, plain) for drafter in drafters)
    assert len(wanted) > 3
    assert_same(wanted, found)
    branch = wanted[1].branch
    assert branch is not None
    committed = (*prompt, *drafts[0][: branch.accepted_len], branch.token)
    after = DraftSpan(1, len(committed) - 1, committed[-1:], 3, branch=1)
    assert_same(*(drafter.ask(after) for drafter in drafters))
    for drafter in drafters:
        drafter.ask(released=(1, 2))
        assert drafter.executor.num_free_blocks == NUM_BLOCKS


def test_the_end_of_the_context_and_of_the_blocks_ends_the_drafts(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for lens, num_blocks in (((14,), 4), ((8, 5), 4), ((7, 7, 4), 5)):
        drafters = both(folder, num_blocks=num_blocks)
        spans = [
            DraftSpan(i, 0, tuple(range(3, 3 + length)), 6, make_spec(Acceptance.GREEDY, length, 1))
            for i, length in enumerate(lens)
        ]
        wanted, found = (drafter.ask(*spans) for drafter in drafters)
        assert_same(wanted, found)
        assert 0 < len(wanted[0].tokens) < 6
        for drafter in drafters:
            drafter.ask(released=tuple(range(len(lens))))
            assert drafter.executor.num_free_blocks == num_blocks
    assert "drafting stopped early" in caplog.text


def test_a_row_ends_where_its_logits_are_not_finite_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafters = both(folder)
    spans = [DraftSpan(i, 0, (5, 6, 7 + i), 5, make_spec(kind, 3, i)) for i, kind in enumerate(Acceptance)]
    counts = []
    for drafter in drafters:
        spoil(drafter.executor, monkeypatch)
        work = drafter.actor.draft(DraftCommand(RoundId(1, Batch.A, 1), tuple(spans)))
        counts.append(work.num_not_finite)
        assert [len(proposal.tokens) for proposal in work.rows] == [5, 2, 5]
    assert counts == [1, 1]
    again = [DraftSpan(i, 2, (7 + i,), 4) for i in range(3)]
    monkeypatch.undo()
    assert_same(*(drafter.ask(*again) for drafter in drafters))


def spoil(executor: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the second row of the third forward a NaN."""
    forward, numbers = executor.forward, iter(range(100))

    def forward_and_spoil(spans: Any, *given: Any) -> torch.Tensor:
        logits = forward(spans, *given).clone()
        if next(numbers) == 2:
            logits[1, 7] = torch.nan
        return logits

    monkeypatch.setattr(executor, "forward", forward_and_spoil)


class _Reads(TorchDispatchMode):
    """Counts the operators that read numbers of a tensor on the host, on a GPU each a wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        if name in {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique", "_unique2"}:
            self.found.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def counting_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    copies: list[int] = []
    download: Callable[..., list[np.ndarray]] = choosing.download

    def count(*tensors: torch.Tensor) -> list[np.ndarray]:
        copies.append(len(tensors))
        return download(*tensors)

    with monkeypatch.context() as patched:
        patched.setattr(choosing, "download", count)
        yield copies


@pytest.mark.parametrize("acceptance", list(Acceptance))
def test_the_host_reads_the_device_once_a_round(
    acceptance: Acceptance, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = Drafter(folder, as_on_gpu=True)
    spans = [DraftSpan(i, 0, (5, 6, 7 + i), 3 + i, make_spec(acceptance, 3, i)) for i in range(3)]
    with counting_copies(monkeypatch) as copies, _Reads() as reads:
        drafter.ask(*spans, scores=ScoreKind.DRAWN)
    assert len(copies) == 1
    assert reads.found == []


@pytest.mark.parametrize("draft_len", [1, 6])
def test_penalties_biases_and_minimum_lengths_follow_the_tokens_of_the_round(
    draft_len: int, folder: Path, target_vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafters = both(folder, target_vocab=target_vocab, num_blocks=256)
    params = [
        SamplingParams(frequency_penalty=1.5, presence_penalty=0.5),
        SamplingParams(temperature=1.0, repetition_penalty=1.6, logit_bias={11: 3.0, 60: 4.0}),
        SamplingParams(temperature=0.8, min_new_tokens=3, presence_penalty=-2.0),
        SamplingParams(logit_bias={2: 50.0}, min_new_tokens=2, max_new_tokens=9),
        SamplingParams(temperature=1.0),
    ]
    spans = [
        DraftSpan(i, 0, (5, 6, 7 + i), draft_len, SequenceSpec(sampling, 2, i, kind, (2, 9)))
        for i, (sampling, kind) in enumerate((s, k) for s in params for k in Acceptance)
    ]
    with counting_copies(monkeypatch) as copies:
        wanted, found = (drafter.ask(*spans) for drafter in drafters)
    assert len(copies) == 1
    assert_same(wanted, found)
    spans = [DraftSpan(p.request_id, 3, (*p.tokens[:2], 20), draft_len) for p in wanted]
    assert_same(*(drafter.ask(*spans) for drafter in drafters))


class InTurn:
    """A grammar whose tokens leave 0, 1 and 2 in turn when divided by three."""

    def __init__(self) -> None:
        self._last = 0

    def move_to(self, tokens: Sequence[int], drafts: Sequence[int] = ()) -> bool:
        text = [tokens[-1], *drafts]
        self._last = text[-1]
        return all((new - old) % 3 == 1 for old, new in pairwise(text))

    def allowed(self, num_ids: int) -> np.ndarray:
        return (np.arange(num_ids) - self._last) % 3 == 1

    def keep(self, num_tokens: int) -> None:
        pass


@pytest.mark.parametrize("kernels", ["auto", "transformers"])
def test_a_grammar_is_followed_and_the_host_waits_while_the_next_forward_runs(
    kernels: str, folder: Path, target_vocab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One request in two follows it, under each law, beside penalties; both drafters give the same."""
    drafters = both(folder, target_vocab=target_vocab, kernels=kernels, num_blocks=256)
    params = SamplingParams(temperature=1.0, frequency_penalty=0.7, top_p=0.95)
    rows = [(sampling, kind) for kind in Acceptance for sampling in (SAMPLINGS[kind], params)]
    specs = [SequenceSpec(sampling, 3, i, kind, (2,)) for i, (sampling, kind) in enumerate([*rows, *rows])]
    guided = range(len(rows))
    done: list[str] = []
    for drafter in drafters:
        drafter.ask(*(DraftSpan(i, 0, (5, 6, 7), 0, spec) for i, spec in enumerate(specs)))
        for i in guided:
            drafter.actor._requests._states[i].guide = InTurn()
    spans = [DraftSpan(i, 2, (7,), 4 - i % 2) for i in range(len(specs))]
    wanted = drafters[0].ask(*spans)
    forward, read = drafters[1].executor.forward, Arrival.read
    monkeypatch.setattr(drafters[1].executor, "forward", lambda *given: done.append("forward") or forward(*given))
    monkeypatch.setattr(Arrival, "read", lambda arrival: done.append("read") or read(arrival))
    with counting_copies(monkeypatch) as copies:
        found = drafters[1].ask(*spans)
    assert_same(wanted, found)
    for proposal in found[: len(guided)]:
        assert [token % 3 for token in proposal.tokens] == [2, 0, 1, 2][: 4 - proposal.request_id % 2]
    assert done == ["forward", *["forward", "read"] * 3]
    assert len(copies) == 1
