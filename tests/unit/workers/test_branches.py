"""The choice of branches, and the law of the output when their drafts are used: by enumeration of every random
number that draws, accepts and replaces, shared between branches as the workers share them."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pytest
import torch

from minedraft.messages import Branch
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, SequenceSpec
from minedraft_workers.proposers.branches import likely_branches
from minedraft_workers.sampling.acceptance import accept_prob, distribution, read_q, residual
from minedraft_workers.sampling.choose import coupled_choice
from minedraft_workers.sampling.processors import process
from minedraft_workers.sampling.vocab_columns import columns_of
from minedraft_workers.sequence import SequenceState

VOCAB = 3
PROMPT = (0, 1, 2)
COLUMNS = columns_of(VOCAB, torch.device("cpu"))

Choose = Callable[[torch.Tensor, SequenceState, Sequence[int], int], Sequence[Branch]]


def logits_after(context: Sequence[int], salt: int) -> torch.Tensor:
    """A language model: a fixed random row for each context."""
    seed = salt
    for token in context:
        seed = (seed * 31 + token + 1) % 1_000_003
    return 1.2 * torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed))


def state_of(committed: Sequence[int], acceptance: Acceptance = Acceptance.REJECTION) -> SequenceState:
    temperature = 0.0 if acceptance is Acceptance.GREEDY else 1.0
    return SequenceState(
        1, SequenceSpec(SamplingParams(temperature=temperature), len(PROMPT), 7, acceptance), committed
    )


def law_after(context: Sequence[int], salt: int) -> torch.Tensor:
    return distribution(process(logits_after(context, salt), state_of(context), (), COLUMNS), VOCAB)


@dataclass(frozen=True)
class Numbers:
    """What is known of the number that draws each draft: the part of [0, 1) that it is in. A number belongs to a
    position and a place in the round, or to the position alone if they are `shared` by rounds."""

    parts: tuple[tuple[tuple[int, int], tuple[float, float]], ...] = ()
    shared: bool = False

    def draw(self, weights: torch.Tensor, position: tuple[int, int]) -> Iterator[tuple[int, float, Numbers]]:
        """Yield each token that the position's number can draw, the probability, and what is known then."""
        low, high = dict(self.parts).get(position, (0.0, 1.0))
        start = 0.0
        for token, weight in enumerate(weights.tolist()):
            end = start + weight
            part = max(start, low), min(end, high)
            if part[1] - part[0] > 1e-15:
                known = dict(self.parts) | {position: part}
                yield token, (part[1] - part[0]) / (high - low), Numbers(tuple(known.items()), self.shared)
            start = end

    def draft(
        self, context: tuple[int, ...], draft_len: int, index: int = 0
    ) -> Iterator[tuple[tuple[int, ...], float, Numbers]]:
        """Yield each way to draft after a context."""
        if draft_len == 0:
            yield (), 1.0, self
            return
        for token, share, known in self.draw(law_after(context, 2), (len(context), 0 if self.shared else index)):
            for more, rest, after in known.draft((*context, token), draft_len - 1, index + 1):
                yield (token, *more), share * rest, after


def verdicts(context: tuple[int, ...], drafts: tuple[int, ...]) -> Iterator[tuple[int, int, float]]:
    """Yield each verdict: accepted drafts, the token after them, probability."""
    alive = 1.0
    for index, draft in enumerate(drafts):
        before = (*context, *drafts[:index])
        p, q = law_after(before, 1), law_after(before, 2)
        sparse = read_q(torch.arange(VOCAB), q, VOCAB)
        accept = accept_prob(float(p[draft]), sparse.of(draft))
        rest = residual(p, sparse)
        for token, share in enumerate((rest / rest.sum()).tolist()):
            yield index, token, alive * (1.0 - accept) * share
        alive *= accept
    for token, share in enumerate(law_after((*context, *drafts), 1).tolist()):
        yield len(drafts), token, alive * share


def output_law(
    choose: Choose, num_branches: int, draft_len: int, *, drafts_anew: bool, shared: bool = False
) -> dict[tuple[int, ...], float]:
    """Return the law of the first two tokens after the round's first one, over two rounds and, where these are too
    short, the target's own tokens: as the pipeline runs them in mode pearl."""
    law: dict[tuple[int, ...], float] = defaultdict(float)
    num_tokens = draft_len + 1
    for drafts, prob, numbers in Numbers(shared=shared).draft(PROMPT, draft_len):
        rows = torch.stack([logits_after((*PROMPT, *drafts[:i]), 2) for i in range(draft_len + 1)])
        branches = choose(rows, state_of(PROMPT), drafts, num_branches)
        for accepted_len, token, share in verdicts(PROMPT, drafts):
            committed = (*PROMPT, *drafts[:accepted_len], token)
            is_ready = Branch(accepted_len, token) in branches
            more_len = draft_len if is_ready or drafts_anew else 0
            for more, more_share, _ in numbers.draft(committed, more_len):
                for accepted, last, last_share in verdicts(committed, more):
                    output = (*committed, *more[:accepted], last)[len(PROMPT) :]
                    add_rest(law, output, prob * share * more_share * last_share, num_tokens)
    return law


def add_rest(law: dict[tuple[int, ...], float], output: tuple[int, ...], prob: float, num_tokens: int) -> None:
    if len(output) >= num_tokens:
        law[output[:num_tokens]] += prob
        return
    for token, share in enumerate(law_after((*PROMPT, *output), 1).tolist()):
        add_rest(law, (*output, token), prob * share, num_tokens)


def target_alone(num_tokens: int) -> dict[tuple[int, ...], float]:
    law = {}
    for tokens in itertools.product(range(VOCAB), repeat=num_tokens):
        prob = 1.0
        for index, token in enumerate(tokens):
            prob *= float(law_after((*PROMPT, *tokens[:index]), 1)[token])
        law[tokens] = prob
    return law


def largest_error(law: dict[tuple[int, ...], float], draft_len: int) -> float:
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    return max(abs(law[tokens] - prob) for tokens, prob in target_alone(draft_len + 1).items())


@pytest.mark.parametrize("drafts_anew", [True, False])
@pytest.mark.parametrize("draft_len", [1, 2])
@pytest.mark.parametrize(("num_branches", "shared"), [(1, False), (2, True), (3, False), (5, True)])
def test_the_output_law_is_the_targets_whatever_was_prepared(
    num_branches: int, shared: bool, draft_len: int, drafts_anew: bool
) -> None:
    law = output_law(likely_branches, num_branches, draft_len, drafts_anew=drafts_anew, shared=shared)
    assert largest_error(law, draft_len) < 1e-12


def test_a_choice_that_looks_ahead_would_bend_the_law_if_rounds_shared_numbers() -> None:
    """Whether an early branch is prepared depends on a later draft, whose number draws the branch's draft too."""

    def look_ahead(logits: torch.Tensor, state: SequenceState, drafts: Sequence[int], count: int) -> list[Branch]:
        return [Branch(0, token) for token in range(VOCAB) if token != drafts[0] and drafts[1] == 0]

    assert largest_error(output_law(look_ahead, 3, 2, drafts_anew=False, shared=True), 2) > 1e-3
    assert largest_error(output_law(look_ahead, 3, 2, drafts_anew=False), 2) < 1e-12


def test_the_first_branch_accepts_all_and_the_others_are_the_likely_ones_in_order() -> None:
    rows = torch.tensor([[3.0, 2.0, -9.0], [0.0, 5.0, 4.0], [1.0, 1.5, 0.0]])
    state = state_of(PROMPT, Acceptance.GREEDY)
    assert likely_branches(rows[-1:], state, (0, 1), 1) == [Branch(2, 1)]
    assert likely_branches(rows, state, (0, 1), 9) == [
        Branch(2, 1),
        Branch(0, 1),
        Branch(1, 2),
        Branch(2, 0),
        Branch(2, 2),
    ]
    assert likely_branches(rows, state, (0, 1), 3) == [Branch(2, 1), Branch(0, 1), Branch(1, 2)]
    assert likely_branches(rows[-1:], state, (), 2) == [Branch(0, 1), Branch(0, 0)]


def test_a_token_that_is_hardly_possible_takes_no_place() -> None:
    rows = torch.tensor([[9.0, 0.0, 0.0], [0.0, 2.0, 1.9]])
    assert likely_branches(rows, state_of(PROMPT), (0,), 4) == [Branch(1, 1), Branch(1, 2), Branch(1, 0)]


def test_nothing_is_chosen_after_logits_that_are_not_finite() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0], [1.0, float("nan"), 3.0]])
    assert likely_branches(rows, state_of(PROMPT), (2,), 4) == []
    rows = rows.flip(0)
    assert likely_branches(rows, state_of(PROMPT), (2,), 4) == [Branch(1, 2)], "only the accepted one is known"


def test_under_shared_noise_the_first_branch_has_the_token_that_the_drafter_would_propose() -> None:
    for salt in range(50):
        row, state = logits_after((salt,), 3), state_of((*PROMPT, salt), Acceptance.COUPLED)
        wanted = coupled_choice(process(row, state, (), COLUMNS), COLUMNS, state.spec.seed, len(state.tokens))
        assert likely_branches(row[None], state, (), 1) == [Branch(0, wanted)]
