"""Which worker gets what: the path that every task takes.

Two directions. New work asks the load balancer for a worker with room. When none has
any, its queue is *blocked*, and from then on a worker that gets room helps itself from
the blocked queues in order of priority and age. So a full cluster costs O(1) a frame,
however long the queues are and however many workers there are.
"""

from __future__ import annotations

import heapq
from array import array
from functools import partial

from rustray.common.resources import UNBOUNDED
from rustray.scheduler import inputs
from rustray.scheduler.commands import GrantLease, PersistGrant, RecallLease
from rustray.scheduler.credit import begun_streams
from rustray.scheduler.load_balancer import PlacementRequest, WorkerLoad
from rustray.scheduler.records import (
    LEASED_BYTE,
    QUEUED_BYTE,
    Batch,
    ClassQueue,
    Lease,
    Level,
    QueueKey,
    Variant,
    WorkerRecord,
)
from rustray.scheduler.state import SchedulerState, enqueue, runs
from rustray.scheduler.variants import can_run, capacity_of, variants_of
from rustray.task.inputs import InputValue
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

FAST_S = 0.1
"""Tasks that run longer are not prefetched: the round trip does not matter to them."""
RECALL_PAUSE_S = 0.1
RECALL_AGAIN_S = 0.2
"""After so long an idle worker is thought of again: others may hold what they cannot begin."""

LARGE_INPUT_BYTES = 64 << 20
WAITS_FOR_BYTES = {"LeastLoaded": 0.0, "LocalityAware": 1.0}
"""Strategies that bring a task to the values that it takes: so much load above a full worker's is
worth it for large ones. The others have reasons of their own for where a task goes."""


def room(state: SchedulerState, queue: ClassQueue, variant: Variant, worker: WorkerRecord) -> int:
    """Count how many more tasks of a class a worker may be given now, in one of the ways.

    The window is the worker's capacity times a factor that grows as the tasks get
    shorter, so that a worker always holds about ``prefetch_s`` of work. Tasks of a lower level
    do not count: the worker runs the higher ones first. Where there is another way to run them,
    they are prefetched only if they are known to be short, and no way is free.
    """
    capacity = capacity_of(variant, worker)
    if capacity == 0 or worker.state != "ready":
        return 0
    settings = state.settings
    limit = settings.max_leased_tasks - worker.load.tasks
    leased = worker.load.leased
    own = queue.level
    levels = worker.leased_by_level
    if min(levels, default=own) < own:
        leased = _leased_from(levels, own)
        limit = max(limit, 1 if capacity >= UNBOUNDED else capacity)
    if limit <= 0:
        return 0
    if capacity >= UNBOUNDED:
        return limit
    mean = queue.mean_run_s
    factor = 1.0
    if mean < 0:
        factor = 2.0 if len(queue.variants) == 1 else 1.0
    elif mean <= FAST_S and variant.prefetches:
        factor = 1.0 + settings.prefetch_s / (mean + 1e-6)
    total = worker.load.total
    resources = variant.task_class.resources
    for name, need in resources.units.items():
        fits = int(total[name] * factor - leased.get(name, 0)) // need
        if fits < limit:
            limit = fits
    if resources.is_split:
        # Two GPUs have room for two demands of 0.6, though 1.8 is less than 2.
        mine = worker.load.by_class.get(variant.task_class, 0)
        limit = min(limit, int(capacity * factor) - mine)
    return limit if limit > 0 else 0


def _leased_from(levels: dict[Level, dict[str, int]], own: Level) -> dict[str, int]:
    """Add up what is leased at a level and above."""
    leased: dict[str, int] = {}
    for level, units_by_name in levels.items():
        if level >= own:
            for name, units in units_by_name.items():
                leased[name] = leased.get(name, 0) + units
    return leased


def dispatch(state: SchedulerState) -> None:
    """Give out all work that a worker has room for."""
    ready = state.ready
    while ready:
        key, queue = heapq.heappop(ready)
        if queue.queued <= 0 or queue.is_blocked:
            continue
        _trim(queue)
        if queue.key() != key:
            heapq.heappush(ready, (queue.key(), queue))
            continue
        _place_queue(state, queue, ready)
    while state.freed:
        worker, _ = state.freed.popitem()
        if worker.state == "ready":
            _pull(state, worker)
            if state.overfull and worker.load.load < 1.0:
                _take_back(state, worker)


def _place_queue(
    state: SchedulerState, queue: ClassQueue, others: list[tuple[QueueKey, ClassQueue]]
) -> None:
    """Place a queue's tasks until it is empty, blocked, or an older one of another class is due."""
    while queue.queued > 0:
        number = queue.queued
        if others:
            _trim(queue)
            number = min(number, queue.spans[0].high - queue.spans[0].low)
        code = queue.task_class.code_hash
        size = len(state.code.get(code, b"")) if code else 0
        picked = None
        if (state.kept_by or queue.task_class.depth) and _goes_where_it_belongs(state, queue):
            if _is_others_turn(queue, others):
                return
            continue
        for variant in queue.variants:
            room_of = variant.room_of
            assert room_of is not None
            request = PlacementRequest(variant.task_class, number, room_of, size)
            picked = state.balancer.pick(request)
            if picked is not None:
                break
        if picked is None:
            queue.is_blocked = True
            state.blocked[queue] = None
            return
        load, picked_number = picked
        if load.load >= 1.0:
            # Every slot is busy: this is prefetch, and worth no more precision than a fraction
            # of the window.
            limit = min(number, room(state, queue, variant, state.workers[load.worker_id]))
            picked_number = min(max(picked_number, _prefetch_grain(state, queue)), limit)
        number = picked_number
        lease_tasks(state, queue, variant, state.workers[load.worker_id], number)
        if _is_others_turn(queue, others):
            return


def _is_others_turn(queue: ClassQueue, others: list[tuple[QueueKey, ClassQueue]]) -> bool:
    """Whether another queue has older tasks; then this one waits among them."""
    if not others or queue.queued <= 0:
        return False
    _trim(queue)
    if queue.key() <= others[0][0]:
        return False
    heapq.heappush(others, (queue.key(), queue))
    return True


def _goes_where_it_belongs(state: SchedulerState, queue: ClassQueue) -> bool:
    """Lease the oldest task to the worker that is better for it than all others, if one is."""
    task_class = queue.task_class
    if state.kept_by and task_class.has_inputs and _goes_to_its_input(state, queue):
        return True
    return task_class.depth > 0 and _goes_home(state, queue)


def _goes_to_its_input(state: SchedulerState, queue: ClassQueue) -> bool:
    """Lease the oldest task to the worker that keeps most of what it takes, if that has room."""
    waits = WAITS_FOR_BYTES.get(state.settings.strategy)
    _trim(queue)
    if waits is None or not queue.spans:
        return False
    span = queue.spans[0]
    found = inputs.holder_of(state, span.batch, span.low)
    worker = None if found is None else state.workers.get(found[0])
    if found is None or worker is None or worker.state != "ready":
        return False
    limit = 1.0 + waits * min(1.0, found[1] / LARGE_INPUT_BYTES)
    for variant in queue.variants:
        if worker.load.load < limit and room(state, queue, variant, worker) > 0:
            lease_tasks(state, queue, variant, worker, 1)
            return True
    return False


def _goes_home(state: SchedulerState, queue: ClassQueue) -> bool:
    """Lease the oldest task to the worker of the one that has handed it in, if that has a core."""
    _trim(queue)
    if state.settings.strategy not in WAITS_FOR_BYTES or not queue.spans:
        return False
    worker = state.workers.get(queue.spans[0].batch.near)
    if worker is None or worker.load.load >= 1.0:
        return False
    for variant in queue.variants:
        if room(state, queue, variant, worker) > 0:
            lease_tasks(state, queue, variant, worker, 1)
            return True
    return False


def _prefetch_grain(state: SchedulerState, queue: ClassQueue) -> int:
    """Return how many tasks to prefetch at a time: an eighth of ``prefetch_s`` of work."""
    if queue.mean_run_s < 0:
        return 1
    return max(1, int(state.settings.prefetch_s / 8 / (queue.mean_run_s + 1e-6)))


def _pull(state: SchedulerState, worker: WorkerRecord) -> None:
    """Let a worker that got room help itself from the blocked queues, oldest work first."""
    waiting: list[tuple[QueueKey, ClassQueue]] = []
    for queue in list(state.blocked):
        _trim(queue)
        if queue.queued > 0:
            waiting.append((queue.key(), queue))
        else:
            _unblock(state, queue)
    heapq.heapify(waiting)
    full: set[tuple[Level, tuple[object, ...]]] = set()
    while waiting:
        _, queue = heapq.heappop(waiting)
        signature = (queue.level, queue.shape)
        if signature in full:
            continue
        for variant in queue.variants:
            number = min(room(state, queue, variant, worker), queue.queued)
            if number:
                break
        if number == 0:
            full.add(signature)
            continue
        if waiting:
            oldest = queue.spans[0]
            number = min(number, oldest.high - oldest.low)
        lease_tasks(state, queue, variant, worker, number)
        if queue.queued <= 0:
            _unblock(state, queue)
            continue
        _trim(queue)
        heapq.heappush(waiting, (queue.key(), queue))


def _unblock(state: SchedulerState, queue: ClassQueue) -> None:
    queue.is_blocked = False
    state.blocked.pop(queue, None)


def unblock_all(state: SchedulerState) -> None:
    """Let every queue look for a worker again (the set of workers has changed)."""
    for queue in list(state.blocked):
        _unblock(state, queue)
        _trim(queue)
        enqueue(state, queue)


def _trim(queue: ClassQueue) -> None:
    """Drop what is no longer queued (cancelled, timed out) from the head of a queue."""
    spans = queue.spans
    while spans:
        span = spans[0]
        column = span.batch.state
        if column[span.low] == TaskState.QUEUED:
            return
        low, high = span.low, span.high
        while low < high and column[low] != TaskState.QUEUED:
            low += 1
        if low < high:
            span.low = low
            return
        spans.popleft()


def lease_tasks(
    state: SchedulerState,
    queue: ClassQueue,
    variant: Variant,
    worker: WorkerRecord,
    number: int,
) -> None:
    """Lease the oldest ``number`` waiting tasks of a class to a worker."""
    spans = queue.spans
    left = number
    while left > 0:
        _trim(queue)
        if not spans:
            break
        span = spans[0]
        low = span.low
        high = min(span.high, low + left)
        batch = span.batch
        if batch.state.count(QUEUED_BYTE, low, high) != high - low:
            high = next(end for _, end, _ in runs(batch.state, low, high))
        if batch.grants:
            high = _same_grants(batch, low, high)
        if batch.inputs is not None:
            high = inputs.end_of_grant(state, batch, low, high)
        lease_run(state, variant, worker, batch, low, high)
        left -= high - low
        if high == span.high:
            spans.popleft()
        else:
            span.low = high
    queue.queued -= number - left
    state.charge(worker, variant, number - left)
    if queue.task_class.code_hash:
        worker.load.code.add(queue.task_class.code_hash)


def _same_grants(batch: Batch, low: int, high: int) -> int:
    """Return the end of the run from ``low`` whose tasks have had equally many leases."""
    grants = batch.grants
    lost = batch.lost_attempts
    had = grants.get(low, lost)
    end = low + 1
    while end < high and grants.get(end, lost) == had:
        end += 1
    return end


def lease_run(
    state: SchedulerState,
    variant: Variant,
    worker: WorkerRecord,
    batch: Batch,
    low: int,
    high: int,
    after: tuple[Lease, int] | None = None,
) -> Lease:
    """Lease consecutive tasks that stand in no queue any more.

    Args:
        state: The scheduler's state.
        variant: How they run.
        worker: Where.
        batch: Theirs.
        low: Offset of the first.
        high: Of the first after them.
        after: Lease and offset of the task that the only one of them follows; None for none.
    """
    number = state.next_lease
    state.next_lease = number + 1
    count = high - low
    attempt = batch.grants.get(low, batch.lost_attempts) + 1
    lease = Lease(number, batch, low, count, attempt, worker, variant, count, state.next_outcome)
    state.leases[number] = lease
    worker.leases[number] = lease
    batch.state[low:high] = LEASED_BYTE * count
    batch.lease[low:high] = array("Q", (number,)) * count
    state.counts[TaskState.QUEUED] -= count
    state.counts[TaskState.LEASED] += count
    assert batch.payloads is not None
    values: tuple[tuple[InputValue, ...], ...] = ()
    follows = (0, 0)
    if after is not None:
        follows = after[0].number, after[1] - after[0].low
        lease.is_behind = lease.is_idle = True
        worker.followers += 1
        after[0].followers = [*(after[0].followers or ()), lease]
    elif batch.inputs is not None:
        values = tuple(inputs.values_of(state, batch, offset) for offset in range(low, high))
    if batch.dependants and after is None:
        state.fresh.append(lease)
    if variant.task_class.max_retries == 0:
        state.commands.append(PersistGrant(batch.number, low, count, is_granted=True))
    state.commands.append(
        GrantLease(
            worker.info.worker_id,
            number,
            variant.task_class,
            attempt,
            batch.prefix,
            batch.first + low,
            batch.payloads.slice(low, high),
            batch.due_of(low, high),
            values,
            begun_streams(batch, number, low, high),
            follows,
        )
    )
    return lease


def _may_be_taken(lease: Lease, victim: WorkerRecord, idle: WorkerRecord) -> bool:
    """Whether another worker could run something of a lease now."""
    if lease.is_idle or not can_run(lease.batch.queue, idle):
        return False
    # (The newest of other leases is not the one that runs; of a chain it may well be.)
    return not (lease.is_behind and lease.number in victim.running)


def think_of_again(state: SchedulerState, idle: WorkerRecord) -> None:
    """A worker that had too little to do may have still, while others hold more than they run."""
    idle.is_thought_of = False
    if state.workers.get(idle.worker_id) is idle and state.overfull:
        state.freed[idle] = None


def _take_back(state: SchedulerState, idle: WorkerRecord) -> None:
    """Ask the fullest worker for unstarted work that an idle one could run at once."""
    if not idle.is_thought_of:
        idle.is_thought_of = True
        due_s = state.now + RECALL_AGAIN_S
        heapq.heappush(state.timers, (due_s, state.next_order, "recall", idle))
        state.next_order += 1
    victim = _fullest(state, idle)
    if victim is None:
        return
    wanted = 0
    for lease in reversed(list(victim.leases.values())):
        if not _may_be_taken(lease, victim, idle):
            continue
        if wanted == 0:
            excess = int(victim.load.tasks * (1.0 - 1.0 / victim.load.load))
            wanted = min(max(excess // 2, 1), state.settings.max_leased_tasks)
        for offset, number in _unstarted(lease, wanted):
            state.commands.append(RecallLease(victim.worker_id, lease.number, offset, number))
            wanted -= number
        if wanted <= 0:
            break
    if wanted or victim.leases:
        victim.recall_until_s = state.now + RECALL_PAUSE_S


def _fullest(state: SchedulerState, idle: WorkerRecord) -> WorkerRecord | None:
    victim: WorkerRecord | None = None
    for worker in list(state.overfull)[:32]:
        if worker is idle or worker.state != "ready" or worker.recall_until_s > state.now:
            continue
        if victim is None or worker.load.load > victim.load.load:
            victim = worker
    return victim


def _unstarted(lease: Lease, wanted: int) -> list[tuple[int, int]]:
    """Return the last tasks of a lease that are not known to have begun: (offset, number).

    They need not be its last tasks: those behind one that takes long are wherever they are.
    """
    batch, low, found = lease.batch, lease.low, list[tuple[int, int]]()
    for offset in range(lease.count - 1, -1, -1):
        if wanted <= 0:
            break
        if (
            batch.state[low + offset] != TaskState.LEASED
            or batch.lease[low + offset] != lease.number
        ):
            continue
        wanted -= 1
        if found and found[-1][0] == offset + 1:
            found[-1] = (offset, found[-1][1] + 1)
        else:
            found.append((offset, 1))
    return found


def new_queue(state: SchedulerState, task_class: TaskClass) -> ClassQueue:
    """Return the queue of a class, made at its first task."""
    queue = state.queues.get(task_class)
    if queue is None:
        variants = variants_of(task_class)
        shape = tuple(variant.shape for variant in variants)
        queue = ClassQueue(task_class, state.next_order, variants, shape)
        state.next_order += 1
        state.enter_queue(queue)
        for variant in variants:
            # One function object each: by it the balancer remembers who had no room.
            variant.room_of = partial(_room_of, state, queue, variant)
    return queue


def _room_of(state: SchedulerState, queue: ClassQueue, variant: Variant, load: WorkerLoad) -> int:
    return room(state, queue, variant, state.workers[load.worker_id])
