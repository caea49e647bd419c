"""Requests of the unary calls as protobuf, and back.

Decoders raise ValueError for a field that is out of range; the server answers it with
INVALID_ARGUMENT.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgpack

from rustray.common import ids
from rustray.common.errors import PayloadError, RustRayError
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc.api import (
    CancelVerdict,
    EventFilter,
    SubmitItem,
    SubmitVerdict,
    TaskFilter,
)
from rustray.rpc.convert import (
    codec_from_wire,
    durability_from_wire,
    durability_to_wire,
    get_retry_on,
    get_task_class,
    moment_from_wire,
    put_task_class,
    seconds_from_wire,
    state_from_wire,
    state_to_wire,
    text,
    total,
)
from rustray.rpc.status import from_detail, to_detail
from rustray.task.names import check_name
from rustray.task.needs import ResourceRequirements
from rustray.task.spec import DEFAULT_CRASH_LIMIT, Codec, TaskClass, check_labels

MAX_BATCH: Final = 100_000
MAX_CANCELS: Final = 10_000
MAX_WATCHED: Final = 10_000
MAX_PAGE: Final = 1_000
DEFAULT_PAGE: Final = 100
LONGEST_WAIT_S: Final = 300.0
"""A single call of GetTaskResult waits no longer; callers ask again."""

# ── Composing a call ────────────────────────────────────────────────────────────────────────────


def compose_call(codec: Codec, args: Sequence[bytes], kwargs: Mapping[str, bytes]) -> bytes:
    """Put encoded arguments together to the payload ``[args, kwargs]``, without decoding them.

    Keyword arguments go in name order, so that the same call always gives the same bytes.

    Raises:
        ValueError: the codec cannot be composed, or an argument is empty.
    """
    for name, value in (*enumerate(args), *kwargs.items()):
        if not value:
            shown = f"args[{name}]" if isinstance(name, int) else f"kwargs[{name!r:.80}]"
            raise ValueError(f"{shown} has no bytes; encode null (None) as such")
    if codec is Codec.JSON:
        pairs = [_json_text(name) + b":" + kwargs[name] for name in sorted(kwargs)]
        return b"[[" + b",".join(args) + b"],{" + b",".join(pairs) + b"}]"
    if codec is Codec.MSGPACK:
        packer = msgpack.Packer(autoreset=False)
        packer.pack_array_header(2)
        packer.pack_array_header(len(args))
        parts = [packer.bytes(), *args]
        packer.reset()
        packer.pack_map_header(len(kwargs))
        for name in sorted(kwargs):
            packer.pack(name)
            parts += (packer.bytes(), kwargs[name])
            packer.reset()
        parts.append(packer.bytes())
        return b"".join(parts)
    raise ValueError("codec must be CODEC_JSON or CODEC_MSGPACK")


def _json_text(name: str) -> bytes:
    return json.dumps(name, ensure_ascii=False).encode()


# ── Submitting ──────────────────────────────────────────────────────────────────────────────────


def put_item(target: common.TaskRequest, item: SubmitItem) -> None:
    """Write a task that the client has put together itself."""
    target.task_id = ids.task_id(item.prefix, item.sequence)
    put_task_class(target.task_class, item.task_class)
    target.call = item.payload
    target.uses_default_resources = item.uses_default_resources
    target.uses_default_retries = item.uses_default_retries
    target.deadline_unix_s = item.deadline_unix_s
    target.idempotency_key = text(item.idempotency_key)
    target.reject_duplicate = item.rejects_duplicate
    target.durability = durability_to_wire(item.durability)


def new_prefix() -> bytes:
    """Return a random session prefix, for tasks that come without an id."""
    return secrets.token_bytes(ids.PREFIX_BYTES)


def get_item(message: common.TaskRequest, prefix: bytes, sequence: int) -> SubmitItem:
    """Decode and check one task.

    Args:
        message: From a peer.
        prefix: With ``sequence``, the id if the message brings none.
        sequence: See there.

    Raises:
        PayloadError: a field is out of range; the message names it.
    """
    try:
        if message.task_id:
            prefix, sequence = ids.split_task_id(message.task_id)
        is_plain = not message.HasField("task_class")
        task_class = _get_plain_class(message) if is_plain else get_task_class(message.task_class)
        check_labels(task_class)
        key = message.idempotency_key
        if key:
            check_name("idempotency_key", key)
        return SubmitItem(
            prefix,
            sequence,
            task_class,
            _get_plain_call(message, task_class.codec) if is_plain else message.call,
            not message.HasField("resources") if is_plain else message.uses_default_resources,
            not message.HasField("max_retries") if is_plain else message.uses_default_retries,
            moment_from_wire(message.deadline_unix_s),
            key,
            message.reject_duplicate,
            durability_from_wire(message.durability),
        )
    except ValueError as error:
        raise PayloadError(f"the task is not valid: {error}") from error


def _get_plain_call(message: common.TaskRequest, codec: Codec) -> bytes:
    return compose_call(codec, message.args, dict(message.kwargs))


def _get_plain_class(message: common.TaskRequest) -> TaskClass:
    needs = _get_resources(message.resources)
    own = (needs or ResourceRequirements()).to_alternative()
    task_class = TaskClass(
        function=message.function_name,
        nargs=len(message.args),
        kwarg_names=tuple(sorted(message.kwargs)),
        resources=own.resources,
        labels=own.labels,
        label_selector=own.label_selector,
        label_selector_soft=own.label_selector_soft,
        fallback=() if needs is None else needs.to_fallback(),
        priority=message.priority,
        max_retries=message.max_retries if message.HasField("max_retries") else 3,
        retry_exceptions=get_retry_on(message),
        retry_delay_s=message.retry_delay_s if message.HasField("retry_delay_s") else None,
        crash_limit=message.crash_limit or DEFAULT_CRASH_LIMIT,
        timeout_s=seconds_from_wire("timeout_s", message.timeout_s),
        queue_timeout_s=seconds_from_wire("queue_timeout_s", message.queue_timeout_s),
        total_timeout_s=seconds_from_wire("total_timeout_s", message.total_timeout_s),
        codec=codec_from_wire(message.codec) if message.codec else Codec.JSON,
        wait_for_resources=message.wait_for_resources,
        oom_retries=message.oom_retries,
        exclusive=message.exclusive,
        is_detached=message.detached,
        stream_window=message.stream_window,
    )
    task_class.validate()
    return task_class


def _get_resources(message: common.Resources) -> ResourceRequirements | None:
    found = ResourceRequirements(
        cpu_cores=message.cpu_cores if message.HasField("cpu_cores") else 1,
        memory_mb=message.memory_mb,
        gpus=message.gpus,
        resources=dict(message.custom),
        labels=dict(message.labels),
        label_selector=dict(message.label_selector),
        label_selector_soft=dict(message.label_selector_soft),
        fallback_strategy=[
            _get_resources(each) or ResourceRequirements() for each in message.fallback
        ],
    )
    return None if not message.ByteSize() else found


def put_verdicts(verdicts: Iterable[SubmitVerdict]) -> wire.SubmitTasksResponse:
    """Encode verdicts of a batch."""
    response = wire.SubmitTasksResponse()
    for verdict in verdicts:
        message = response.verdicts.add(
            task_id=verdict.task_id,
            deduplicated=verdict.deduplicated,
            durability=durability_to_wire(verdict.durability),
        )
        if verdict.error is not None:
            message.error.CopyFrom(to_detail(verdict.error))
    return response


@total("verdicts")
def get_verdicts(message: wire.SubmitTasksResponse, expected: int) -> list[SubmitVerdict]:
    """Decode verdicts of a batch."""
    if len(message.verdicts) != expected:
        raise ValueError(f"{len(message.verdicts)} verdicts came for {expected} tasks")
    return [
        SubmitVerdict(
            m.task_id,
            _get_error(m.error, m.HasField("error")),
            m.deduplicated,
            durability_from_wire(m.durability),
        )
        for m in message.verdicts
    ]


def _get_error(detail: common.ErrorDetail, is_there: bool) -> RustRayError | None:
    return from_detail(detail) if is_there else None


# ── Cancelling ──────────────────────────────────────────────────────────────────────────────────


def put_cancel_verdicts(verdicts: Iterable[CancelVerdict]) -> wire.CancelTaskResponse:
    """Encode what a cancel did."""
    response = wire.CancelTaskResponse()
    for verdict in verdicts:
        message = response.verdicts.add(task_id=verdict.task_id, state=state_to_wire(verdict.state))
        if verdict.error is not None:
            message.error.CopyFrom(to_detail(verdict.error))
    return response


@total("verdicts")
def get_cancel_verdicts(message: wire.CancelTaskResponse) -> list[CancelVerdict]:
    """Decode what a cancel did."""
    return [
        CancelVerdict(
            m.task_id,
            None if m.HasField("error") else state_from_wire(m.state),
            _get_error(m.error, m.HasField("error")),
        )
        for m in message.verdicts
    ]


# ── Filters ─────────────────────────────────────────────────────────────────────────────────────


def put_task_filter(where: TaskFilter, cursor: str, limit: int) -> wire.ListTasksRequest:
    """Encode a request for a page of tasks."""
    return wire.ListTasksRequest(
        states=map(state_to_wire, where.states),
        function=text(where.function),
        worker_id=text(where.worker_id),
        cursor=text(cursor),
        limit=min(max(limit, 0), MAX_PAGE),
    )


def get_task_filter(message: wire.ListTasksRequest) -> tuple[TaskFilter, str, int]:
    """Decode a request for a page of tasks: (filter, cursor, limit).

    Raises:
        ValueError: an unknown state.
    """
    where = TaskFilter(
        tuple(map(state_from_wire, message.states)), message.function, message.worker_id
    )
    return where, message.cursor, min(message.limit or DEFAULT_PAGE, MAX_PAGE)


def put_event_filter(where: EventFilter) -> wire.SubscribeRequest:
    """Encode a subscription."""
    message = wire.SubscribeRequest(
        task_ids=map(text, where.task_ids),
        functions=map(text, where.functions),
        states=map(state_to_wire, where.states),
    )
    if where.cursor >= 0:
        message.cursor = where.cursor
    return message


def get_event_filter(message: wire.SubscribeRequest) -> EventFilter:
    """Decode a subscription; task ids come out in their one spelling.

    Raises:
        ValueError: an unknown state, something that is no task id, or too many of them.
    """
    if len(message.task_ids) > MAX_WATCHED:
        raise ValueError(f"{len(message.task_ids)} task ids, at most {MAX_WATCHED} can be watched")
    if len(message.functions) > MAX_WATCHED or len(message.states) > MAX_WATCHED:
        raise ValueError(f"at most {MAX_WATCHED} functions or states can be watched")
    for function in message.functions:
        check_name("function", function)
    return EventFilter(
        tuple(ids.task_id(*ids.split_task_id(name)) for name in message.task_ids),
        tuple(message.functions),
        tuple(map(state_from_wire, message.states)),
        message.cursor if message.HasField("cursor") else -1,
    )


def get_wait_s(message: wire.GetTaskResultRequest) -> float | None:
    """Decode how long to wait for a result.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not message.HasField("timeout_s"):
        return None
    return min(seconds_from_wire("timeout_s", message.timeout_s), LONGEST_WAIT_S)
