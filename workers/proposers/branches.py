"""The branches that a run ahead prepares: the likeliest ways in which the verify of some drafts may end.

The draft model's own probabilities stand in for the target's. A way to end is a number of accepted drafts and the
target's token after them, so its probability is that of the accepted drafts times that of the token. Whatever is
chosen here decides only which drafts are ready in time: the token of a branch is never proposed itself.

The choice does not look ahead: whether a branch is prepared depends on drafts up to the branch's own token, not on a
later one. Under REJECTION, if one random number drew both a later draft and the draft that the branch has for the same
position, a look ahead would prepare drafts more often if the number draws one token than if it draws another, and the
output would lean that way. The numbers are different ones (`seed_of_draft`); this is the second bar. So positions are
gone through in their order, and each takes what it wants of the branches that are left.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from minedraft.messages import Branch
from minedraft.types import Acceptance
from minedraft_workers.sampling.processors import ProcessedRow, adjust, is_greedy, process
from minedraft_workers.sampling.randomness import gumbel
from minedraft_workers.sampling.row_search import SearchedRow
from minedraft_workers.sampling.vocab_columns import Columns, columns_of
from minedraft_workers.sequence import SequenceState

_NUM_CANDIDATES = 16  # tokens looked at at each position; nearly all of the probability
_LEAST_SHARE = 0.25  # of an equal part of the probability, for a branch to be worth its place


def likely_branches(
    logits: torch.Tensor,
    state: SequenceState,
    drafts: Sequence[int],
    num_branches: int,
    draft_vocab_ids: torch.Tensor | None = None,
) -> list[Branch]:
    """Return up to `num_branches` branches. In the first one all drafts are accepted; the others are those that are
    likely enough, of earlier positions first. None are returned if the logits after the last draft are not finite.

    Args:
        logits: float32 [n, columns]: of the token in place of each of `drafts`, and of the one after them; or
            only the last row of these, if `num_branches` is 1.
        state: the request, with its committed tokens only.
        draft_vocab_ids: integers [columns], the token id of each column; None = column j is token j.
    """
    columns = columns_of(logits.shape[-1], logits.device, draft_vocab_ids)
    at_end = _likeliest(logits[-1], state, drafts, columns)
    if not at_end:
        return []
    certain = Branch(len(drafts), next(iter(at_end)))
    others: list[Branch] = []
    reach = 1.0  # probability that the drafts before a position are accepted
    for index in range(len(drafts) + 1 if num_branches > 1 else 0):
        here = at_end if index == len(drafts) else _likeliest(logits[index], state, drafts[:index], columns)
        expected = certain.token if index == len(drafts) else drafts[index]
        likely = [token for token, share in here.items() if reach * share * num_branches >= _LEAST_SHARE]
        others += [Branch(index, token) for token in likely if token != expected]
        reach *= here.get(expected, 0.0)
    return [certain, *others[: num_branches - 1]]


def _likeliest(row: torch.Tensor, state: SequenceState, drafts: Sequence[int], columns: Columns) -> dict[int, float]:
    """Return the likeliest tokens after `drafts`, most probable first, with their probabilities among themselves;
    none if the row is not finite. Under COUPLED it is the noise of the position that decides."""
    if is_greedy(state):
        adjusted = adjust(row, state, drafts, columns)
        processed = ProcessedRow(adjusted, None, SearchedRow(adjusted).peak, 1.0)
    else:
        processed = process(row, state, drafts, columns)
    if not processed.is_usable:
        return {}
    values, places = SearchedRow(processed.logits).largest(_NUM_CANDIDATES)
    kept = places if processed.columns is None else processed.columns[places]
    scores = (values.double() - processed.peak) / processed.temperature
    if state.spec.acceptance is Acceptance.COUPLED:
        position = len(state.tokens) + len(drafts)
        scores = scores + gumbel(columns.noise.bits(state.spec.seed, position, kept))
    shares, order = torch.softmax(scores, 0).sort(descending=True, stable=True)
    tokens = [columns.token_id(column) for column in kept[order].tolist()]
    return dict(zip(tokens, shares.tolist(), strict=True))
