"""One table: error class ⇄ gRPC status. UNKNOWN is never sent.

The status is for programs of other languages; rustray's own client raises the very class again,
from the `ErrorDetail` in the trailing metadata. What is a bug of ours reaches a peer as INTERNAL
with an id; its text stays in this node's log, under that id.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

from google.protobuf.message import DecodeError

from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    BlockedLoop,
    CommunicationError,
    ConfigError,
    DuplicateTask,
    DurabilityNotAvailable,
    ExecutorDeath,
    FunctionNotFound,
    GetTimeout,
    HeadUnavailable,
    InvariantError,
    LeaseLost,
    NestedTooDeep,
    NotInTask,
    ObjectLost,
    PayloadError,
    ResourceExhausted,
    ResourceNotAvailable,
    RustRayError,
    TaskCancelled,
    TaskError,
    TaskExecutionFailed,
    TaskExpired,
    TaskNotFound,
    TaskOutOfMemory,
    TaskPoisoned,
    TaskTimeout,
    UsageProblem,
    VersionMismatch,
    WorkerLost,
    WorkerNotFound,
)
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.rpc.convert import clip
from rustray.rpc.grpcio import StatusCode, aio

logger = logging.getLogger("rustray.rpc")

DETAIL_KEY: Final = "rustray-error-bin"
MAX_MESSAGE_BYTES: Final = 2_000
MAX_STATUS_TEXT_BYTES: Final = 500
"""gRPC writes each byte beyond ASCII as three, and all trailers must stay below 8 KiB."""
MAX_FIELD_BYTES: Final = 500

STATUS: Final[dict[type[RustRayError], StatusCode]] = {
    RustRayError: StatusCode.OUT_OF_RANGE,
    ConfigError: StatusCode.INVALID_ARGUMENT,
    AuthenticationError: StatusCode.UNAUTHENTICATED,
    AuthorizationError: StatusCode.PERMISSION_DENIED,
    CommunicationError: StatusCode.INVALID_ARGUMENT,
    HeadUnavailable: StatusCode.UNAVAILABLE,
    VersionMismatch: StatusCode.FAILED_PRECONDITION,
    WorkerNotFound: StatusCode.NOT_FOUND,
    TaskNotFound: StatusCode.NOT_FOUND,
    TaskExpired: StatusCode.NOT_FOUND,
    UsageProblem: StatusCode.INVALID_ARGUMENT,
    DuplicateTask: StatusCode.ALREADY_EXISTS,
    DurabilityNotAvailable: StatusCode.FAILED_PRECONDITION,
    NotInTask: StatusCode.FAILED_PRECONDITION,
    NestedTooDeep: StatusCode.FAILED_PRECONDITION,
    BlockedLoop: StatusCode.FAILED_PRECONDITION,
    LeaseLost: StatusCode.FAILED_PRECONDITION,
    TaskError: StatusCode.ABORTED,
    TaskExecutionFailed: StatusCode.ABORTED,
    TaskCancelled: StatusCode.ABORTED,
    TaskTimeout: StatusCode.DEADLINE_EXCEEDED,
    GetTimeout: StatusCode.DEADLINE_EXCEEDED,
    ExecutorDeath: StatusCode.ABORTED,
    WorkerLost: StatusCode.ABORTED,
    TaskPoisoned: StatusCode.ABORTED,
    TaskOutOfMemory: StatusCode.ABORTED,
    ResourceNotAvailable: StatusCode.FAILED_PRECONDITION,
    FunctionNotFound: StatusCode.NOT_FOUND,
    ResourceExhausted: StatusCode.RESOURCE_EXHAUSTED,
    PayloadError: StatusCode.INVALID_ARGUMENT,
    ObjectLost: StatusCode.DATA_LOSS,
    InvariantError: StatusCode.INTERNAL,
}
"""Every class of `rustray.common.errors`. The base class itself is raised for cursors only."""

_CLASSES: Final = {cls.code: cls for cls in STATUS}
_BARE: Final[dict[StatusCode, type[RustRayError]]] = {
    StatusCode.INVALID_ARGUMENT: ConfigError,
    StatusCode.UNAUTHENTICATED: AuthenticationError,
    StatusCode.PERMISSION_DENIED: AuthorizationError,
    StatusCode.UNAVAILABLE: HeadUnavailable,
    StatusCode.CANCELLED: HeadUnavailable,  # by the peer, which stops: our own is no RPC error
    StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    StatusCode.DEADLINE_EXCEEDED: HeadUnavailable,
    StatusCode.DATA_LOSS: ObjectLost,
    StatusCode.INTERNAL: CommunicationError,
}
"""For a status without detail: it comes from gRPC itself, or from something in between."""


def status_of(error: RustRayError) -> StatusCode:
    """Return the status of an error: that of its class, or of the nearest class above it."""
    return STATUS[_listed_class(error)]


def _listed_class(error: RustRayError) -> type[RustRayError]:
    return next(cls for cls in type(error).__mro__ if cls in STATUS)


def for_peer(error: BaseException, what: str) -> RustRayError:
    """Return what a peer may learn of an error: all of it, or, for our bugs, an id.

    Args:
        error: What was raised.
        what: Where, for the log.
    """
    if isinstance(error, RustRayError) and not isinstance(error, InvariantError):
        return error
    error_id = secrets.token_hex(4)
    logger.error("internal error %s in %s", error_id, what, exc_info=error)
    return InvariantError(
        f"internal error {error_id}; the log of the node that answered has the details under "
        "this id. This is a bug in rustray, please report it"
    )


# ── Details ─────────────────────────────────────────────────────────────────────────────────────


def to_detail(error: RustRayError) -> common.ErrorDetail:
    """Describe an error for the wire."""
    cls = _listed_class(error)
    detail = common.ErrorDetail(
        code=cls.code, message=clip(str(error), MAX_MESSAGE_BYTES), retryable=error.retryable
    )
    if isinstance(error, TaskError):
        detail.fields["task_id"] = clip(error.task_id, MAX_FIELD_BYTES)
        detail.fields["worker_id"] = clip(error.worker_id, MAX_FIELD_BYTES)
        detail.fields["attempt"] = str(error.attempt)
    if isinstance(error, TaskTimeout):
        detail.fields["phase"] = clip(error.phase, MAX_FIELD_BYTES)
    if isinstance(error, TaskExecutionFailed):
        detail.fields["error_type"] = clip(error.error_type, MAX_FIELD_BYTES)
    if isinstance(error, ResourceExhausted):
        detail.fields["retry_after_s"] = f"{error.retry_after_s:g}"
        detail.fields["reason"] = clip(error.reason, MAX_FIELD_BYTES)
    if isinstance(error, TaskOutOfMemory):
        detail.fields["peak"] = f"{error.peak:g}"
        detail.fields["limit"] = f"{error.limit:g}"
    return detail


def from_detail(detail: common.ErrorDetail) -> RustRayError:
    """Rebuild an error; one of a class that this release does not know is a `RustRayError`."""
    cls = _CLASSES.get(detail.code, RustRayError)
    fields = detail.fields
    if issubclass(cls, ResourceExhausted):
        return cls(
            detail.message,
            retry_after_s=_number(fields.get("retry_after_s", "")),
            reason=fields.get("reason", ""),
        )
    if not issubclass(cls, TaskError):
        return cls(detail.message)
    attempt = fields.get("attempt", "")
    error = cls(
        detail.message,
        task_id=fields.get("task_id", ""),
        worker_id=fields.get("worker_id", ""),
        attempt=int(attempt) if attempt.isascii() and attempt.isdecimal() else 0,
    )
    if isinstance(error, TaskTimeout):
        error.phase = fields.get("phase", "run")
    if isinstance(error, TaskExecutionFailed):
        error.error_type = fields.get("error_type", "")
    if isinstance(error, TaskOutOfMemory):
        error.peak = _number(fields.get("peak", ""))
        error.limit = _number(fields.get("limit", ""))
    return error


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


# ── Statuses ────────────────────────────────────────────────────────────────────────────────────


def trailer(error: RustRayError) -> tuple[tuple[str, bytes], ...]:
    """Return the trailing metadata that carries an error."""
    return ((DETAIL_KEY, to_detail(error).SerializeToString()),)


async def abort(context: aio.ServicerContext[Any, Any], error: RustRayError) -> None:
    """End a call on the server with an error's status, text and detail.

    Raises:
        grpc.aio.AbortError: always; it must be let through.
    """
    await context.abort(status_of(error), clip(str(error), MAX_STATUS_TEXT_BYTES), trailer(error))


def from_rpc_error(
    error: aio.AioRpcError, explain_unavailable: Callable[[str], str] | None = None
) -> RustRayError:
    """Turn what gRPC raises at the caller into the error that the peer raised.

    Args:
        error: From a call.
        explain_unavailable: Makes a text for people out of gRPC's own, where no peer answered.
    """
    detail = _detail_of(error)
    if detail is not None:
        return from_detail(detail)
    status, details = error.code(), error.details() or ""
    cls = _BARE.get(status, CommunicationError)
    if status is StatusCode.UNAVAILABLE and explain_unavailable is not None:
        return cls(explain_unavailable(details))
    if status is StatusCode.DEADLINE_EXCEEDED:
        return cls("no answer came in time; the node is overloaded, or the connection is broken")
    if status is StatusCode.CANCELLED:
        return cls("the node stopped before it had answered")
    return cls(f"the call failed with {status.name}: {details}")


def _detail_of(error: aio.AioRpcError) -> common.ErrorDetail | None:
    trailers = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in trailers:
        if key == DETAIL_KEY and isinstance(value, bytes):
            try:
                detail = common.ErrorDetail.FromString(value)
            except DecodeError:
                return None
            return detail if detail.code else None
    return None
