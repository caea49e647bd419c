"""Views, registrations and events as protobuf, and back; decoding is total."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields, replace
from typing import Final

from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.proto.rustray.v1 import head_pb2 as wire
from rustray.rpc import versions
from rustray.rpc.api import RawResult
from rustray.rpc.convert import (
    amounts_from_wire,
    clip,
    codec_from_wire,
    durability_from_wire,
    durability_to_wire,
    get_function,
    put_amounts,
    put_function,
    put_texts,
    seconds_from_wire,
    state_from_wire,
    state_to_wire,
    text,
    total,
)
from rustray.task.names import check_label, check_name
from rustray.task.result import TaskEvent
from rustray.task.views import (
    ClusterStatus,
    Explanation,
    Heartbeat,
    HeartbeatReply,
    OfferedFunction,
    Registered,
    TaskPage,
    TaskView,
    TokenInfo,
    WorkerInfo,
    WorkerReason,
    WorkerView,
)

MAX_REGISTRATION_BYTES: Final = 1 << 20
MAX_LISTED_BYTES: Final = 2_000
"""Of an error in a list: a page of a thousand tasks has to fit into one message."""
MAX_CODE_BYTES: Final = 100
MAX_OBJECTS_ASKED: Final = 1_000
MAX_HELD: Final = 100_000
"""Leases that a heartbeat may list."""

# ── Workers ─────────────────────────────────────────────────────────────────────────────────────


def put_worker_info(info: WorkerInfo) -> wire.RegisterWorkerRequest:
    """Encode a registration."""
    message = wire.RegisterWorkerRequest(
        worker_id=text(info.worker_id),
        incarnation=info.incarnation,
        name=text(info.name),
        address=text(info.address),
        version=text(info.version),
        pid=info.pid,
        host_key=text(info.host_key),
        object_port=text(info.object_port),
        protocol=versions.PROTOCOL,
        oldest_protocol=versions.OLDEST_PROTOCOL,
    )
    put_amounts(message.resources, info.resources)
    put_texts(message.labels, info.labels)
    for function in info.functions:
        put_function(message.functions.add(), function)
    return message


def get_worker_info(message: wire.RegisterWorkerRequest) -> WorkerInfo:
    """Decode and check a registration.

    Raises:
        ValueError: a field is out of range.
        VersionMismatch: there is no version of the protocol that both speak.
    """
    versions.agree(message.protocol, message.oldest_protocol, "worker")
    check_name("worker_id", message.worker_id)
    check_name("name", message.name)
    if message.ByteSize() > MAX_REGISTRATION_BYTES:
        raise ValueError(
            f"the registration takes {message.ByteSize()} bytes, at most {MAX_REGISTRATION_BYTES} "
            "are allowed: offer fewer functions, or shorter docstrings and labels"
        )
    for function in message.functions:
        check_name("function name", function.name)
        for parameter in function.parameters:
            check_name(f"a parameter of {function.name}", parameter.name)
    for key, value in message.labels.items():
        check_label(key, value)
    for what in ("address", "version", "host_key", "object_port"):
        _check_words(what, getattr(message, what))
    return WorkerInfo(
        message.worker_id,
        message.incarnation,
        message.name,
        message.address,
        amounts_from_wire(message.resources, "resource"),
        dict(message.labels),
        tuple(get_function(function) for function in message.functions),
        message.version,
        message.pid,
        message.host_key,
        message.object_port,
    )


def _check_words(what: str, words: str) -> None:
    if not words.isprintable():
        raise ValueError(f"{what} {ascii(words)[:80]} has characters that cannot be shown")


def put_registered(value: Registered) -> wire.RegisterWorkerResponse:
    """Encode the answer to a registration."""
    return wire.RegisterWorkerResponse(
        session=value.session,
        heartbeat_interval_s=value.heartbeat_interval_s,
        lease_ttl_s=value.lease_ttl_s,
        takes_output=value.takes_output,
    )


@total("answer to a registration")
def get_registered(message: wire.RegisterWorkerResponse) -> Registered:
    """Decode the answer to a registration."""
    interval_s, ttl_s = message.heartbeat_interval_s, message.lease_ttl_s
    if not (seconds_from_wire("heartbeat_interval_s", interval_s) and ttl_s > 0):
        raise ValueError("heartbeat interval and lease time must be positive")
    ttl_s = seconds_from_wire("lease_ttl_s", ttl_s)
    return Registered(message.session, interval_s, ttl_s, message.takes_output)


def put_heartbeat(beat: Heartbeat) -> wire.HeartbeatRequest:
    """Encode a heartbeat."""
    message = wire.HeartbeatRequest(
        worker_id=text(beat.worker_id),
        session=beat.session,
        sent=beat.sent,
        received=beat.received,
        running=beat.running,
        cpu_load_ratio=beat.cpu_load_ratio,
        memory_used_mb=beat.memory_used_mb,
        is_full=beat.is_full,
    )
    for lease, unfinished in beat.held:
        message.held.add(lease=lease, unfinished=unfinished)
    message.objects.extend(map(text, beat.objects))
    return message


def get_heartbeat(message: wire.HeartbeatRequest) -> Heartbeat:
    """Decode a heartbeat; loads that are no numbers count as zero."""
    if len(message.held) > MAX_HELD:
        raise ValueError(f"{len(message.held)} leases in a heartbeat, at most {MAX_HELD} count")
    check_name("worker_id", message.worker_id)
    load, memory = message.cpu_load_ratio, message.memory_used_mb
    return Heartbeat(
        message.worker_id,
        message.session,
        message.sent,
        message.received,
        tuple((held.lease, held.unfinished) for held in message.held),
        message.running,
        load if 0 <= load < 1e6 else 0.0,
        memory if 0 <= memory < 1e12 else 0.0,
        message.is_full,
        _object_ids(message.objects),
    )


def _object_ids(names: Sequence[str]) -> tuple[str, ...]:
    if len(names) > MAX_OBJECTS_ASKED:
        raise ValueError(f"{len(names)} objects in a heartbeat, at most {MAX_OBJECTS_ASKED} count")
    return tuple(names)


def put_heartbeat_reply(reply: HeartbeatReply) -> wire.HeartbeatResponse:
    """Encode the answer to a heartbeat."""
    return wire.HeartbeatResponse(is_known=reply.is_known, unneeded=map(text, reply.unneeded))


def get_heartbeat_reply(message: wire.HeartbeatResponse) -> HeartbeatReply:
    """Decode the answer to a heartbeat."""
    return HeartbeatReply(message.is_known, tuple(message.unneeded))


def put_tokens(tokens: Iterable[TokenInfo]) -> wire.ListTokensResponse:
    """Encode what is known of tokens."""
    return wire.ListTokensResponse(tokens=[wire.TokenInfo(**asdict(token)) for token in tokens])


def get_tokens(message: wire.ListTokensResponse) -> list[TokenInfo]:
    """Decode what is known of tokens."""
    names = [field.name for field in fields(TokenInfo)]
    return [TokenInfo(*(getattr(one, name) for name in names)) for one in message.tokens]


def put_workers(workers: Iterable[WorkerView]) -> wire.ListWorkersResponse:
    """Encode a list of workers."""
    response = wire.ListWorkersResponse()
    for view in workers:
        message = response.workers.add(
            worker_id=text(view.worker_id),
            name=text(view.name),
            address=text(view.address),
            state=text(view.state),
            functions=map(text, view.functions),
            leased=view.leased,
            running=view.running,
            finished=view.finished,
            last_seen_s=view.last_seen_s,
            version=text(view.version),
            pid=view.pid,
            host_key=text(view.host_key),
            object_port=text(view.object_port),
        )
        put_amounts(message.resources, view.resources)
        put_amounts(message.used, view.used)
        put_texts(message.labels, view.labels)
    return response


@total("list of workers")
def get_workers(message: wire.ListWorkersResponse) -> list[WorkerView]:
    """Decode a list of workers."""
    return [
        WorkerView(
            worker_id=m.worker_id,
            name=m.name,
            address=m.address,
            state=m.state,
            resources=amounts_from_wire(m.resources, "resource"),
            used=amounts_from_wire(m.used, "resource"),
            labels=dict(m.labels),
            functions=tuple(m.functions),
            leased=m.leased,
            running=m.running,
            finished=m.finished,
            last_seen_s=m.last_seen_s,
            version=m.version,
            pid=m.pid,
            host_key=m.host_key,
            object_port=m.object_port,
        )
        for m in message.workers
    ]


def put_functions(functions: Iterable[OfferedFunction]) -> wire.ListFunctionsResponse:
    """Encode a list of functions."""
    message = wire.ListFunctionsResponse()
    for offered in functions:
        target = message.functions.add(name=text(offered.info.name))
        target.worker_ids.extend(map(text, offered.worker_ids))
        put_function(target.function, offered.info)
    return message


@total("list of functions")
def get_functions(message: wire.ListFunctionsResponse) -> list[OfferedFunction]:
    """Decode a list of functions."""
    return [
        OfferedFunction(get_function(m.function), tuple(m.worker_ids)) for m in message.functions
    ]


# ── Tasks ───────────────────────────────────────────────────────────────────────────────────────


def put_result(target: common.TaskResult, result: RawResult) -> None:
    """Write a result into a message."""
    target.task_id = result.task_id
    target.state = state_to_wire(result.state)
    target.codec = result.codec  # type: ignore[assignment]
    target.payload = result.payload
    target.worker_id = text(result.worker_id)
    target.attempts = result.attempts
    target.num_returns = result.num_returns
    if result.progress is not None:
        target.progress = result.progress
        target.message = text(result.message)


@total("result")
def put_located(target: wire.GetTaskResultResponse, result: RawResult) -> None:
    """Write a result, or where it is."""
    put_result(target.result, result)
    target.placed, target.object_token = result.is_placed, result.object_token


@total("result")
def get_located(message: wire.GetTaskResultResponse) -> RawResult:
    """Read a result, or where it is."""
    found = get_result(message.result)
    if not message.placed:
        return found
    return replace(found, is_placed=True, object_token=message.object_token)


def get_result(message: common.TaskResult) -> RawResult:
    """Decode a result."""
    return RawResult(
        message.task_id,
        state_from_wire(message.state),
        int(codec_from_wire(message.codec)),
        message.payload,
        message.worker_id,
        message.attempts,
        message.progress if message.HasField("progress") else None,
        message.message,
        num_returns=message.num_returns or 1,
    )


def put_explanation(value: Explanation) -> wire.ExplainTaskResponse:
    """Encode an explanation."""
    message = wire.ExplainTaskResponse(
        task_id=value.task_id,
        state=state_to_wire(value.state),
        summary=text(value.summary),
        position=value.position,
        advice=text(value.advice),
        durability=durability_to_wire(value.durability),
    )
    for reason in value.workers:
        message.workers.add(
            worker_id=text(reason.worker_id),
            is_feasible=reason.is_feasible,
            reason=text(reason.reason),
        )
    return message


@total("explanation")
def get_explanation(message: wire.ExplainTaskResponse) -> Explanation:
    """Decode an explanation."""
    return Explanation(
        message.task_id,
        state_from_wire(message.state),
        message.summary,
        message.position,
        tuple(WorkerReason(m.worker_id, m.is_feasible, m.reason) for m in message.workers),
        message.advice,
        durability_from_wire(message.durability),
    )


def put_task_page(page: TaskPage) -> wire.ListTasksResponse:
    """Encode a page of tasks."""
    message = wire.ListTasksResponse(next_cursor=text(page.next_cursor), total=page.total)
    for view in page.tasks:
        message.tasks.add(
            task_id=view.task_id,
            function=text(view.function),
            state=state_to_wire(view.state),
            priority=view.priority,
            attempts=view.attempts,
            worker_id=text(view.worker_id),
            submitted_unix_s=view.submitted_unix_s,
            finished_unix_s=view.finished_unix_s,
            error_code=clip(view.error_code, MAX_CODE_BYTES),
            error_message=clip(view.error_message, MAX_LISTED_BYTES),
            progress=view.progress,
            message=text(view.message),
            durability=durability_to_wire(view.durability),
        )
    return message


@total("page of tasks")
def get_task_page(message: wire.ListTasksResponse) -> TaskPage:
    """Decode a page of tasks."""
    return TaskPage(
        tuple(
            TaskView(
                task_id=m.task_id,
                function=m.function,
                state=state_from_wire(m.state),
                priority=m.priority,
                attempts=m.attempts,
                worker_id=m.worker_id,
                submitted_unix_s=m.submitted_unix_s,
                finished_unix_s=m.finished_unix_s if m.HasField("finished_unix_s") else None,
                error_code=m.error_code,
                error_message=m.error_message,
                progress=m.progress if m.HasField("progress") else None,
                message=m.message,
                durability=durability_from_wire(m.durability),
            )
            for m in message.tasks
        ),
        message.next_cursor,
        message.total,
    )


def put_events(events: Sequence[TaskEvent]) -> wire.SubscribeResponse:
    """Encode events."""
    message = wire.SubscribeResponse()
    for event in events:
        message.events.add(
            revision=event.revision,
            task_id=event.task_id,
            state=state_to_wire(event.state),
            attempt=event.attempt,
            worker_id=text(event.worker_id),
            function=text(event.function),
            time_unix_s=event.time_unix_s,
            progress=event.progress,
            message=text(event.message),
            name=text(event.name),
            value=event.value if event.name else b"",
        )
    return message


@total("events")
def get_events(message: wire.SubscribeResponse) -> list[TaskEvent]:
    """Decode events."""
    return [_get_event(m) for m in message.events]


def _get_event(message: wire.TaskEvent) -> TaskEvent:
    event = TaskEvent(
        message.revision,
        message.task_id,
        state_from_wire(message.state),
        message.attempt,
        message.worker_id,
        message.function,
        message.time_unix_s,
    )
    if message.name:
        return replace(event, kind="emit", name=message.name, value=message.value)
    if message.HasField("progress"):
        progress, words = message.progress, message.message
        return replace(event, kind="progress", progress=progress, message=words)
    return event


# ── The cluster ─────────────────────────────────────────────────────────────────────────────────


def put_status(status: ClusterStatus) -> wire.GetStatusResponse:
    """Encode the cluster's status."""
    message = wire.GetStatusResponse(
        cluster_id=text(status.cluster_id),
        version=text(status.version),
        address=text(status.address),
        uptime_s=status.uptime_s,
        security=text(status.security),
        durability=text(status.durability),
        strategy=text(status.strategy),
        workers=status.workers,
        max_payload_bytes=status.max_payload_bytes,
        max_retries=status.max_retries,
    )
    put_amounts(message.tasks, status.tasks)
    put_amounts(message.resources, status.resources)
    put_amounts(message.used, status.used)
    put_amounts(message.counters, status.counters)
    return message


@total("status")
def get_status(message: wire.GetStatusResponse) -> ClusterStatus:
    """Decode the cluster's status."""
    return ClusterStatus(
        cluster_id=message.cluster_id,
        version=message.version,
        address=message.address,
        uptime_s=message.uptime_s,
        security=message.security,
        durability=message.durability,
        strategy=message.strategy,
        workers=message.workers,
        tasks=dict(message.tasks),
        resources=amounts_from_wire(message.resources, "resource"),
        used=amounts_from_wire(message.used, "resource"),
        counters=dict(message.counters),
        max_payload_bytes=message.max_payload_bytes,
        max_retries=message.max_retries if message.HasField("max_retries") else None,
    )
