"""Frames as protobuf, and back.

Decoding is total: whatever a peer sends gives a frame or a `CommunicationError`. Frames that the
head receives are checked to the last number, since it hands their columns on to others; frames
that come from the head are only checked as far as their reader depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rustray.common.durability import Durability
from rustray.common.ids import PREFIX_BYTES
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc import versions
from rustray.rpc.class_codec import class_number, get_classes, get_new_classes, put_classes
from rustray.rpc.columns import get_ordered_payloads, get_payloads, put_payloads
from rustray.rpc.convert import (
    count_from_wire,
    durability_from_wire,
    durability_to_wire,
    moment_from_wire,
    parse,
    seconds_from_wire,
    state_from_wire,
    state_to_wire,
    text,
    total,
)
from rustray.rpc.output_codec import get_news, get_output, get_questions, put_questions, put_words
from rustray.rpc.ranges import (
    MAX_ENTRIES,
    MAX_LISTED,
    OFFSETS,
    SEQUENCES,
    get_accepted,
    get_lease_ranges,
    get_task_ranges,
    put_accepted,
    put_lease_ranges,
    put_task_ranges,
    split,
)
from rustray.rpc.stream_codec import (
    get_adoptions,
    get_credits,
    get_items,
    get_lease_items,
    get_reads,
    get_surrendered,
    put_credits,
    put_items,
    put_lease_items,
    put_reads,
    put_surrendered,
    put_value_orders,
)
from rustray.task.frames import (
    AssignFrame,
    CancelRequest,
    ClientFrame,
    HeadFrame,
    HeldRange,
    LeaseCancel,
    LeaseGrant,
    LeaseOutcome,
    Outcome,
    Rejection,
    Submission,
    WorkerFrame,
)
from rustray.task.inputs import check_inputs
from rustray.task.state import TaskState

HELLO_KEY: Final = "rustray-hello-bin"
"""Metadata of a call that opens a stream."""
OPEN_KEY: Final = "rustray-stream"
"""Initial metadata that answers it, with the version of the protocol that both speak."""
BYE: Final = wire.ClientFrame(bye=True).SerializeToString()
"""Last message of a stream that ends in order; the same bytes from clients and workers."""
_REPORTABLE: Final = frozenset(
    {
        TaskState.LEASED,
        TaskState.SUCCEEDED,
        TaskState.FAILED,
        TaskState.CANCELLED,
        TaskState.TIMED_OUT,
    }
)


def encode_token(token: str) -> bytes:
    """Encode a renewed token that travels alone; the same bytes from clients and workers."""
    return wire.ClientFrame(token=token).SerializeToString()


# ── Client to head ──────────────────────────────────────────────────────────────────────────────


def encode_client_frame(frame: ClientFrame) -> bytes:
    """Encode a frame of the client's stream."""
    message = wire.ClientFrame(number=frame.number, ack=frame.ack)
    if frame.token:
        message.token = frame.token
    if frame.classes:
        put_classes(message.classes, frame.classes)
    for submission in frame.submissions:
        target = message.submissions.add()
        target.class_number = submission.class_number
        target.first = submission.first
        put_payloads(target.payloads, submission.payloads)
        if submission.deadline_unix_s:
            target.deadline_unix_s = submission.deadline_unix_s
        if submission.durability:
            target.durability = durability_to_wire(submission.durability)
        if submission.inputs is not None:
            put_payloads(target.inputs, submission.inputs)
    for cancel in frame.cancels:
        for first, count in split(cancel.first, cancel.count):
            message.cancels.add(
                prefix=cancel.prefix, first=first, count=count, force=cancel.force,
                spares_children=cancel.spares_children,
            )  # fmt: skip
    if frame.follow:
        put_task_ranges(message.follow, frame.follow)
    put_reads(message.reads, frame.reads)
    put_task_ranges(message.released, frame.released)
    return message.SerializeToString()


def encode_client_hello(prefix: bytes) -> bytes:
    """Encode who opens a client's stream."""
    hello = wire.ClientHello(
        prefix=prefix, protocol=versions.PROTOCOL, oldest_protocol=versions.OLDEST_PROTOCOL
    )
    return hello.SerializeToString()


@total("hello of a client")
def decode_client_hello(data: bytes) -> tuple[bytes, int]:
    """Return (session prefix, version of the protocol to speak).

    Raises:
        CommunicationError: it is not a hello.
        VersionMismatch: there is no version that both speak.
    """
    message = parse(wire.ClientHello, data, "hello of a client")
    chosen = versions.agree(message.protocol, message.oldest_protocol, "client")
    return _prefix(message.prefix), chosen


@total("frame of a client")
def decode_client_frame(data: bytes) -> ClientFrame:
    """Decode and check a client's frame.

    Raises:
        CommunicationError: it is malformed.
    """
    message = parse(wire.ClientFrame, data, "frame of a client")
    many = len(message.classes) + len(message.submissions) + len(message.reads)
    many += len(message.released)
    if many + len(message.cancels) + len(message.follow) > MAX_ENTRIES:  # before any is read
        raise ValueError(f"more than {MAX_ENTRIES} entries in a frame of a client")
    return ClientFrame(
        number=message.number if message.token else _number(message.number),
        ack=message.ack,
        classes=get_new_classes(message.classes),
        submissions=[_get_submission(m) for m in message.submissions[:]],
        cancels=[_get_cancel(m) for m in message.cancels[:]] if message.cancels else [],
        follow=get_task_ranges(message.follow),
        reads=get_reads(message.reads[:]) if message.reads else [],
        released=get_task_ranges(message.released),
        token=message.token,
    )


def _get_submission(message: wire.Submission) -> Submission:
    number, due = class_number(message.class_number), moment_from_wire(message.deadline_unix_s)
    first, inputs = message.first, None
    payloads = get_ordered_payloads(message.payloads, first, SEQUENCES)
    level = durability_from_wire(message.durability) if message.durability else Durability.DEFAULT
    if message.HasField("inputs"):
        inputs = check_inputs(get_payloads(message.inputs, first, SEQUENCES), len(payloads))
    return Submission(number, first, payloads, due, level, inputs)


def _get_cancel(message: wire.CancelRange) -> CancelRequest:
    return CancelRequest(
        _prefix(message.prefix) if message.prefix else b"",
        message.first,
        count_from_wire(message.count, message.first, SEQUENCES),
        message.force,
        message.spares_children,
    )


def _prefix(prefix: bytes) -> bytes:
    if len(prefix) != PREFIX_BYTES:
        raise ValueError(f"a task id's prefix has {PREFIX_BYTES} bytes, not {len(prefix)}")
    return prefix


def _number(number: int) -> int:
    if not number:
        raise ValueError("frames are numbered from 1")
    return number


# ── Head to client ──────────────────────────────────────────────────────────────────────────────


def encode_head_frame(frame: HeadFrame) -> bytes:
    """Encode a frame to a client."""
    message = wire.HeadFrame(number=frame.number, ack=frame.ack)
    if frame.accepted:
        put_accepted(message.accepted, frame.accepted)
    for refused in frame.rejected:
        facts = wire.Rejection(code=text(refused.code), message=text(refused.message))
        facts.retry_after_s, facts.reason = refused.retry_after_s, text(refused.reason)
        for first, count in split(refused.first, refused.count):
            message.rejected.add(first=first, count=count).MergeFrom(facts)
    for outcome in frame.outcomes:
        target = message.outcomes.add()
        target.first = outcome.first
        target.state = state_to_wire(outcome.state)
        put_payloads(target.payloads, outcome.payloads)
        target.worker_id = outcome.worker_id
        target.attempts = outcome.attempts
        if outcome.items:
            target.items = outcome.items
    if frame.unknown:
        put_task_ranges(message.unknown, frame.unknown)
    if frame.items:
        put_items(message.items, frame.items)
    return message.SerializeToString()


@total("frame of the head")
def decode_head_frame(data: bytes) -> HeadFrame:
    """Decode a frame of the head to a client.

    Raises:
        CommunicationError: it is malformed.
    """
    message = parse(wire.HeadFrame, data, "frame of the head")
    return HeadFrame(
        number=_number(message.number),
        ack=message.ack,
        accepted=get_accepted(message.accepted),
        rejected=[_get_rejection(m) for m in message.rejected[:]] if message.rejected else [],
        outcomes=[_get_outcome(m) for m in message.outcomes[:]],
        unknown=get_task_ranges(message.unknown),
        items=get_items(message.items[:]) if message.items else [],
    )


def _get_rejection(message: wire.Rejection) -> Rejection:
    count = count_from_wire(message.count, message.first, SEQUENCES)
    hint_s = seconds_from_wire("retry_after_s", message.retry_after_s)
    return Rejection(message.first, count, message.code, message.message, hint_s, message.reason)


def _get_outcome(message: wire.Outcome) -> Outcome:
    payloads = get_payloads(message.payloads, message.first, SEQUENCES)
    state = state_from_wire(message.state)
    if not state.is_terminal:
        raise ValueError(f"an outcome cannot be {state.name}")
    return Outcome(
        message.first, state, payloads, message.worker_id, message.attempts, message.items
    )


# ── Head to worker ──────────────────────────────────────────────────────────────────────────────


def encode_assign_frame(frame: AssignFrame) -> bytes:
    """Encode a frame to a worker."""
    message = wire.AssignFrame(number=frame.number, ack=frame.ack, drain=frame.drain)
    if frame.classes:
        put_classes(message.classes, frame.classes)
    for grant in frame.leases:
        target = message.leases.add()
        target.lease = grant.lease
        target.class_number = grant.class_number
        target.attempt = grant.attempt
        target.prefix = grant.prefix
        target.first = grant.first
        put_payloads(target.payloads, grant.payloads)
        if grant.time_left_s:
            target.time_left_s = grant.time_left_s
        if grant.streams:
            put_credits(target.streams, grant.streams)
        if grant.follows[0]:
            target.follows_lease, target.follows_offset = grant.follows
    for cancel in frame.cancels:
        message.cancels.add(
            lease=cancel.lease, offset=cancel.offset, count=cancel.count, force=cancel.force
        )
    if frame.recall:
        put_lease_ranges(message.recall, frame.recall)
    if frame.output:
        put_questions(message.output, frame.output)
    if frame.credits:
        put_credits(message.credits, frame.credits)
    put_value_orders(message, frame)
    return message.SerializeToString()


@total("frame of the head")
def decode_assign_frame(data: bytes) -> AssignFrame:
    """Decode a frame of the head to a worker.

    Raises:
        CommunicationError: it is malformed.
    """
    message = parse(wire.AssignFrame, data, "frame of the head")
    return AssignFrame(
        number=_number(message.number),
        ack=message.ack,
        classes=get_classes(message.classes),
        leases=[_get_grant(m) for m in message.leases[:]],
        cancels=[_get_lease_cancel(m) for m in message.cancels[:]] if message.cancels else [],
        recall=get_lease_ranges(message.recall),
        drain=message.drain,
        output=get_questions(message.output) if message.output else [],
        credits=get_credits(message.credits[:]) if message.credits else [],
        free=list(message.free),
        surrender=list(message.surrender),
        adopt=get_adoptions(message.adopt[:]) if message.adopt else [],
    )


def _get_lease_cancel(message: wire.LeaseCancel) -> LeaseCancel:
    count = count_from_wire(message.count, message.offset, OFFSETS)
    return LeaseCancel(message.lease, message.offset, count, message.force)


def _get_grant(message: wire.LeaseGrant) -> LeaseGrant:
    first = message.first
    payloads = get_payloads(message.payloads, first, SEQUENCES)
    return LeaseGrant(
        message.lease,
        class_number(message.class_number),
        message.attempt,
        _prefix(message.prefix),
        first,
        payloads,
        seconds_from_wire("time_left_s", message.time_left_s),
        tuple(get_credits(message.streams[:])) if message.streams else (),
        (message.follows_lease, message.follows_offset),
    )


# ── Worker to head ──────────────────────────────────────────────────────────────────────────────


def encode_worker_frame(frame: WorkerFrame) -> bytes:
    """Encode a frame of the worker's stream."""
    message = wire.WorkerFrame(
        number=frame.number, ack=frame.ack, draining=frame.draining, drained=frame.drained
    )
    if frame.token:
        message.token = frame.token
    if frame.held is not None:
        message.has_held = True
        for item in frame.held:
            message.held.add(
                lease=item.lease, offset=item.offset, count=item.count,
                prefix=item.prefix, first=item.first, attempt=item.attempt,
                alternative=item.alternative, follows=item.follows,
            )  # fmt: skip
    for outcome in frame.outcomes:
        target = message.outcomes.add()
        target.lease = outcome.lease
        target.offset = outcome.offset
        target.state = state_to_wire(outcome.state)
        put_payloads(target.payloads, outcome.payloads)
        target.run_us = outcome.run_us
    if frame.returned:
        put_lease_ranges(message.returned, frame.returned)
    if frame.started:
        put_lease_ranges(message.started, frame.started)
    if frame.blocked:
        put_lease_ranges(message.blocked, frame.blocked)
    if frame.resumed:
        put_lease_ranges(message.resumed, frame.resumed)
    if frame.news or frame.printing or frame.output:
        put_words(message, frame)
    put_lease_items(message.items, frame.items)
    put_surrendered(message.surrendered, frame.surrendered)
    return message.SerializeToString()


def encode_worker_hello(worker_id: str, session: int) -> bytes:
    """Encode who opens a worker's stream."""
    hello = wire.WorkerHello(
        worker_id=text(worker_id),
        session=session,
        protocol=versions.PROTOCOL,
        oldest_protocol=versions.OLDEST_PROTOCOL,
    )
    return hello.SerializeToString()


@total("hello of a worker")
def decode_worker_hello(data: bytes) -> tuple[str, int, int]:
    """Return (worker id, session, version of the protocol to speak).

    Raises:
        CommunicationError: it is not a hello.
        VersionMismatch: there is no version that both speak.
    """
    message = parse(wire.WorkerHello, data, "hello of a worker")
    chosen = versions.agree(message.protocol, message.oldest_protocol, "worker")
    return message.worker_id, message.session, chosen


@total("frame of a worker")
def decode_worker_frame(data: bytes) -> WorkerFrame:
    """Decode and check a worker's frame.

    Raises:
        CommunicationError: it is malformed.
    """
    message = parse(wire.WorkerFrame, data, "frame of a worker")
    many = len(message.held) + len(message.outcomes) + len(message.returned) + len(message.items)
    many += len(message.blocked) + len(message.resumed)
    if many + len(message.started) + len(message.news) > MAX_LISTED:  # before each has a wrapper
        raise ValueError(f"more than {MAX_LISTED} entries in a frame of a worker")
    printing, output = get_output(message)
    may_lack_number = message.token or printing or output or message.surrendered
    return WorkerFrame(
        number=message.number if may_lack_number else _number(message.number),
        ack=message.ack,
        held=_get_held(message.held) if message.has_held else None,
        outcomes=[_get_lease_outcome(m) for m in message.outcomes[:]],
        returned=get_lease_ranges(message.returned),
        started=get_lease_ranges(message.started),
        blocked=get_lease_ranges(message.blocked),
        resumed=get_lease_ranges(message.resumed),
        news=[get_news(m) for m in message.news[:]] if message.news else [],
        items=get_lease_items(message.items[:]) if message.items else [],
        draining=message.draining,
        drained=message.drained,
        printing=printing,
        output=output,
        surrendered=get_surrendered(message.surrendered[:]) if message.surrendered else [],
        token=message.token,
    )


def _get_held(messages: Sequence[wire.HeldRange]) -> list[HeldRange]:
    if sum(m.count for m in messages) > MAX_LISTED:
        raise ValueError(f"a worker that holds more than {MAX_LISTED} tasks")
    return [
        HeldRange(
            m.lease,
            m.offset,
            count_from_wire(m.count, m.offset, OFFSETS),
            _prefix(m.prefix),
            m.first,
            m.attempt,
            m.alternative,
            m.follows,
        )
        for m in messages
    ]


def _get_lease_outcome(message: wire.LeaseOutcome) -> LeaseOutcome:
    offset = message.offset
    payloads = get_ordered_payloads(message.payloads, offset, OFFSETS)
    state = state_from_wire(message.state)
    if state not in _REPORTABLE:
        raise ValueError(f"a worker cannot report {state.name}")
    return LeaseOutcome(message.lease, offset, state, payloads, message.run_us)
