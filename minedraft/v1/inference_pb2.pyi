from minedraft.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_ABORT: _ClassVar[FinishReason]
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_ABORT: FinishReason

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class TokenIds(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class Chat(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("request_id", "text", "token_ids", "chat", "sampling", "timeout_s", "interval_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    text: str
    token_ids: TokenIds
    chat: Chat
    sampling: _common_pb2.SamplingParams
    timeout_s: float
    interval_s: float
    def __init__(self, request_id: _Optional[str] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Union[TokenIds, _Mapping]] = ..., chat: _Optional[_Union[Chat, _Mapping]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., timeout_s: _Optional[float] = ..., interval_s: _Optional[float] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("prompt_tokens", "output_tokens", "rounds", "drafted_tokens", "accepted_tokens", "forced_tokens", "queue_s", "first_token_s", "total_s")
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FORCED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    TOTAL_S_FIELD_NUMBER: _ClassVar[int]
    prompt_tokens: int
    output_tokens: int
    rounds: int
    drafted_tokens: int
    accepted_tokens: int
    forced_tokens: int
    queue_s: float
    first_token_s: float
    total_s: float
    def __init__(self, prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., rounds: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ..., forced_tokens: _Optional[int] = ..., queue_s: _Optional[float] = ..., first_token_s: _Optional[float] = ..., total_s: _Optional[float] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("request_id", "index", "text", "token_ids", "logprobs", "finish_reason", "usage", "round_lens", "forced_lens", "padding")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_LENS_FIELD_NUMBER: _ClassVar[int]
    FORCED_LENS_FIELD_NUMBER: _ClassVar[int]
    PADDING_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    index: int
    text: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    finish_reason: FinishReason
    usage: Usage
    round_lens: _containers.RepeatedScalarFieldContainer[int]
    forced_lens: _containers.RepeatedScalarFieldContainer[int]
    padding: bytes
    def __init__(self, request_id: _Optional[str] = ..., index: _Optional[int] = ..., text: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., finish_reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ..., round_lens: _Optional[_Iterable[int]] = ..., forced_lens: _Optional[_Iterable[int]] = ..., padding: _Optional[bytes] = ...) -> None: ...

class AbortRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class AbortReply(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: _Optional[bool] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BorrowRequest(_message.Message):
    __slots__ = ("mode", "max_batch_size", "draft_len", "branches", "keep_cores")
    MODE_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LEN_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    KEEP_CORES_FIELD_NUMBER: _ClassVar[int]
    mode: str
    max_batch_size: int
    draft_len: int
    branches: int
    keep_cores: bool
    def __init__(self, mode: _Optional[str] = ..., max_batch_size: _Optional[int] = ..., draft_len: _Optional[int] = ..., branches: _Optional[int] = ..., keep_cores: _Optional[bool] = ...) -> None: ...

class BorrowReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BatchStatus(_message.Message):
    __slots__ = ("name", "num_requests", "rounds", "num_tokens", "vsr", "mean_accepted_len")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    VSR_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTED_LEN_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_requests: int
    rounds: int
    num_tokens: int
    vsr: float
    mean_accepted_len: float
    def __init__(self, name: _Optional[str] = ..., num_requests: _Optional[int] = ..., rounds: _Optional[int] = ..., num_tokens: _Optional[int] = ..., vsr: _Optional[float] = ..., mean_accepted_len: _Optional[float] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("role", "state", "model", "device", "dtype", "epoch", "num_blocks", "num_free_blocks", "block_size", "busy", "step_ms", "draft_method", "kernels", "is_batch_invariant", "cores", "carrier", "num_queued", "restarts", "busy_s")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_METHOD_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    IS_BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_S_FIELD_NUMBER: _ClassVar[int]
    role: str
    state: str
    model: str
    device: str
    dtype: str
    epoch: int
    num_blocks: int
    num_free_blocks: int
    block_size: int
    busy: float
    step_ms: float
    draft_method: str
    kernels: str
    is_batch_invariant: bool
    cores: str
    carrier: str
    num_queued: int
    restarts: int
    busy_s: float
    def __init__(self, role: _Optional[str] = ..., state: _Optional[str] = ..., model: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., epoch: _Optional[int] = ..., num_blocks: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., busy: _Optional[float] = ..., step_ms: _Optional[float] = ..., draft_method: _Optional[str] = ..., kernels: _Optional[str] = ..., is_batch_invariant: _Optional[bool] = ..., cores: _Optional[str] = ..., carrier: _Optional[str] = ..., num_queued: _Optional[int] = ..., restarts: _Optional[int] = ..., busy_s: _Optional[float] = ...) -> None: ...

class FaultStatus(_message.Message):
    __slots__ = ("cause", "age_s")
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    cause: str
    age_s: float
    def __init__(self, cause: _Optional[str] = ..., age_s: _Optional[float] = ...) -> None: ...

class AcceptanceStatus(_message.Message):
    __slots__ = ("drafts", "accepted", "rows")
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    drafts: int
    accepted: int
    rows: int
    def __init__(self, drafts: _Optional[int] = ..., accepted: _Optional[int] = ..., rows: _Optional[int] = ...) -> None: ...

class SourceStatus(_message.Message):
    __slots__ = ("name", "rows", "verified_drafts", "accepted_drafts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    rows: int
    verified_drafts: int
    accepted_drafts: int
    def __init__(self, name: _Optional[str] = ..., rows: _Optional[int] = ..., verified_drafts: _Optional[int] = ..., accepted_drafts: _Optional[int] = ...) -> None: ...

class GetStatusReply(_message.Message):
    __slots__ = ("state", "mode", "draft_len", "max_batch_size", "num_waiting", "num_running", "batches", "workers", "vsr", "mean_accepted_len", "overlap_efficiency", "control_overhead_ms", "tokens_per_s", "output_tokens", "finished_requests", "preemptions", "stale_replies", "wire_bytes", "steps", "uptime_s", "verify_ms", "draft_ms", "step_ms", "errors", "verified_drafts", "accepted_drafts", "sources", "feature_bytes", "suspended", "num_suspended", "is_mode_auto", "is_draft_len_auto", "mode_reason", "branches", "runs_ahead", "used_runs", "faults", "recent_faults", "max_model_len", "exposed_drafting_s", "worker_losses", "worker_rejoins", "replays", "absent", "acceptances", "both_busy_s", "decode_s", "decode_tokens", "steps_per_command")
    class ErrorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class FaultsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class WorkerLossesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STATE_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LEN_FIELD_NUMBER: _ClassVar[int]
    MAX_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    BATCHES_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    VSR_FIELD_NUMBER: _ClassVar[int]
    MEAN_ACCEPTED_LEN_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_EFFICIENCY_FIELD_NUMBER: _ClassVar[int]
    CONTROL_OVERHEAD_MS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    STALE_REPLIES_FIELD_NUMBER: _ClassVar[int]
    WIRE_BYTES_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    VERIFY_MS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MS_FIELD_NUMBER: _ClassVar[int]
    STEP_MS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    NUM_SUSPENDED_FIELD_NUMBER: _ClassVar[int]
    IS_MODE_AUTO_FIELD_NUMBER: _ClassVar[int]
    IS_DRAFT_LEN_AUTO_FIELD_NUMBER: _ClassVar[int]
    MODE_REASON_FIELD_NUMBER: _ClassVar[int]
    BRANCHES_FIELD_NUMBER: _ClassVar[int]
    RUNS_AHEAD_FIELD_NUMBER: _ClassVar[int]
    USED_RUNS_FIELD_NUMBER: _ClassVar[int]
    FAULTS_FIELD_NUMBER: _ClassVar[int]
    RECENT_FAULTS_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    EXPOSED_DRAFTING_S_FIELD_NUMBER: _ClassVar[int]
    WORKER_LOSSES_FIELD_NUMBER: _ClassVar[int]
    WORKER_REJOINS_FIELD_NUMBER: _ClassVar[int]
    REPLAYS_FIELD_NUMBER: _ClassVar[int]
    ABSENT_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCES_FIELD_NUMBER: _ClassVar[int]
    BOTH_BUSY_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_S_FIELD_NUMBER: _ClassVar[int]
    DECODE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEPS_PER_COMMAND_FIELD_NUMBER: _ClassVar[int]
    state: str
    mode: str
    draft_len: int
    max_batch_size: int
    num_waiting: int
    num_running: int
    batches: _containers.RepeatedCompositeFieldContainer[BatchStatus]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    vsr: float
    mean_accepted_len: float
    overlap_efficiency: float
    control_overhead_ms: float
    tokens_per_s: float
    output_tokens: int
    finished_requests: int
    preemptions: int
    stale_replies: int
    wire_bytes: int
    steps: int
    uptime_s: float
    verify_ms: float
    draft_ms: float
    step_ms: float
    errors: _containers.ScalarMap[str, int]
    verified_drafts: int
    accepted_drafts: int
    sources: _containers.RepeatedCompositeFieldContainer[SourceStatus]
    feature_bytes: int
    suspended: str
    num_suspended: int
    is_mode_auto: bool
    is_draft_len_auto: bool
    mode_reason: str
    branches: int
    runs_ahead: int
    used_runs: int
    faults: _containers.ScalarMap[str, int]
    recent_faults: _containers.RepeatedCompositeFieldContainer[FaultStatus]
    max_model_len: int
    exposed_drafting_s: float
    worker_losses: _containers.ScalarMap[str, int]
    worker_rejoins: int
    replays: int
    absent: str
    acceptances: _containers.RepeatedCompositeFieldContainer[AcceptanceStatus]
    both_busy_s: float
    decode_s: float
    decode_tokens: int
    steps_per_command: int
    def __init__(self, state: _Optional[str] = ..., mode: _Optional[str] = ..., draft_len: _Optional[int] = ..., max_batch_size: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_running: _Optional[int] = ..., batches: _Optional[_Iterable[_Union[BatchStatus, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., vsr: _Optional[float] = ..., mean_accepted_len: _Optional[float] = ..., overlap_efficiency: _Optional[float] = ..., control_overhead_ms: _Optional[float] = ..., tokens_per_s: _Optional[float] = ..., output_tokens: _Optional[int] = ..., finished_requests: _Optional[int] = ..., preemptions: _Optional[int] = ..., stale_replies: _Optional[int] = ..., wire_bytes: _Optional[int] = ..., steps: _Optional[int] = ..., uptime_s: _Optional[float] = ..., verify_ms: _Optional[float] = ..., draft_ms: _Optional[float] = ..., step_ms: _Optional[float] = ..., errors: _Optional[_Mapping[str, int]] = ..., verified_drafts: _Optional[int] = ..., accepted_drafts: _Optional[int] = ..., sources: _Optional[_Iterable[_Union[SourceStatus, _Mapping]]] = ..., feature_bytes: _Optional[int] = ..., suspended: _Optional[str] = ..., num_suspended: _Optional[int] = ..., is_mode_auto: _Optional[bool] = ..., is_draft_len_auto: _Optional[bool] = ..., mode_reason: _Optional[str] = ..., branches: _Optional[int] = ..., runs_ahead: _Optional[int] = ..., used_runs: _Optional[int] = ..., faults: _Optional[_Mapping[str, int]] = ..., recent_faults: _Optional[_Iterable[_Union[FaultStatus, _Mapping]]] = ..., max_model_len: _Optional[int] = ..., exposed_drafting_s: _Optional[float] = ..., worker_losses: _Optional[_Mapping[str, int]] = ..., worker_rejoins: _Optional[int] = ..., replays: _Optional[int] = ..., absent: _Optional[str] = ..., acceptances: _Optional[_Iterable[_Union[AcceptanceStatus, _Mapping]]] = ..., both_busy_s: _Optional[float] = ..., decode_s: _Optional[float] = ..., decode_tokens: _Optional[int] = ..., steps_per_command: _Optional[int] = ...) -> None: ...
