from minedraft.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BatchName(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BATCH_NAME_UNSPECIFIED: _ClassVar[BatchName]
    BATCH_NAME_A: _ClassVar[BatchName]
    BATCH_NAME_B: _ClassVar[BatchName]

class Acceptance(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCEPTANCE_UNSPECIFIED: _ClassVar[Acceptance]
    ACCEPTANCE_GREEDY: _ClassVar[Acceptance]
    ACCEPTANCE_COUPLED: _ClassVar[Acceptance]
    ACCEPTANCE_REJECTION: _ClassVar[Acceptance]

class ScoreKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_KIND_NONE: _ClassVar[ScoreKind]
    SCORE_KIND_PEAK: _ClassVar[ScoreKind]
    SCORE_KIND_DRAWN: _ClassVar[ScoreKind]

class DraftSource(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAFT_SOURCE_MODEL: _ClassVar[DraftSource]
    DRAFT_SOURCE_NGRAM: _ClassVar[DraftSource]
    DRAFT_SOURCE_EAGLE: _ClassVar[DraftSource]
BATCH_NAME_UNSPECIFIED: BatchName
BATCH_NAME_A: BatchName
BATCH_NAME_B: BatchName
ACCEPTANCE_UNSPECIFIED: Acceptance
ACCEPTANCE_GREEDY: Acceptance
ACCEPTANCE_COUPLED: Acceptance
ACCEPTANCE_REJECTION: Acceptance
SCORE_KIND_NONE: ScoreKind
SCORE_KIND_PEAK: ScoreKind
SCORE_KIND_DRAWN: ScoreKind
DRAFT_SOURCE_MODEL: DraftSource
DRAFT_SOURCE_NGRAM: DraftSource
DRAFT_SOURCE_EAGLE: DraftSource

class Command(_message.Message):
    __slots__ = ("call", "draft", "prefill", "verify", "release", "configure", "channel", "curtail")
    CALL_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    CURTAIL_FIELD_NUMBER: _ClassVar[int]
    call: int
    draft: DraftRequest
    prefill: DraftRequest
    verify: VerifyRequest
    release: ReleaseRequest
    configure: ConfigureRequest
    channel: ChannelRequest
    curtail: CurtailRequest
    def __init__(self, call: _Optional[int] = ..., draft: _Optional[_Union[DraftRequest, _Mapping]] = ..., prefill: _Optional[_Union[DraftRequest, _Mapping]] = ..., verify: _Optional[_Union[VerifyRequest, _Mapping]] = ..., release: _Optional[_Union[ReleaseRequest, _Mapping]] = ..., configure: _Optional[_Union[ConfigureRequest, _Mapping]] = ..., channel: _Optional[_Union[ChannelRequest, _Mapping]] = ..., curtail: _Optional[_Union[CurtailRequest, _Mapping]] = ...) -> None: ...

class Reply(_message.Message):
    __slots__ = ("call", "draft", "verify", "release", "refusal", "configure", "channel", "heartbeat", "channel_failure")
    CALL_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    CONFIGURE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FAILURE_FIELD_NUMBER: _ClassVar[int]
    call: int
    draft: DraftReply
    verify: VerifyReply
    release: ReleaseReply
    refusal: Refusal
    configure: ConfigureReply
    channel: ChannelReply
    heartbeat: Heartbeat
    channel_failure: str
    def __init__(self, call: _Optional[int] = ..., draft: _Optional[_Union[DraftReply, _Mapping]] = ..., verify: _Optional[_Union[VerifyReply, _Mapping]] = ..., release: _Optional[_Union[ReleaseReply, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., configure: _Optional[_Union[ConfigureReply, _Mapping]] = ..., channel: _Optional[_Union[ChannelReply, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., channel_failure: _Optional[str] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("progress",)
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    progress: int
    def __init__(self, progress: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("reason", "message", "request_id")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    request_id: int
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., request_id: _Optional[int] = ...) -> None: ...

class HandshakeRequest(_message.Message):
    __slots__ = ("protocol_version", "client_name", "target_vocab_size")
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_NAME_FIELD_NUMBER: _ClassVar[int]
    TARGET_VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    protocol_version: int
    client_name: str
    target_vocab_size: int
    def __init__(self, protocol_version: _Optional[int] = ..., client_name: _Optional[str] = ..., target_vocab_size: _Optional[int] = ...) -> None: ...

class HandshakeReply(_message.Message):
    __slots__ = ("role", "epoch", "protocol_version", "vocab_size", "vocab_fingerprint", "num_blocks", "block_size", "max_model_len", "model_name", "device", "dtype", "draft_method", "weights_bytes", "kernels", "channels", "is_batch_invariant", "clock_ns", "waited_ns", "cores", "max_cores", "feature_layers", "feature_size")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PROTOCOL_VERSION_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_FIELD_NUMBER: _ClassVar[int]
    MODEL_NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DRAFT_METHOD_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KERNELS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    IS_BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    CLOCK_NS_FIELD_NUMBER: _ClassVar[int]
    WAITED_NS_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    MAX_CORES_FIELD_NUMBER: _ClassVar[int]
    FEATURE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FEATURE_SIZE_FIELD_NUMBER: _ClassVar[int]
    role: str
    epoch: int
    protocol_version: int
    vocab_size: int
    vocab_fingerprint: str
    num_blocks: int
    block_size: int
    max_model_len: int
    model_name: str
    device: str
    dtype: str
    draft_method: str
    weights_bytes: int
    kernels: str
    channels: _containers.RepeatedCompositeFieldContainer[ChannelOffer]
    is_batch_invariant: bool
    clock_ns: int
    waited_ns: int
    cores: _containers.RepeatedScalarFieldContainer[int]
    max_cores: _containers.RepeatedScalarFieldContainer[int]
    feature_layers: _containers.RepeatedScalarFieldContainer[int]
    feature_size: int
    def __init__(self, role: _Optional[str] = ..., epoch: _Optional[int] = ..., protocol_version: _Optional[int] = ..., vocab_size: _Optional[int] = ..., vocab_fingerprint: _Optional[str] = ..., num_blocks: _Optional[int] = ..., block_size: _Optional[int] = ..., max_model_len: _Optional[int] = ..., model_name: _Optional[str] = ..., device: _Optional[str] = ..., dtype: _Optional[str] = ..., draft_method: _Optional[str] = ..., weights_bytes: _Optional[int] = ..., kernels: _Optional[str] = ..., channels: _Optional[_Iterable[_Union[ChannelOffer, _Mapping]]] = ..., is_batch_invariant: _Optional[bool] = ..., clock_ns: _Optional[int] = ..., waited_ns: _Optional[int] = ..., cores: _Optional[_Iterable[int]] = ..., max_cores: _Optional[_Iterable[int]] = ..., feature_layers: _Optional[_Iterable[int]] = ..., feature_size: _Optional[int] = ...) -> None: ...

class RoundId(_message.Message):
    __slots__ = ("epoch", "batch", "number")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    batch: BatchName
    number: int
    def __init__(self, epoch: _Optional[int] = ..., batch: _Optional[_Union[BatchName, str]] = ..., number: _Optional[int] = ...) -> None: ...

class SequenceSpec(_message.Message):
    __slots__ = ("sampling", "prompt_len", "seed", "acceptance", "stop_ids")
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PROMPT_LEN_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ACCEPTANCE_FIELD_NUMBER: _ClassVar[int]
    STOP_IDS_FIELD_NUMBER: _ClassVar[int]
    sampling: _common_pb2.SamplingParams
    prompt_len: int
    seed: int
    acceptance: Acceptance
    stop_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., prompt_len: _Optional[int] = ..., seed: _Optional[int] = ..., acceptance: _Optional[_Union[Acceptance, str]] = ..., stop_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class TruncatedQ(_message.Message):
    __slots__ = ("ids", "probs")
    IDS_FIELD_NUMBER: _ClassVar[int]
    PROBS_FIELD_NUMBER: _ClassVar[int]
    ids: _common_pb2.Tensor
    probs: _common_pb2.Tensor
    def __init__(self, ids: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ..., probs: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class Features(_message.Message):
    __slots__ = ("start", "states")
    START_FIELD_NUMBER: _ClassVar[int]
    STATES_FIELD_NUMBER: _ClassVar[int]
    start: int
    states: _common_pb2.Tensor
    def __init__(self, start: _Optional[int] = ..., states: _Optional[_Union[_common_pb2.Tensor, _Mapping]] = ...) -> None: ...

class DraftSpan(_message.Message):
    __slots__ = ("request_id", "prefix_len", "tokens", "draft_len", "spec", "features", "branch", "ahead")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_LEN_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    AHEAD_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    prefix_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    draft_len: int
    spec: SequenceSpec
    features: _containers.RepeatedCompositeFieldContainer[Features]
    branch: int
    ahead: RunAhead
    def __init__(self, request_id: _Optional[int] = ..., prefix_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., draft_len: _Optional[int] = ..., spec: _Optional[_Union[SequenceSpec, _Mapping]] = ..., features: _Optional[_Iterable[_Union[Features, _Mapping]]] = ..., branch: _Optional[int] = ..., ahead: _Optional[_Union[RunAhead, _Mapping]] = ...) -> None: ...

class RunAhead(_message.Message):
    __slots__ = ("num_drafts", "num_branches")
    NUM_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    NUM_BRANCHES_FIELD_NUMBER: _ClassVar[int]
    num_drafts: int
    num_branches: int
    def __init__(self, num_drafts: _Optional[int] = ..., num_branches: _Optional[int] = ...) -> None: ...

class Branch(_message.Message):
    __slots__ = ("accepted_len", "token")
    ACCEPTED_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    accepted_len: int
    token: int
    def __init__(self, accepted_len: _Optional[int] = ..., token: _Optional[int] = ...) -> None: ...

class DraftRequest(_message.Message):
    __slots__ = ("round", "spans", "released", "scores", "freed")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    spans: _containers.RepeatedCompositeFieldContainer[DraftSpan]
    released: _containers.RepeatedScalarFieldContainer[int]
    scores: ScoreKind
    freed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[DraftSpan, _Mapping]]] = ..., released: _Optional[_Iterable[int]] = ..., scores: _Optional[_Union[ScoreKind, str]] = ..., freed: _Optional[_Iterable[int]] = ...) -> None: ...

class Timing(_message.Message):
    __slots__ = ("queue_ns", "forward_ns", "busy_ns", "idle_ns", "start_us")
    QUEUE_NS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    BUSY_NS_FIELD_NUMBER: _ClassVar[int]
    IDLE_NS_FIELD_NUMBER: _ClassVar[int]
    START_US_FIELD_NUMBER: _ClassVar[int]
    queue_ns: int
    forward_ns: int
    busy_ns: int
    idle_ns: int
    start_us: int
    def __init__(self, queue_ns: _Optional[int] = ..., forward_ns: _Optional[int] = ..., busy_ns: _Optional[int] = ..., idle_ns: _Optional[int] = ..., start_us: _Optional[int] = ...) -> None: ...

class Proposal(_message.Message):
    __slots__ = ("request_id", "committed_len", "tokens", "q", "scores", "source", "branch")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BRANCH_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    committed_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    q: TruncatedQ
    scores: _containers.RepeatedScalarFieldContainer[float]
    source: DraftSource
    branch: Branch
    def __init__(self, request_id: _Optional[int] = ..., committed_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., q: _Optional[_Union[TruncatedQ, _Mapping]] = ..., scores: _Optional[_Iterable[float]] = ..., source: _Optional[_Union[DraftSource, str]] = ..., branch: _Optional[_Union[Branch, _Mapping]] = ...) -> None: ...

class DraftReply(_message.Message):
    __slots__ = ("round", "proposals", "timing", "num_free_blocks", "num_not_finite")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PROPOSALS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_NOT_FINITE_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    proposals: _containers.RepeatedCompositeFieldContainer[Proposal]
    timing: Timing
    num_free_blocks: int
    num_not_finite: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., proposals: _Optional[_Iterable[_Union[Proposal, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., num_free_blocks: _Optional[int] = ..., num_not_finite: _Optional[int] = ...) -> None: ...

class VerifySpan(_message.Message):
    __slots__ = ("request_id", "prefix_len", "tokens", "drafts", "q", "sample", "spec", "follows", "wants_features", "num_steps")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PREFIX_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    Q_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    FOLLOWS_FIELD_NUMBER: _ClassVar[int]
    WANTS_FEATURES_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    prefix_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    drafts: _containers.RepeatedScalarFieldContainer[int]
    q: TruncatedQ
    sample: bool
    spec: SequenceSpec
    follows: bool
    wants_features: bool
    num_steps: int
    def __init__(self, request_id: _Optional[int] = ..., prefix_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., drafts: _Optional[_Iterable[int]] = ..., q: _Optional[_Union[TruncatedQ, _Mapping]] = ..., sample: _Optional[bool] = ..., spec: _Optional[_Union[SequenceSpec, _Mapping]] = ..., follows: _Optional[bool] = ..., wants_features: _Optional[bool] = ..., num_steps: _Optional[int] = ...) -> None: ...

class VerifyRequest(_message.Message):
    __slots__ = ("round", "spans", "released", "feature_layers", "freed")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    FEATURE_LAYERS_FIELD_NUMBER: _ClassVar[int]
    FREED_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    spans: _containers.RepeatedCompositeFieldContainer[VerifySpan]
    released: _containers.RepeatedScalarFieldContainer[int]
    feature_layers: _containers.RepeatedScalarFieldContainer[int]
    freed: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., spans: _Optional[_Iterable[_Union[VerifySpan, _Mapping]]] = ..., released: _Optional[_Iterable[int]] = ..., feature_layers: _Optional[_Iterable[int]] = ..., freed: _Optional[_Iterable[int]] = ...) -> None: ...

class Verdict(_message.Message):
    __slots__ = ("request_id", "committed_len", "accepted_len", "tokens", "num_forced", "logprobs", "error", "features")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_LEN_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_FORCED_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    request_id: int
    committed_len: int
    accepted_len: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    num_forced: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_common_pb2.TokenLogprobs]
    error: str
    features: Features
    def __init__(self, request_id: _Optional[int] = ..., committed_len: _Optional[int] = ..., accepted_len: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., num_forced: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_common_pb2.TokenLogprobs, _Mapping]]] = ..., error: _Optional[str] = ..., features: _Optional[_Union[Features, _Mapping]] = ...) -> None: ...

class VerifyReply(_message.Message):
    __slots__ = ("round", "verdicts", "timing", "num_free_blocks")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    VERDICTS_FIELD_NUMBER: _ClassVar[int]
    TIMING_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    round: RoundId
    verdicts: _containers.RepeatedCompositeFieldContainer[Verdict]
    timing: Timing
    num_free_blocks: int
    def __init__(self, round: _Optional[_Union[RoundId, _Mapping]] = ..., verdicts: _Optional[_Iterable[_Union[Verdict, _Mapping]]] = ..., timing: _Optional[_Union[Timing, _Mapping]] = ..., num_free_blocks: _Optional[int] = ...) -> None: ...

class ReleaseRequest(_message.Message):
    __slots__ = ("epoch", "request_ids")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REQUEST_IDS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    request_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., request_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class CurtailRequest(_message.Message):
    __slots__ = ("epoch", "number")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class ReleaseReply(_message.Message):
    __slots__ = ("num_free_blocks",)
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    num_free_blocks: int
    def __init__(self, num_free_blocks: _Optional[int] = ...) -> None: ...

class ConfigureRequest(_message.Message):
    __slots__ = ("epoch", "number", "cores")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    CORES_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    number: int
    cores: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, epoch: _Optional[int] = ..., number: _Optional[int] = ..., cores: _Optional[_Iterable[int]] = ...) -> None: ...

class ConfigureReply(_message.Message):
    __slots__ = ("timing",)
    TIMING_FIELD_NUMBER: _ClassVar[int]
    timing: Timing
    def __init__(self, timing: _Optional[_Union[Timing, _Mapping]] = ...) -> None: ...

class ChannelOffer(_message.Message):
    __slots__ = ("carrier", "host", "device")
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    carrier: _common_pb2.Carrier
    host: str
    device: str
    def __init__(self, carrier: _Optional[_Union[_common_pb2.Carrier, str]] = ..., host: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class ChannelEnd(_message.Message):
    __slots__ = ("carrier", "segment", "num_bytes", "pid", "fd", "memory_handle", "event_handle", "device", "address")
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    MEMORY_HANDLE_FIELD_NUMBER: _ClassVar[int]
    EVENT_HANDLE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    carrier: _common_pb2.Carrier
    segment: int
    num_bytes: int
    pid: int
    fd: int
    memory_handle: bytes
    event_handle: bytes
    device: str
    address: str
    def __init__(self, carrier: _Optional[_Union[_common_pb2.Carrier, str]] = ..., segment: _Optional[int] = ..., num_bytes: _Optional[int] = ..., pid: _Optional[int] = ..., fd: _Optional[int] = ..., memory_handle: _Optional[bytes] = ..., event_handle: _Optional[bytes] = ..., device: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class ChannelRequest(_message.Message):
    __slots__ = ("step", "carrier", "peer", "least_bytes")
    class Step(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STEP_UNSPECIFIED: _ClassVar[ChannelRequest.Step]
        STEP_OPEN: _ClassVar[ChannelRequest.Step]
        STEP_JOIN: _ClassVar[ChannelRequest.Step]
        STEP_USE: _ClassVar[ChannelRequest.Step]
    STEP_UNSPECIFIED: ChannelRequest.Step
    STEP_OPEN: ChannelRequest.Step
    STEP_JOIN: ChannelRequest.Step
    STEP_USE: ChannelRequest.Step
    STEP_FIELD_NUMBER: _ClassVar[int]
    CARRIER_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    LEAST_BYTES_FIELD_NUMBER: _ClassVar[int]
    step: ChannelRequest.Step
    carrier: _common_pb2.Carrier
    peer: ChannelEnd
    least_bytes: int
    def __init__(self, step: _Optional[_Union[ChannelRequest.Step, str]] = ..., carrier: _Optional[_Union[_common_pb2.Carrier, str]] = ..., peer: _Optional[_Union[ChannelEnd, _Mapping]] = ..., least_bytes: _Optional[int] = ...) -> None: ...

class ChannelReply(_message.Message):
    __slots__ = ("end",)
    END_FIELD_NUMBER: _ClassVar[int]
    end: ChannelEnd
    def __init__(self, end: _Optional[_Union[ChannelEnd, _Mapping]] = ...) -> None: ...
