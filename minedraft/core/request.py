"""A request as the scheduler knows it: the only truth about its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field

from minedraft.errors import MineDraftError
from minedraft.sampling_params import SamplingParams
from minedraft.types import Acceptance, Batch, FinishReason, SequenceSpec, TokenLogprobs


@dataclass(frozen=True, slots=True)
class NewRequest:
    """What a client asks for, tokenised and checked against the model.

    Attributes:
        prompt_token_ids: at least one id, all below the target's vocabulary size.
        seed: key of all randomness of this request (drawn by the service where the client gave none).
        stop_ids: token ids that end the output: EOS unless ignored, and the client's own.
    """

    prompt_token_ids: tuple[int, ...]
    sampling: SamplingParams
    seed: int = 0
    stop_ids: tuple[int, ...] = ()

    @property
    def acceptance(self) -> Acceptance:
        """Greedy by temperature; `COUPLED` where the client fixed a seed, for then the output must
        not depend on the drafter; `REJECTION`, which accepts more, for the rest."""
        if self.sampling.is_greedy:
            return Acceptance.GREEDY
        return Acceptance.REJECTION if self.sampling.seed is None else Acceptance.COUPLED


@dataclass(slots=True)
class Request:
    """A live request; changed by the scheduler only.

    Attributes:
        tokens: committed tokens: prompt + accepted output.
        verifier_len: leading tokens the verifier's KV holds.
        batch: where it decodes; None while it waits.
        in_round: part of a round that is planned and not committed yet.
        must_leave: it is preempted when its round ends.
    """

    id: int
    tokens: list[int]
    spec: SequenceSpec
    batch: Batch | None = None
    in_round: bool = False
    must_leave: bool = False
    verifier_len: int = 0
    is_aborted: bool = False
    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_preemptions: int = 0

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
    def output_len(self) -> int:
        return len(self.tokens) - self.spec.prompt_len

    @property
    def remaining_len(self) -> int:
        """Output tokens still allowed."""
        return self.spec.sampling.output_limit - self.output_len


@dataclass(frozen=True, slots=True)
class RequestUpdate:
    """What one event did to one request: new tokens, perhaps the end, perhaps an error.

    A request's last RequestUpdate has `finish_reason` or `error`; there is exactly one such.
    """

    request: Request
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprobs, ...] = field(default=())
    finish_reason: FinishReason | None = None
    error: MineDraftError | None = None

    @property
    def is_final(self) -> bool:
        return self.finish_reason is not None or self.error is not None
