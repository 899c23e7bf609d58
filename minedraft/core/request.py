"""A request as the scheduler knows it: the only truth about its tokens."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from minedraft.errors import MineDraftError
from minedraft.messages import TokenLogprobs
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, FinishReason, SequenceSpec


@dataclass(frozen=True, slots=True)
class NewRequest:
    """A client's request, tokenised and checked against the model.

    Attributes:
        prompt_token_ids: at least one id, all below the target's vocabulary size.
        seed: key of all randomness of this request (drawn by the service if the client gave none).
        stop_ids: token ids that end the output: EOS unless ignored, and the client's own.
        name: the id that its client knows it by, for the log.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int = 0
    stop_ids: tuple[int, ...] = ()
    name: str = ""

    @property
    def acceptance(self) -> Acceptance:
        """`GREEDY` at temperature 0; `COUPLED` with a seed from the client, because the output must then
        not depend on the drafter; otherwise `REJECTION`, which accepts more drafts."""
        if self.sampling.is_greedy:
            return Acceptance.GREEDY
        return Acceptance.REJECTION if self.sampling.seed is None else Acceptance.COUPLED


@dataclass(slots=True)
class Request:
    """A live request; changed by the scheduler only.

    Attributes:
        tokens: committed tokens: prompt + accepted output.
        verifier_len: leading tokens that the verifier's KV holds.
        batch: the batch it has a seat in; None while it waits.
        num_open_rounds: rounds that it is part of and that are planned and not ended; two if one follows the other.
        must_leave: whether it is preempted when its round ends.
        is_paused: whether it wants no seat; one that it has, it leaves when its round ends.
        num_forced: tokens that its grammar left no choice about. last_forced: those that came with its last round.
        seniority: which one it was to be seated for the first time; 0 before that. The youngest is preempted.
        num_replays: times that it was recomputed because the verifier was lost in a round of it, less an acquittal.
        trial_len: it is on trial (`queueing/trials.py`) until the verifier has computed so many tokens of it; 0: it is
            not.
    """

    id: int
    tokens: list[int]
    spec: SequenceSpec
    batch: Batch | None = None
    num_open_rounds: int = 0
    must_leave: bool = False
    seniority: int = 0
    verifier_len: int = 0
    is_aborted: bool = False
    is_paused: bool = False
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_replays: int = 0
    trial_len: int = 0
    num_forced: int = 0
    last_forced: int = 0

    @classmethod
    def create(cls, request_id: int, new: NewRequest) -> Request:
        spec = SequenceSpec(
            sampling=new.sampling,
            prompt_len=len(new.prompt_token_ids),
            seed=new.seed,
            acceptance=new.acceptance,
            stop_ids=new.stop_ids,
        )
        return cls(id=request_id, tokens=list(new.prompt_token_ids), spec=spec)

    @property
    def in_round(self) -> bool:
        """Whether it is part of a round that is planned and not ended."""
        return self.num_open_rounds > 0

    @property
    def may_be_forced(self) -> bool:
        """Whether a round may give it tokens that its grammar forces, beside the one that the target chooses."""
        return self.spec.sampling.grammar is not None and self.spec.sampling.logprobs is None

    @property
    def output_len(self) -> int:
        return len(self.tokens) - self.spec.prompt_len

    @property
    def remaining_len(self) -> int:
        """Output tokens still allowed."""
        return self.spec.sampling.output_limit - self.output_len


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """New tokens of a request, its end, or both.

    Exactly one update of a request has `finish_reason` or `error`: the last one. num_forced: the last of the tokens,
    which its grammar forced. num_steps: forwards that gave the tokens; one each if there are several.
    """

    request: Request
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = field(default=())
    finish_reason: FinishReason | None = None
    error: MineDraftError | None = None
    num_forced: int = 0
    num_steps: int = 1

    @property
    def steps(self) -> Iterator[tuple[tuple[int, ...], tuple[TokenLogprobs, ...], int]]:
        """Yield the tokens of each forward in order, with their log-probabilities and the number of forced ones."""
        if self.num_steps == 1:
            yield self.token_ids, self.logprobs, self.num_forced
            return
        for index in range(len(self.token_ids)):
            here = slice(index, index + 1)
            yield self.token_ids[here], self.logprobs[here], 0

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None
