"""A proposer for vLLM that proposes nothing: it makes vLLM verify drafts, which the scheduler sets."""

from __future__ import annotations

from typing import Any


class NoopProposer:
    """What `--speculative-config` names with the method `custom_class`."""

    def __init__(self, vllm_config: object) -> None:
        """vLLM gives every proposer its configuration."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Do nothing: there is no model here."""

    def propose(self, sampled_token_ids: list[list[int]], *args: Any, **kwargs: Any) -> list[list[int]]:  # noqa: ANN401
        """Return no drafts for each request."""
        return [[] for _ in sampled_token_ids]
