"""The plugin's link to a drafter that answers at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent import futures

from minedraft.vllm.desk import Drafts, StepReport

Draft = Callable[[Sequence[int]], tuple[int, ...]]


class FakeLink:
    """Drafts for each request that is wanted by `draft`, which is given its tokens; `is_late`: never answers.

    Attributes:
        tokens: what it knows of each request. info: None stands for no drafter.
    """

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.tokens: dict[str, list[int]] = {}
        self.reports: list[StepReport] = []
        self.is_late = False
        self.info: object | None = "a drafter"

    def send(self, report: StepReport) -> futures.Future[Mapping[str, Drafts]]:
        self.reports.append(report)
        for newcomer in report.newcomers:
            self.tokens[newcomer.name] = list(newcomer.tokens)
        for outcome in report.outcomes:
            self.tokens[outcome.name] += outcome.tokens
        reply: futures.Future[Mapping[str, Drafts]] = futures.Future()
        if not self.is_late:
            wanted = report.wanted if self.info is not None else ()
            reply.set_result({name: self._draft(self.tokens[name]) for name in wanted})
        return reply

    def close(self) -> None:
        """Nothing is open."""

    def _draft(self, tokens: Sequence[int]) -> Drafts:
        return Drafts(len(tokens), self.draft(tokens))
