"""Requests for locks, semaphores, events and queues as protobuf, and back."""

from __future__ import annotations

from typing import Final

from rustray.coordination.messages import Action, Answer, Kind, Request, Verdict
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import TaskHolder
from rustray.rpc.convert import seconds_from_wire, text, total
from rustray.task.columns import PayloadColumn

_NO_KIND: Final = Kind.LOCK
"""Stands where a request is about no name."""


def put_request(message: wire.CoordinateRequest, request: Request) -> wire.CoordinateRequest:
    """Fill in a request, and return it."""
    message.holder = request.holder
    message.number = request.number
    message.lane = request.lane
    message.action = int(request.action)  # type: ignore[assignment]
    message.kind = int(request.kind)  # type: ignore[assignment]
    message.space = text(request.space)
    message.name = text(request.name)
    message.limit = request.limit
    message.fence = request.fence
    message.count = request.count
    if request.wait_s is not None:
        message.wait_s = request.wait_s
    if request.items:
        _put_items(message.items, request.items)
    message.fences.extend(request.fences)
    message.taken.extend(request.taken)
    message.pending.extend(request.pending)
    message.term = request.term
    return message


def get_request(message: wire.CoordinateRequest) -> Request:
    """Decode a request.

    Raises:
        ValueError: it is none.
    """
    wait_s: float | None = None
    if message.HasField("wait_s"):
        wait_s = seconds_from_wire("wait_s", message.wait_s)
    return Request(
        message.holder,
        message.lane,
        message.number,
        Action(message.action),
        Kind(message.kind) if message.kind else _NO_KIND,
        message.space,
        message.name,
        message.limit,
        message.fence,
        message.count,
        wait_s,
        _get_items(message.items),
        tuple(message.fences),
        tuple(message.taken),
        tuple(message.pending),
        message.term,
    )


def put_task(task: TaskHolder, request: Request) -> wire.CoordinateForTaskRequest:
    """Make the request of a task."""
    message = wire.CoordinateForTaskRequest(
        worker_id=text(task.worker_id), lease=task.lease, offset=task.offset
    )
    put_request(message.request, request)
    return message


def get_task(message: wire.CoordinateForTaskRequest) -> tuple[TaskHolder, Request]:
    """Decode the request of a task.

    Raises:
        ValueError: it is none.
    """
    task = TaskHolder(message.worker_id, message.lease, message.offset)
    return task, get_request(message.request)


def put_answer(answer: Answer) -> wire.CoordinateResponse:
    """Encode an answer."""
    message = wire.CoordinateResponse(
        verdict=int(answer.verdict),  # type: ignore[arg-type]
        fence=answer.fence,
        count=answer.count,
        term=answer.term,
        lease_s=answer.lease_s,
    )
    if answer.items:
        _put_items(message.items, answer.items)
    return message


@total("answer to a request for a lock, semaphore, event or queue")
def get_answer(message: wire.CoordinateResponse) -> Answer:
    """Decode an answer.

    Raises:
        CommunicationError: it is none.
    """
    return Answer(
        Verdict(message.verdict),
        message.fence,
        message.count,
        _get_items(message.items),
        message.term,
        seconds_from_wire("lease_s", message.lease_s),
    )


def _put_items(target: common.Payloads, items: tuple[bytes, ...]) -> None:
    column = PayloadColumn.of(items)
    target.blob = column.blob
    target.ends = column.ends_bytes()


def _get_items(message: common.Payloads) -> tuple[bytes, ...]:
    column = PayloadColumn.from_wire(message.blob, message.ends, message.base)
    ends = column.ends.tolist()
    if ends != sorted(ends):
        raise ValueError("the ends of items are out of order")
    return tuple(column)
