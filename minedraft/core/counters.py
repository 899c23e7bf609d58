"""Counts since the start of the service: an observer whose numbers only grow."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from minedraft.core import events
from minedraft.errors import LossCause
from minedraft.messages import LinkStats
from minedraft.types import Batch, DraftMethod, Role


@dataclass(slots=True)
class SourceCounts:
    """The drafts of one source: rows of rounds that had some, drafts verified, and drafts accepted."""

    rows: int = 0
    verified: int = 0
    accepted: int = 0

    def add(self, num_drafts: int, accepted_len: int) -> None:
        """Count the drafts of one request in one round."""
        self.rows += 1
        self.verified += num_drafts
        self.accepted += accepted_len


@dataclass(slots=True)
class Counters:
    """Totals since the start, over all modes and over every link to a worker.

    Attributes:
        rounds: committed rounds of each batch. further_steps: forwards of verify commands after the first of each.
        drafted_rows: spans that sampled and had drafts.
        feature_bytes: of the target's features for the drafter, whatever carried them.
        runs_ahead, used_runs: requests and rounds in which the drafter ran ahead, and those whose drafts were of use.
        failed_commands: commands that a worker refused, or answered against the contract.
        past_links: traffic of lost links.
        sources: the same of each source of drafts that had any.
        late_drafts: times that the drafter was late, and rounds went on without it.
        replays: times that a request lost its KV with the verifier.
        losses: lost workers, by role and cause. rejoins: workers that came back.
        causes: requests that ended with an error, by the error's reason.
        acceptances: rows of rounds by (drafts verified, drafts accepted).
    """

    finished: int = 0
    preemptions: int = 0
    output_tokens: int = 0
    verified_drafts: int = 0
    accepted_drafts: int = 0
    drafted_rows: int = 0
    further_steps: int = 0
    stale_proposals: int = 0
    feature_bytes: int = 0
    runs_ahead: int = 0
    used_runs: int = 0
    failed_commands: int = 0
    lost_workers: int = 0
    rounds: dict[Batch, int] = field(default_factory=lambda: dict.fromkeys(Batch, 0))
    past_links: LinkStats = field(default_factory=LinkStats)
    sources: dict[DraftMethod, SourceCounts] = field(default_factory=dict)
    losses: Counter[tuple[Role, LossCause]] = field(default_factory=Counter)
    rejoins: int = 0
    replays: int = 0
    late_drafts: int = 0
    _away: set[Role] = field(default_factory=set)
    causes: Counter[str] = field(default_factory=Counter)
    acceptances: Counter[tuple[int, int]] = field(default_factory=Counter)

    def observe(self, event: events.Event, now_s: float) -> None:
        """Count an event; see `minedraft.core.events.Observer`."""
        match event:
            case events.RoundCommitted():
                self.rounds[event.batch] += 1
                self.output_tokens += event.num_output_tokens
                self.drafted_rows += len(event.accepted)
                self.acceptances.update(event.accepted)
                self.runs_ahead += len(event.runs)
                self.used_runs += sum([came_true for _, came_true in event.runs])
                for num_drafts, accepted_len in event.accepted:
                    self.verified_drafts += num_drafts
                    self.accepted_drafts += accepted_len
                for source, (num_drafts, accepted_len) in zip(event.sources, event.accepted, strict=False):
                    self.sources.setdefault(source, SourceCounts()).add(num_drafts, accepted_len)
            case events.Verified():
                self.feature_bytes += event.feature_bytes
                self.further_steps += event.num_steps - 1
            case events.RequestEnded():
                self.finished += 1
                if event.error:
                    self.causes[event.error] += 1
            case events.RequestPreempted():
                self.preemptions += 1
            case events.DrafterLate():
                self.late_drafts += 1
            case events.RequestReplayed():
                self.replays += 1
            case events.WorkerJoined():
                self.rejoins += event.info.role in self._away
                self._away.discard(event.info.role)
            case events.ProposalsDropped():
                self.stale_proposals += event.num_proposals
            case events.CommandFailed():
                self.failed_commands += 1
            case events.WorkerLeft():
                self.lost_workers += 1
                self.losses[event.role, event.kind] += 1
                self._away.add(event.role)
                self.past_links.wire_bytes += event.stats.wire_bytes
                self.past_links.num_stale += event.stats.num_stale
