"""The verifier: one packed forward of the target over committed tokens and drafts, then acceptance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from minedraft.errors import ChannelFailed, InvalidRequest
from minedraft.messages import Verdict, VerifyCommand, VerifySpan, WorkerInfo
from minedraft.types import MAX_FORCED, MAX_SPAN_DRAFTS, MAX_TOP_M
from minedraft_workers.channels.base import TensorSpec, TokenChannel
from minedraft_workers.channels.inline import InlineChannel
from minedraft_workers.clock import clock_for
from minedraft_workers.execution.executor import Executor, ForwardSpan
from minedraft_workers.execution.memory import within_memory
from minedraft_workers.execution.runner import GraphCapturing
from minedraft_workers.feature_rows import pack_features
from minedraft_workers.request_table import RequestTable
from minedraft_workers.rounds.actors import Work
from minedraft_workers.sampling.acceptance import Outcome, VerifyRow
from minedraft_workers.sampling.guides import Guides
from minedraft_workers.sampling.sampler import Sampler
from minedraft_workers.sequence import SequenceState

_Q_IDS = TensorSpec("int32", (MAX_SPAN_DRAFTS, MAX_TOP_M))
_Q_PROBS = TensorSpec("float32", (MAX_SPAN_DRAFTS, MAX_TOP_M))


class VerifierActor:
    """Executes the Verifier commands, in the device thread."""

    def __init__(
        self,
        executor: Executor,
        info: WorkerInfo,
        sampler: Sampler | None = None,
        channel: TokenChannel | None = None,
        guides: Guides | None = None,
    ) -> None:
        """Take the target, and what decides about drafts, carries q and follows grammars; by default torch, the
        message, and nothing."""
        self.info = info
        self._executor = executor
        self._clock = clock_for(executor.device)
        self._sampler = sampler or Sampler()
        self._channel = channel or InlineChannel()
        self._requests = RequestTable(guides)

    @property
    def resize(self) -> Callable[[int], None] | None:
        """Sets the number of threads; None if the model's kernels have a fixed number."""
        return None if self._executor.pool is None else self._executor.pool.resize

    @property
    def graphs(self) -> GraphCapturing | None:
        """What captures the target's forwards as CUDA graphs; None where they run without."""
        return self._executor.graphs

    @property
    def num_free_blocks(self) -> int:
        return self._executor.num_free_blocks

    @within_memory
    def verify(self, command: VerifyCommand) -> Work[Verdict]:
        """Release requests, run all spans as one forward, decide. Implements `VerifyingActor`."""
        self._clock.start()
        self.release(command.released)
        states = [self._requests.find(span) for span in command.spans]
        q_of: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        spans = [self._with_q(span, q_of) for span in command.spans]
        self._want_features(command)
        with self._clock.forward():
            logits, features = self._forward(spans)
        for state, span in zip(states, spans, strict=True):
            state.replace_from(span.prefix_len, span.tokens)
        self._requests.keep(states)
        rows = [
            VerifyRow(state, span.drafts, *q_of.get(span.request_id, (None, None)))
            for state, span in zip(states, spans, strict=True)
            if span.sample
        ]
        outcomes = iter(self._sampler.verify(logits, rows) if rows else ())
        verdicts = [
            _to_verdict(state, span, next(outcomes) if span.sample else None)
            for state, span in zip(states, spans, strict=True)
        ]
        if features is not None:
            accepted_lens = [None if verdict.error else verdict.accepted_len for verdict in verdicts]
            packed = pack_features(spans, accepted_lens, features, self._channel)
            verdicts = [replace(verdict, features=piece) for verdict, piece in zip(verdicts, packed, strict=True)]
        return Work(tuple(verdicts), self._clock.finish())

    def release(self, request_ids: Sequence[int]) -> None:
        for request_id in request_ids:
            self._requests.forget(request_id)
            self._executor.release(request_id)

    def reset(self, target_vocab_size: int) -> None:
        self._requests.clear()
        self._executor.release_all()

    def _want_features(self, command: VerifyCommand) -> None:
        layers = command.feature_layers
        if unknown := sorted(set(layers) - set(self.info.feature_layers)):
            raise InvalidRequest("feature_layers", unknown, f"{self.info.model_name} cannot deliver them")
        if layers and layers != self._executor.feature_layers.layers:
            self._executor.want_features(layers)

    def _forward(self, spans: Sequence[VerifySpan]) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the logits, and the features of all rows if a span wants any."""
        forward = [_to_forward(span) for span in spans]
        if not any(span.wants_features for span in spans):
            return self._executor.forward(forward), None
        output = self._executor.forward_with_features(forward)
        return output.logits, output.features

    def _with_q(self, span: VerifySpan, q_of: dict[int, tuple[torch.Tensor, torch.Tensor]]) -> VerifySpan:
        """Put a span's q into `q_of`. If it is lost on its way, return the span without drafts: whether it is lost
        does not depend on the drafts, so the output law is the same."""
        if span.q is not None:
            try:
                q_of[span.request_id] = self._unpack_q(span)
            except ChannelFailed:  # the channel tells the scheduler
                return replace(span, drafts=(), q=None)
        return span

    def _unpack_q(self, span: VerifySpan) -> tuple[torch.Tensor, torch.Tensor]:
        assert span.q is not None, "called for spans that have a q"
        # On the host, because acceptance reads single numbers of it.
        unpack, host = self._channel.unpack, torch.device("cpu")
        return unpack(span.q.ids, _Q_IDS, host), unpack(span.q.probs, _Q_PROBS, host)


def _to_forward(span: VerifySpan) -> ForwardSpan:
    num_logits = len(span.drafts) + 1 if span.sample else 0
    return ForwardSpan(span.request_id, span.prefix_len, span.tokens + span.drafts, num_logits)


def _to_verdict(state: SequenceState, span: VerifySpan, outcome: Outcome | None) -> Verdict:
    committed_len = span.prefix_len + len(span.tokens)
    if outcome is None or outcome.error:
        error = "" if outcome is None else outcome.error
        return Verdict(span.request_id, committed_len, 0, (), error=error)
    # The KV of rejected drafts is dropped by the next command's prefix length.
    state.tokens.extend(span.drafts[: outcome.accepted_len])
    forced = _forced_after(state, outcome)
    tokens = outcome.tokens + forced
    return Verdict(
        span.request_id,
        committed_len,
        outcome.accepted_len,
        tokens,
        outcome.logprobs,
        num_forced=len(forced),
        is_end=tokens[-1] in state.spec.stop_ids,
    )


def _forced_after(state: SequenceState, outcome: Outcome) -> tuple[int, ...]:
    """Return the tokens after an outcome that the grammar leaves no choice about. Their probability is 1 whatever the
    logits are, so they need no forward; their log-probabilities in the free model would."""
    spec = state.spec
    if state.guide is None or spec.sampling.logprobs is not None:
        return ()
    forced = state.guide.forced_after(state.tokens, outcome.tokens[-1:], MAX_FORCED)
    num_output = len(state.tokens) - spec.prompt_len + 1
    first_end = spec.sampling.min_new_tokens - num_output  # an end before it is masked
    wrong = next((i for i, token in enumerate(forced[: max(first_end, 0)]) if token in spec.stop_ids), len(forced))
    return forced[:wrong]
