"""Acceptance arithmetic: from the flags "this token would have been accepted" to rounds of k drafts.

No drafts have to be rolled out one by one. Speculative sampling is lossless, so the tokens that come out are the
target's own answer, and given that a token y came out, it was an accepted draft with probability min(p(y), q(y)) / p(y)
= min(1, q(y) / p(y)) (p target, q drafter); greedily, if the drafter's best token is y. An accepted prefix is the
answer's own prefix, so one forward pass of the drafter over the answer gives every flag a round can meet. A head reads
its own states after the first draft, so it has flags of its own for each place in a round: flags[d][j] is whether
token j would have been accepted as draft d of a round. A draft model has the same flags for every d.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

Flags = list[list[bool]]  # [place in a round][token of the answer]


@dataclass(frozen=True, slots=True)
class Rounds:
    """Rounds of at most k drafts over some answers."""

    num_rounds: int
    num_tokens: int
    reached: list[int]  # rounds in which the first j + 1 drafts were all accepted

    def __add__(self, other: Rounds) -> Rounds:
        reached = [a + b for a, b in zip(self.reached, other.reached, strict=True)]
        return Rounds(self.num_rounds + other.num_rounds, self.num_tokens + other.num_tokens, reached)

    @property
    def tokens_per_round(self) -> float:
        """Mean tokens per round, the verifier's own token included."""
        return self.num_tokens / max(1, self.num_rounds)


def walk_rounds(flags: Flags, k: int) -> Rounds:
    """Walks one answer in rounds of k drafts; its first token is prefill's, a truncated last round is left out."""
    num_rounds = num_tokens = 0
    reached = [0] * k
    index = 1
    while index + k <= len(flags[0]):
        num_accepted = 0
        while num_accepted < k and flags[num_accepted][index + num_accepted]:
            reached[num_accepted] += 1
            num_accepted += 1
        num_rounds += 1
        num_tokens += num_accepted + 1
        index += num_accepted + 1
    return Rounds(num_rounds, num_tokens, reached)


def walk_proposals(tokens: list[int], start: int, k: int, max_ngram: int, fallback: Flags | None) -> Rounds:
    """Rounds drafted by prompt lookup: what followed the latest earlier occurrence of the last n tokens.

    Args:
        tokens: prompt and answer.
        start: index of the answer's first token.
        k: drafts per round.
        max_ngram: the longest n-gram looked up; shorter ones down to 1 (2 with a fallback) are tried after it.
        fallback: flags of a drafter for rounds where lookup finds nothing; None: such a round
            drafts nothing.
    """
    num_rounds = num_tokens = 0
    reached = [0] * k
    index = start + 1
    shortest = 1 if fallback is None else 2
    while index + k <= len(tokens):
        proposal = lookup(tokens[:index], k, max_ngram, shortest)
        num_accepted = 0
        if proposal or fallback is None:
            while num_accepted < len(proposal) and proposal[num_accepted] == tokens[index + num_accepted]:
                num_accepted += 1
        else:
            while num_accepted < k and fallback[num_accepted][index + num_accepted - start]:
                num_accepted += 1
        for position in range(num_accepted):
            reached[position] += 1
        num_rounds += 1
        num_tokens += num_accepted + 1
        index += num_accepted + 1
    return Rounds(num_rounds, num_tokens, reached)


def lookup(tokens: list[int], k: int, max_ngram: int, min_ngram: int = 1) -> list[int]:
    """Up to k tokens that followed the latest earlier occurrence of the longest n-gram at the end of `tokens`."""
    for size in range(max_ngram, min_ngram - 1, -1):
        tail = tokens[-size:]
        for begin in range(len(tokens) - size - 1, -1, -1):
            if tokens[begin : begin + size] == tail:
                return tokens[begin + size : begin + size + k]
    return []


def acceptance_probability(
    draft: torch.Tensor,
    target: torch.Tensor,
    tokens: torch.Tensor,
    draft_rows: torch.Tensor,
    target_rows: torch.Tensor,
    to_draft: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """For each token of an answer, the probability that it came out as an accepted draft.

    Args:
        draft: the drafter's last hidden states [n, hidden] in front of each token.
        target: the target's, likewise.
        tokens: the answer's tokens [n].
        draft_rows: output rows of the draft vocabulary.
        target_rows: output rows of the whole vocabulary.
        to_draft: [vocab], index in the draft vocabulary or -1.
        temperature: 0 compares the drafter's best token.
    """
    drafted = (draft @ draft_rows.T).float()
    indices = to_draft[tokens]
    known = indices >= 0
    if temperature == 0:
        return (known & (drafted.argmax(-1) == indices)).float()
    q = torch.log_softmax(drafted / temperature, -1).gather(1, indices.clamp(min=0)[:, None])[:, 0]
    p = torch.log_softmax((target @ target_rows.T).float() / temperature, -1).gather(1, tokens[:, None])[:, 0]
    return torch.where(known, (q - p).exp().clamp(max=1.0), 0.0)


def draw_flags(probabilities: torch.Tensor, draws: int, seed: int) -> list[Flags]:
    """Independent accept or reject draws of one answer, of probabilities [places, answer]; greedy ones are certain."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(draws, *probabilities.shape, generator=generator)
    flags: list[Flags] = (uniform < probabilities).tolist()
    return flags
