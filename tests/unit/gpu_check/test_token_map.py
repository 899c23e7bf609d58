"""The maps of the controlled pair, and what is predicted from them."""

from __future__ import annotations

import pytest

from scripts.gpu.controlled.token_map import Counts, TokenMap

NUM_IDS = 200


def test_the_target_goes_once_through_every_id() -> None:
    assert sorted(TokenMap.make(NUM_IDS, 0.8).answer(7, NUM_IDS)) == list(range(NUM_IDS))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 0.99, 1.0])
def test_the_draft_model_is_right_on_exactly_a_share_alpha_of_the_ids(alpha: float) -> None:
    made = TokenMap.make(NUM_IDS, alpha)
    assert int((made.target == made.draft).sum()) == round(alpha * NUM_IDS)
    assert sorted(made.draft.tolist()) == list(range(NUM_IDS)), (
        "a permutation: each row of the output layer is set once"
    )
    assert made.acceptance(range(NUM_IDS), 1) == [pytest.approx(alpha)]


def test_the_maps_are_the_same_every_time() -> None:
    first, second = TokenMap.make(NUM_IDS, 0.8), TokenMap.make(NUM_IDS, 0.8)
    assert first.target.tolist() == second.target.tolist()
    assert first.draft.tolist() == second.draft.tolist()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, 1 - 1 / NUM_IDS])
def test_a_share_that_no_permutation_has_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha"):
        TokenMap.make(NUM_IDS, alpha)


def test_each_later_position_keeps_about_a_share_alpha() -> None:
    shares = TokenMap.make(20_000, 0.8).acceptance(range(20_000), 4)
    assert shares == pytest.approx([0.8, 0.8**2, 0.8**3, 0.8**4], abs=0.01)


def test_the_account_of_an_answer() -> None:
    right, wrong = TokenMap.make(NUM_IDS, 1.0), TokenMap.make(NUM_IDS, 0.0)
    # One round for the prompt, then 4 + 1 tokens a round; the last round drafts only what still fits.
    assert right.count(3, 13, 4) == Counts(rounds=4, drafted=9, accepted=9)
    assert wrong.count(3, 4, 4) == Counts(rounds=4, drafted=2 + 1 + 0, accepted=0)
