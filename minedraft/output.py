"""The values that a client receives: pieces of an answer, its usage, and the state of the service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minedraft.messages import TokenLogprobs
from minedraft.types import FinishReason


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """Final account of a request. Times are in seconds since its arrival."""

    prompt_tokens: int
    output_tokens: int
    rounds: int  # verify rounds that sampled for this request
    drafted_tokens: int  # draft tokens verified
    accepted_tokens: int  # draft tokens accepted
    queue_s: float  # until its first round
    first_token_s: float
    total_s: float
    forced_tokens: int = 0  # that the grammar left no choice about, committed without a forward


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of one answer; from `complete`, the whole answer.

    Attributes:
        text: new text, complete characters only. token_ids: new token ids, EOS included.
        finish_reason, usage: None until the end.
        logprobs: one per token id, if the request asked for them.
        index: which of the n samples, 0..n-1.
        round_lens: tokens of each verify round, in order; they add up to those in `token_ids`. All of a round but
            the last, and those that a grammar forced after it, are accepted drafts, and so is the last where the
            answer's end cut the round short. Empty where the service hides them (`stream_tokens`).
        forced_lens: of each of these rounds, the last tokens that the grammar forced; empty if there are none.
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    finish_reason: FinishReason | None = None
    usage: RequestUsage | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    index: int = 0
    request_id: str = ""
    round_lens: tuple[int, ...] = ()
    forced_lens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchState:
    """One of the two batches.

    Attributes:
        name: "A" or "B".
        num_requests: requests that have a seat in it now.
        rounds: rounds committed since the start of the service.
        num_tokens: committed tokens of these requests, prompts and output.
        vsr, mean_accepted_len: as those of the service, of this batch alone.
    """

    name: str
    num_requests: int = 0
    rounds: int = 0
    num_tokens: int = 0
    vsr: float = 0.0
    mean_accepted_len: float = 0.0


@dataclass(frozen=True, slots=True)
class WorkerState:
    """One worker process.

    Attributes:
        role: "drafter" or "verifier". state: "ready" or "lost".
        device: "cpu:0-3", "cuda:1". dtype: "float32", "bfloat16", or "none" without a model.
        epoch: number of this incarnation; another one after every handshake.
        num_blocks, num_free_blocks: KV cache blocks of `block_size` tokens; num_blocks 0: it holds no KV.
        busy: share of the measured time in which its device thread worked, 0..1, over recent rounds.
        step_ms: median milliseconds of a command, over recent rounds.
        draft_method: "model", "ngram" or "eagle" for a drafter, else "".
        kernels: what computes a forward pass: "native amx_bf16", "torch", "transformers"; "" without a model.
        is_batch_invariant: a row's logits are the same bits whatever else is in the forward pass, so that greedy
            and seeded tokens are the same alone and in a crowd, in bfloat16 too.
        cores: numbers of the cores that it computes on now, as "0-1"; "" on a GPU.
        carrier: what large tensors from and to it travel by: "inline" (messages), "shm", "cuda_ipc" or "dist".
        num_queued: commands that it has been sent and has not answered. restarts: times that it came back after a loss.
        busy_s: seconds since the start of the service in which its device worked.
    """

    role: str
    state: str = ""
    model: str = ""
    device: str = ""
    dtype: str = ""
    epoch: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    block_size: int = 0
    busy: float = 0.0
    step_ms: float = 0.0
    draft_method: str = ""
    kernels: str = ""
    is_batch_invariant: bool = False
    cores: str = ""
    carrier: str = ""
    num_queued: int = 0
    restarts: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True)
class AcceptanceState:
    """Rows of rounds, since the start of the service, with so many drafts of which so many were accepted."""

    drafts: int
    accepted: int
    rows: int = 0


@dataclass(frozen=True, slots=True)
class FaultState:
    """A fault of the service. cause: one of `minedraft.observe.faults.FaultLog`. age_s: seconds ago."""

    cause: str
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SourceState:
    """What became of the drafts of one source since the start of the service.

    Attributes:
        name: "model", "eagle" or "ngram" (looked up in the request's own text).
        rows: times that a request was drafted for. verified_drafts, accepted_drafts: drafts.
    """

    name: str
    rows: int = 0
    verified_drafts: int = 0
    accepted_drafts: int = 0


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The state of the service. Counts are since its start and only grow; recent figures are of at most the
    last 1,024 rounds, and begin anew when mode or sizes change.

    Attributes:
        state: "starting", "serving", "degraded" (no drafter, useless drafts, or no HTTP door), "recovering" (the
            verifier is lost, and requests wait for it) or "draining".
        mode, draft_len, max_batch_size: in force now (k, and m of each batch).
        num_waiting, num_running: requests without and with a seat.
        vsr: accepted / verified drafts, recent. mean_accepted_len: accepted drafts per request and round that had
            drafts, recent.
        overlap_efficiency: ideal step time max(t_draft, t_verify) / measured step time, 0..1, recent.
        control_overhead_ms: median milliseconds of step time - max(t_draft, t_verify), recent.
        tokens_per_s: output tokens per second over the last ten seconds.
        output_tokens, finished_requests, preemptions, verified_drafts, accepted_drafts: counts.
        branches: prepared per request while its drafts are verified; 0: not in this mode. runs_ahead: count of
            requests and rounds in which the drafter ran ahead. used_runs: those whose drafts the next round used.
        stale_replies: proposals and replies dropped because they belong to another round or epoch.
        wire_bytes: bytes between the scheduler and both workers, both ways. steps: forwards of the target in the
            rounds of all batches.
        feature_bytes: of the target's features for the drafter, whatever carried them between the workers.
        verify_ms, draft_ms, step_ms: median milliseconds of a verify, a draft and a step, recent; where a verify has
            several decode steps, of each of them.
        errors: number of failed calls by the error's reason.
        worker_losses: times that a worker was lost, by "ROLE:CAUSE"; causes are those of `LossCause`.
        worker_rejoins: times that a lost worker came back. replays: times that a request was recomputed after the
            loss of the verifier.
        sources: what made the drafts, each source that had any.
        suspended: why the whole service decodes without drafts at present although it has a drafter; "" if it does not.
        num_suspended: live requests that decode without drafts because theirs were useless.
        is_mode_auto, is_draft_len_auto: whether the service chooses mode and k; then draft_len is the most.
        mode_reason: why it chose the present mode, "" while nothing is known.
        faults: number of faults by cause. recent_faults: the last ones, oldest first.
        max_model_len: most tokens of prompt and answer together.
        exposed_drafting_s: seconds since the start in which the verifier was idle while the drafter drafted.
        absent: processes that should run and do not, besides the workers: "http" or "".
        acceptances: rows of rounds since the start by their drafts and those accepted.
        both_busy_s: seconds since the start in which both devices worked.
        decode_s, decode_tokens: duration and output tokens of all rounds without prompt tokens before which no batch
            had waited for requests.
        steps_per_command: decode steps of the next verify command, at most.
    """

    state: str
    mode: str = ""
    draft_len: int = 0
    max_batch_size: int = 0
    num_waiting: int = 0
    num_running: int = 0
    batches: tuple[BatchState, ...] = ()
    workers: tuple[WorkerState, ...] = ()
    vsr: float = 0.0
    mean_accepted_len: float = 0.0
    overlap_efficiency: float = 0.0
    control_overhead_ms: float = 0.0
    tokens_per_s: float = 0.0
    output_tokens: int = 0
    finished_requests: int = 0
    preemptions: int = 0
    stale_replies: int = 0
    wire_bytes: int = 0
    steps: int = 0
    uptime_s: float = 0.0
    verify_ms: float = 0.0
    draft_ms: float = 0.0
    step_ms: float = 0.0
    verified_drafts: int = 0
    accepted_drafts: int = 0
    branches: int = 0
    runs_ahead: int = 0
    used_runs: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    sources: tuple[SourceState, ...] = ()
    feature_bytes: int = 0
    suspended: str = ""
    num_suspended: int = 0
    is_mode_auto: bool = False
    is_draft_len_auto: bool = False
    mode_reason: str = ""
    faults: dict[str, int] = field(default_factory=dict)
    recent_faults: tuple[FaultState, ...] = ()
    exposed_drafting_s: float = 0.0
    max_model_len: int = 0
    worker_losses: dict[str, int] = field(default_factory=dict)
    worker_rejoins: int = 0
    replays: int = 0
    absent: str = ""
    acceptances: tuple[AcceptanceState, ...] = ()
    both_busy_s: float = 0.0
    decode_s: float = 0.0
    decode_tokens: int = 0
    steps_per_command: int = 1


def join_samples(pieces: Sequence[Output]) -> list[Output]:
    """Return the pieces of several samples, as they came, as one Output each, in the order of their index."""
    indexes = sorted({piece.index for piece in pieces})
    return [join_outputs([piece for piece in pieces if piece.index == index]) for index in indexes]


def join_outputs(pieces: Sequence[Output]) -> Output:
    """Return the pieces of one sample, given in order, as one Output."""
    last = pieces[-1]
    return Output(
        text="".join(piece.text for piece in pieces),
        token_ids=tuple(token_id for piece in pieces for token_id in piece.token_ids),
        finish_reason=last.finish_reason,
        usage=last.usage,
        logprobs=tuple(entry for piece in pieces for entry in piece.logprobs),
        index=last.index,
        request_id=last.request_id,
        round_lens=tuple(length for piece in pieces for length in piece.round_lens),
        forced_lens=_join_forced(pieces),
    )


def _join_forced(pieces: Sequence[Output]) -> tuple[int, ...]:
    """Return the `forced_lens` of all pieces; those of a piece without forced tokens are 0 beside others."""
    if not any(piece.forced_lens for piece in pieces):
        return ()
    lens = [piece.forced_lens or (0,) * len(piece.round_lens) for piece in pieces]
    return tuple(length for some in lens for length in some)
