"""Read-only pictures of the scheduler's state."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rustray.common.durability import Durability
from rustray.common.ids import task_id
from rustray.common.resources import ResourceSet
from rustray.scheduler.records import Batch, StoredOutcome, WorkerRecord
from rustray.scheduler.state import Progress, SchedulerState
from rustray.task.columns import StoredColumn
from rustray.task.frames import Outcome
from rustray.task.place import Place
from rustray.task.state import TaskState
from rustray.task.views import WorkerView


def outcome_of(stored: StoredOutcome, low: int, high: int) -> Outcome:
    """Return batch offsets ``low`` to ``high - 1`` of a stored outcome as it travels."""
    payloads = stored.payloads.slice(low - stored.offset, high - stored.offset)
    batch = stored.batch
    stream = batch.streams.get(low) if batch.streams else None
    items = stream.have if stream is not None else 0
    return Outcome(
        batch.first + low, stored.state, payloads, stored.worker_id, stored.attempts, items
    )


@dataclass(frozen=True, slots=True)
class TaskSnapshot:
    """One task as it stands; times are monotonic seconds.

    Attributes:
        payload: The outcome's; None if there is none, it has expired, or it is ``stored``.
        stored: A large result, which the shell has.
        place: Where its value has stayed; then ``payload`` is that, packed.
        is_lost: Its worker is lost.
        trouble: Why that cannot send it here; "" while it may.
        attempt: Number of the attempt that is given to a worker now; 0 if none is.
        items: Of a stream: how many items it has yielded; -1 for a task that is none.
        is_pushed: What becomes of it goes to the session that handed it in by itself.
        num_returns: Values that it returns.
    """

    task_id: str
    function: str
    codec: int
    state: TaskState
    priority: int
    attempts: int
    worker_id: str
    accepted_at_s: float
    finished_at_s: float | None
    payload: bytes | None
    progress: Progress | None = None
    stored: StoredColumn | None = None
    durability: Durability = Durability.FULL
    attempt: int = 0
    items: int = -1
    is_pushed: bool = False
    place: Place | None = None
    is_lost: bool = False
    trouble: str = ""
    num_returns: int = 1


def snapshot(state: SchedulerState, batch: Batch, offset: int) -> TaskSnapshot:
    """Return one task as it stands; ``payload`` is the outcome's, None if none or expired."""
    now_state = TaskState(batch.state[offset])
    task_class = batch.queue.task_class
    worker_id, finished, payload, large, attempt = "", None, None, None, 0
    where, is_lost, trouble = None, False, ""
    attempts = batch.reruns.get(offset, 0)
    if now_state.is_terminal:
        stored = batch.outcomes[batch.lease[offset]]
        if stored is not None:
            worker_id, attempts = stored.worker_id, stored.attempts
            finished = stored.finished_at_s
            where, is_lost, trouble = stored.place, stored.is_lost, stored.trouble
            place = offset - stored.offset
            if isinstance(stored.payloads, StoredColumn):
                large = stored.payloads.slice(place, place + 1)
            else:
                payload = stored.payloads[place]
    elif now_state is not TaskState.QUEUED:
        attempts += 1
        lease = state.leases.get(batch.lease[offset])
        if lease is not None:
            worker_id, attempt = lease.worker.worker_id, lease.attempt
    return TaskSnapshot(
        task_id(batch.prefix, batch.first + offset),
        task_class.function,
        task_class.codec,
        now_state,
        task_class.priority,
        attempts,
        worker_id,
        batch.accepted_at_s,
        finished,
        payload,
        state.progress.get((batch.number, offset)),
        large,
        batch.durability,
        attempt,
        _items_of(batch, offset),
        batch.is_pushed,
        where,
        is_lost,
        trouble,
        task_class.num_returns,
    )


def _items_of(batch: Batch, offset: int) -> int:
    if not batch.queue.task_class.stream_window:
        return -1
    stream = batch.streams.get(offset)
    return stream.have if stream is not None else 0


def batches_in_order(state: SchedulerState, after: int) -> Iterator[Batch]:
    """Yield batches in order of acceptance, from number ``after`` on."""
    found = [
        batch
        for session in state.sessions.values()
        for batch in session.batches
        if batch.number >= after
    ]
    found.sort(key=lambda batch: batch.number)
    yield from found


def worker_view(worker: WorkerRecord, now: float) -> WorkerView:
    """Return a worker as people see it."""
    info = worker.info
    return WorkerView(
        worker_id=info.worker_id,
        name=info.name,
        address=info.address,
        state=worker.state,
        resources=dict(info.resources),
        used=ResourceSet(worker.load.leased).amounts(),
        labels=dict(info.labels),
        functions=tuple(sorted(worker.functions)),
        leased=worker.load.tasks,
        running=worker.reported_running,
        finished=worker.finished,
        last_seen_s=max(now - worker.last_seen_s, 0.0),
        version=info.version,
        pid=info.pid,
        host_key=info.host_key,
        object_port=info.object_port,
    )
