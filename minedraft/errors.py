"""Every error that a user or an operator can meet, as one tree.

    MineDraftError                      gRPC code            HTTP   retry    exit code
    ├── ConfigError                     -                    -      no       78
    │   ├── ConfigErrors                -                    -      no       78   (several at once)
    │   └── ModelError                  -                    -      no       78   (a model folder cannot be used)
    ├── StartFailed                     -                    -      no       70   (78 where a setting is at fault)
    ├── InvalidRequest                  INVALID_ARGUMENT     400    no
    ├── Unauthenticated                 UNAUTHENTICATED      401    no       (no valid token)
    ├── DuplicateRequest                ALREADY_EXISTS       409    no
    ├── Overloaded                      RESOURCE_EXHAUSTED   429    yes, after `retry_after_s`
    ├── DeadlineExceeded                DEADLINE_EXCEEDED    504    no
    ├── RequestAborted                  CANCELLED            499    no       (no standard: what proxies write)
    ├── Unavailable                     UNAVAILABLE          503    yes, after `retry_after_s`
    │   ├── WorkerLost                  UNAVAILABLE          503    yes      70
    │   ├── ReplaysExhausted            UNAVAILABLE          503    yes      -    (the verifier was lost too often)
    │   ├── WorkerInUse                 UNAVAILABLE          503    yes      70   (another scheduler has the worker)
    │   └── Draining                    UNAVAILABLE          503    yes
    ├── NumericError                    INTERNAL             500    no       (NaN or Inf logits for one request)
    └── InternalError                   INTERNAL             500    no       70
        ├── MemoryExhausted             INTERNAL             500    no       70   (a device has no room for a command)
        └── ProtocolError               INTERNAL             500    no       70   (a worker's message breaks a rule)
            ├── ChannelFailed           INTERNAL             500    no       70   (a carrier of tensors failed)
            └── StaleRound              INTERNAL             500    no       70   (it belongs to another round or epoch)

`reason` is a closed vocabulary, used on the wire, in log lines and by the counter
`minedraft_errors_total{reason}`.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

EXIT_OK = 0
EXIT_INTERNAL = 70
EXIT_CONFIG = 78

_MAX_VALUE_CHARS = 120
_MAX_LIMIT_CHARS = 1000


class MineDraftError(Exception):
    """Base of every error that this package raises on purpose. It can be copied and pickled.

    Attributes:
        retry_after_s: seconds after which the request can be sent again; None if that would be of no use.
        request_id: in a worker's refusal of a command, the request at fault; None if no single one is.
    """

    reason = "INTERNAL"
    grpc_code = "INTERNAL"
    http_status = 500
    retryable = False
    retry_after_s: float | None = None
    exit_code = EXIT_INTERNAL
    request_id: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is restored by calling its class with `args`. Here `args` is the message,
        # while the subclasses take the parts that the message is made of.
        return _restore, (type(self), self.args), self.__dict__


class Verbatim(str):
    """Text that is already a repr and must not be quoted again."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _FieldError(MineDraftError):
    """An error about one named value: the field, the value given and the limit it breaks.

    Attributes:
        value: the given one as it is shown; an error made of another one's value shows the same.
    """

    def __init__(self, field: str, value: object, limit: str) -> None:
        self.field = field
        self.value = Verbatim(_shorten(value))
        self.limit = _one_line(limit)
        super().__init__(f"{self._say_given(value)}: {self.limit}")

    def _say_given(self, value: object) -> str:
        """Return what was given; a value that is None was not: no text stands for None."""
        return self.field if value is None else f"{self.field} is {self.value}"


class ConfigError(_FieldError):
    """A setting, flag or file cannot be used; the process exits with 78 and is not restarted."""

    reason = "CONFIG"
    exit_code = EXIT_CONFIG


class ConfigErrors(ConfigError):
    """Several settings are wrong; `errors` has them all, the message one per line."""

    def __init__(self, errors: list[ConfigError]) -> None:
        first = errors[0]
        super().__init__(first.field, first.value, first.limit)
        self.errors = errors
        self.args = ("\n".join(str(error) for error in errors),)


class ModelError(ConfigError):
    """A model folder cannot be used (missing, truncated, unsafe format, other tokenizer ...)."""

    reason = "MODEL"


class StartFailed(MineDraftError):
    """A service that this process started for itself did not get ready; the message ends with its last words."""

    reason = "START_FAILED"

    def __init__(self, message: str, exit_code: int = EXIT_INTERNAL) -> None:
        self.exit_code = exit_code
        super().__init__(message)


class _RetryableError(MineDraftError):
    """Nothing is wrong with the request: try again after `retry_after_s` seconds."""

    retryable = True

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class InvalidRequest(_FieldError):
    """A client's request breaks a limit; other requests are unaffected."""

    reason = "INVALID_REQUEST"
    grpc_code = "INVALID_ARGUMENT"
    http_status = 400


class Unauthenticated(MineDraftError):
    """The call shows no valid token."""

    reason = "UNAUTHENTICATED"
    grpc_code = "UNAUTHENTICATED"
    http_status = 401


class DuplicateRequest(MineDraftError):
    """The request id is in use by a live request; the first one is unaffected."""

    reason = "DUPLICATE_REQUEST"
    grpc_code = "ALREADY_EXISTS"
    http_status = 409


class Overloaded(_RetryableError):
    """A bounded queue is full, or a client is too slow to read its answer."""

    reason = "OVERLOADED"
    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 429


class DeadlineExceeded(MineDraftError):
    """The client's deadline passed while the request was queued or running."""

    reason = "DEADLINE_EXCEEDED"
    grpc_code = "DEADLINE_EXCEEDED"
    http_status = 504


class RequestAborted(MineDraftError):
    """The request was cancelled by its client or by `Abort`."""

    reason = "ABORTED"
    grpc_code = "CANCELLED"
    http_status = 499


class Unavailable(_RetryableError):
    """The service cannot answer now."""

    reason = "UNAVAILABLE"
    grpc_code = "UNAVAILABLE"
    http_status = 503


class LossCause(str, Enum):
    """How a worker was lost."""

    DEAD = "dead"  # its process or its connection has ended, or it does not answer at all
    FAILED = "failed"  # it said that its device failed; its process ends
    SILENT = "hung_silent"  # it owed an answer and gave no sign of life
    NO_PROGRESS = "hung_no_progress"  # it gave signs of life, but its device stood still
    PROTOCOL = "protocol"  # what it sent breaks the contract


class WorkerLost(Unavailable):
    """A worker process died, hung, dropped its connection or cannot be trusted."""

    reason = "WORKER_LOST"

    def __init__(self, message: str, retry_after_s: float = 1.0, *, cause: LossCause = LossCause.DEAD) -> None:
        self.cause = cause
        super().__init__(message, retry_after_s)


class ReplaysExhausted(Unavailable):
    """The verifier was lost so often during this request that it is not recomputed again."""

    reason = "REPLAYS_EXHAUSTED"


class WorkerInUse(Unavailable):
    """Another scheduler is connected to the worker; a worker serves one at a time."""

    reason = "WORKER_IN_USE"


class Draining(Unavailable):
    """The service is shutting down and takes no new requests."""

    reason = "DRAINING"


class NumericError(MineDraftError):
    """The target produced NaN or Inf for this request; other requests are unaffected."""

    reason = "NUMERIC"


class InternalError(MineDraftError):
    """A broken invariant: our bug."""


class ProtocolError(InternalError):
    """A message between scheduler and worker breaks the contract (shape, range, epoch, round)."""

    reason = "PROTOCOL"


class MemoryExhausted(InternalError):
    """A worker's device had no memory for a command, which can come again with less in it."""

    reason = "MEMORY_EXHAUSTED"


class ChannelFailed(ProtocolError):
    """A carrier between the workers cannot be had, or has failed; tensors travel in messages then."""

    reason = "CHANNEL_FAILED"


class StaleRound(ProtocolError):
    """A command or a reply belongs to another round or epoch; it is dropped, nothing is executed."""

    reason = "STALE_ROUND"


def _restore(kind: type[MineDraftError], args: tuple[Any, ...]) -> MineDraftError:
    return kind.__new__(kind, *args)  # sets `args`; the attributes come after


def _shorten(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # a foreign value's repr may raise anything (an int of 5000 digits: ValueError)
        text = f"<{type(value).__name__}>"
    return _cut(text, _MAX_VALUE_CHARS)


def _one_line(limit: str) -> str:
    """Return the limit bounded and printable: it may quote other programs (a template, a parser)."""
    return "".join(char if char.isprintable() else " " for char in _cut(limit, _MAX_LIMIT_CHARS))


def _cut(text: str, max_chars: int) -> str:
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
