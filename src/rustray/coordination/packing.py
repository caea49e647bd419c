"""Requests, answers and errors as bytes, for the way between an executor and its agent."""

from __future__ import annotations

from typing import Any

import msgpack

from rustray.common.errors import (
    CommunicationError,
    ResourceExhausted,
    RustRayError,
    all_error_classes,
    reason_of,
)
from rustray.coordination.messages import Action, Answer, Kind, Request, Verdict


def pack_request(request: Request) -> bytes:
    """Encode what a task asks for; holder and numbers are the agent's business."""
    packed: bytes = msgpack.packb(
        (
            int(request.action), int(request.kind), request.space, request.name, request.limit,
            request.fence, request.count, request.wait_s, request.items,
        ),
        unicode_errors="replace",
    )  # fmt: skip
    return packed


def unpack_request(data: bytes) -> Request:
    """Decode it.

    Raises:
        CommunicationError: the bytes are none.
    """
    try:
        action, kind, space, name, limit, fence, count, wait_s, items = _unpack(data)
        request = Request(
            b"", 0, 0, Action(action), Kind(kind), str(space), str(name), int(limit), int(fence),
            int(count), None if wait_s is None else float(wait_s), tuple(map(bytes, items)),
        )  # fmt: skip
    except (TypeError, ValueError) as error:
        raise CommunicationError(f"malformed request of a task: {error}") from None
    if min(request.limit, request.fence, request.count) < 0:
        raise CommunicationError("malformed request of a task: a number below 0")
    return request


def pack_answer(answer: Answer) -> bytes:
    """Encode an answer."""
    packed: bytes = msgpack.packb((int(answer.verdict), answer.fence, answer.count, answer.items))
    return packed


def unpack_answer(data: bytes) -> Answer:
    """Decode an answer."""
    verdict, fence, count, items = _unpack(data)
    return Answer(Verdict(verdict), fence, count, tuple(items))


def pack_error(error: RustRayError) -> bytes:
    """Encode what is raised instead of an answer."""
    packed: bytes = msgpack.packb((error.code, str(error), reason_of(error)))
    return packed


def unpack_error(data: bytes) -> RustRayError:
    """Rebuild an error."""
    code, text, reason = _unpack(data)
    cls = all_error_classes().get(code, RustRayError)
    return cls(text, reason=reason) if issubclass(cls, ResourceExhausted) else cls(text)


def _unpack(data: bytes) -> list[Any]:
    try:
        found: list[Any] = msgpack.unpackb(data)
    except Exception as error:  # msgpack has no base class for what it raises
        raise ValueError(f"not msgpack: {error}") from None
    return found
