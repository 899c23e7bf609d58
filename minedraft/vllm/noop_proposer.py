"""A proposer for vLLM that proposes nothing: it makes vLLM verify drafts, which the scheduler sets.

It is the one part of the path for the model runner V1 that is in the worker's process, where drafts are verified. So
it also tries whether sampled ones are verified rightly there, and says so in what it proposes, which the scheduler
reads and drops.
"""

from __future__ import annotations

from typing import Any

WRONG_SAMPLING = -2
"""What is "proposed" for every request if drafts of sampled requests must not be verified."""


class NoopProposer:
    """What `--speculative-config` names with the method `custom_class`."""

    def __init__(self, vllm_config: object) -> None:
        """vLLM gives every proposer its configuration."""
        self._proposal = [] if samples_drafts() else [WRONG_SAMPLING]

    def load_model(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Do nothing: there is no model here."""

    def propose(self, sampled_token_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:  # noqa: ANN401
        """Return no drafts for each request."""
        return [list(self._proposal) for _ in sampled_token_ids]


def samples_drafts() -> bool:
    """Whether vLLM verifies drafts of sampled requests by their own temperature and top_p.

    The CPU build 0.32.0 does not: its `expand_batch_to_tokens` leaves what should be each draft's temperature as it
    found it in memory. It counts for every draft of a step in which one request is sampled.
    """
    import torch
    from vllm.platforms import current_platform
    from vllm.v1.sample.rejection_sampler import expand_batch_to_tokens

    if not current_platform.is_cpu():
        return True
    num_tokens = torch.tensor([1, 3], dtype=torch.int32)
    for values in (torch.tensor([0.5, 0.25]), torch.tensor([0.75, 0.125])):
        expanded = expand_batch_to_tokens(values, num_tokens, 3)
        if not torch.equal(expanded, values[[0, 1, 1]]):
            return False
    return True
