"""Results that stayed with their worker: which there are, and who is told when one goes.

The head keeps a few bytes of each, its `Place`, and what it needs to have it made again: the task's
arguments. Making again is in `remaking`.
"""

from __future__ import annotations

import heapq

from rustray.common.errors import ObjectLost, PayloadError, RustRayError
from rustray.common.ids import SessionPrefix, task_id
from rustray.scheduler.events import ValueWanted
from rustray.scheduler.records import Batch, StoredOutcome, WorkerRecord
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.value_commands import FreeObject, SurrenderObject
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.inputs import producers_of
from rustray.task.place import MOVED, Place, is_put_name
from rustray.task.state import TaskState
from rustray.task.views import ObjectTotal, ObjectView


def place_of(state: SchedulerState, batch: Batch, offset: int, payloads: PlacedColumn,
             worker: WorkerRecord | None) -> Place:  # fmt: skip
    """Return where a value is.

    Raises:
        PayloadError: it is no place, another worker's, or another task's: who reports has lied.
    """
    task_class = batch.queue.task_class
    place = read_place(payloads)
    name = task_id(SessionPrefix(batch.prefix), batch.first + offset)
    if task_class.is_put:
        return place  # it was looked at when it was handed in
    is_its_own = place.object_id.startswith(f"{name}-") and MOVED not in place.object_id
    if not task_class.results_stay or not is_its_own:
        raise PayloadError("the worker has kept a value that was to come along, or another one")
    if worker is None or not is_of(place, worker) or is_known(state, place):
        raise PayloadError("the worker has reported a value as another one's")
    return place


def read_place(payloads: PayloadColumn | None) -> Place:
    """Read where a worker says that a value is.

    Raises:
        PayloadError: it does not say so.
    """
    if not isinstance(payloads, PlacedColumn):
        raise PayloadError("the worker does not say where the value is")
    try:
        return Place.unpack(payloads[0])
    except ValueError as error:
        raise PayloadError(f"the worker does not say where the value is: {error}") from None


def is_of(place: Place, worker: WorkerRecord) -> bool:
    """Whether a place is with this worker, by the ways that it has registered with."""
    info = worker.info
    said = (place.worker_id, place.host_key, place.port, place.address)
    is_local = not place.port and said == (info.worker_id, info.host_key, "", info.address)
    return is_local or said == (info.worker_id, info.host_key, info.object_port, info.address)


def is_known(state: SchedulerState, place: Place) -> bool:
    """Whether there is a value of this name there already."""
    return place.object_id in state.kept_by.get(place.worker_id, {})


def put_error(
    state: SchedulerState, payloads: PlacedColumn, *, is_put: bool
) -> RustRayError | None:
    """Say why what a client hands in cannot be with a worker, or None."""
    if not is_put:
        return PayloadError("arguments that are with a worker: put them, and pass the reference")
    try:
        place = Place.unpack(payloads[0])
    except ValueError as error:
        return PayloadError(f"a value without a place: {error}")
    worker = state.workers.get(place.worker_id)
    if worker is None:
        gone = f"worker {place.worker_id}, which keeps the value, has left; put it again"
        return ObjectLost(gone)
    is_right = is_put_name(place.object_id) and is_of(place, worker)
    if not is_right or is_known(state, place):
        return PayloadError("a value that was not put at that worker, or that another one has")
    return None


def enter(state: SchedulerState, stored: StoredOutcome, place: Place | None) -> None:
    """Note that a worker keeps a value, if one does."""
    if place is None:
        return
    stored.has_stayed = True
    _keep(state, stored, place)
    for batch, offset in made_of(state, stored):
        batch.heirs[offset] = batch.heirs.get(offset, 0) + 1


def _keep(state: SchedulerState, stored: StoredOutcome, place: Place) -> None:
    stored.place = place
    state.kept_by.setdefault(place.worker_id, {})[place.object_id] = stored
    leaving = state.leaving.get(place.worker_id)
    if leaving is not None:
        leaving.waiting.append(stored)


def move(state: SchedulerState, stored: StoredOutcome, place: Place) -> None:
    """Note that another worker keeps a value from now on."""
    _drop(state, stored)
    _keep(state, stored, place)


def _drop(state: SchedulerState, stored: StoredOutcome) -> Place | None:
    """Take a value out of its worker's list; returns where it was, None if that has none of it."""
    place = stored.place
    kept = state.kept_by.get(place.worker_id, {}) if place is not None else {}
    if place is None or kept.get(place.object_id) is not stored:
        return None
    del kept[place.object_id]
    if not kept:
        del state.kept_by[place.worker_id]
    return place


def takes(state: SchedulerState, stored: StoredOutcome) -> list[tuple[Batch, int]]:
    """Return the tasks, as far as they are known, whose values a task has taken."""
    inputs = stored.batch.inputs
    if inputs is None:
        return []
    found = [state.find(*one) for one in producers_of(inputs[stored.offset])]
    return [one for one in found if one is not None]


def made_of(state: SchedulerState, stored: StoredOutcome) -> list[tuple[Batch, int]]:
    """Return those of `takes` that know of it: none that has come since, by a forgotten id."""
    return [one for one in takes(state, stored) if one[0].number <= stored.batch.number]


def free(state: SchedulerState, stored: StoredOutcome) -> None:
    """Have a worker let go of a value that can be made again, if what is made of it is lost."""
    place = _drop(state, stored)
    if place is None:
        return
    stored.is_lost = True
    state.commands.append(FreeObject(place.worker_id, place.object_id))


def forget(state: SchedulerState, stored: StoredOutcome) -> list[StoredOutcome]:
    """Forget a value; returns what only this one has kept."""
    if stored.place is None:
        return []
    free(state, stored)
    stored.place, stored.is_lost = None, False
    loose: list[StoredOutcome] = []
    for batch, offset in made_of(state, stored):
        left = batch.heirs[offset] = batch.heirs.get(offset, 1) - 1
        if left:
            continue
        del batch.heirs[offset]
        other = outcome_at(batch, offset)
        if other is not None and other.is_released and not (other.pins or other.is_evicted):
            loose.append(other)
    return loose


def find(state: SchedulerState, object_id: str) -> StoredOutcome | None:
    """Return the outcome whose value has this name at its worker."""
    for kept in state.kept_by.values():
        if object_id in kept:
            return kept[object_id]
    return None


def is_away(state: SchedulerState, stored: StoredOutcome) -> bool:
    """Whether the worker that keeps a value has no session now, and was not given up."""
    place = stored.place
    if place is None or stored.is_lost:
        return False
    worker = state.workers.get(place.worker_id)
    return worker is None or worker.state not in ("ready", "draining")


def is_asked(stored: StoredOutcome) -> bool:
    """Whether the worker that keeps a value was asked to send it, and has not answered."""
    return stored.is_wanted and not (stored.is_lost or stored.trouble)


def unknown(state: SchedulerState, worker_id: str, object_ids: tuple[str, ...]) -> tuple[str, ...]:
    """Return which of a worker's objects nobody needs any more, or takes for lost."""
    kept = state.kept_by.get(worker_id, {})
    found = {each: kept.get(each) for each in object_ids}
    return tuple(each for each, stored in found.items() if stored is None or stored.is_lost)


def on_wanted(state: SchedulerState, event: ValueWanted) -> None:
    """Bring a value to the head, or have it made again: who asked could not get it where it is."""
    found = state.find(event.prefix, event.sequence)
    stored = None if found is None else outcome_at(*found)
    if stored is None or stored.place is None or stored.place.object_id != event.object_id:
        return
    want(state, stored)


def want(state: SchedulerState, stored: StoredOutcome) -> None:
    """Bring a value to the head, or have it made again."""
    place = stored.place
    assert place is not None
    is_asked, stored.is_wanted, stored.trouble = stored.is_wanted, True, ""
    if stored.is_lost or (place.worker_id not in state.workers and state.ghost is None):
        stored.is_lost = True
        state.to_remake.append(stored)
    elif not is_asked:
        state.commands.append(SurrenderObject(place.worker_id, place.object_id))


def outcome_at(batch: Batch, offset: int) -> StoredOutcome | None:
    """Return what is kept of how a task has ended; None too if it has not."""
    if not TaskState(batch.state[offset]).is_terminal:
        return None
    return batch.outcomes[batch.lease[offset]]


def on_worker_lost(state: SchedulerState, worker_id: str) -> None:
    """Note that a worker's values are lost; what somebody waits for is made again."""
    for stored in state.kept_by.get(worker_id, {}).values():
        state.counters["objects_lost"] += not stored.is_lost
        stored.is_lost = True
        if stored.pins or stored.is_wanted:
            state.to_remake.append(stored)


def on_workers_gone(state: SchedulerState) -> None:
    """No worker of before comes back any more."""
    for worker_id in [each for each in state.kept_by if each not in state.workers]:
        on_worker_lost(state, worker_id)


def ask_again(state: SchedulerState, worker: WorkerRecord) -> None:
    """Have a worker that is back send what was asked for while it was not."""
    for object_id, stored in state.kept_by.get(worker.worker_id, {}).items():
        if stored.is_wanted and not stored.trouble:
            state.commands.append(SurrenderObject(worker.worker_id, object_id))


def on_worker_back(state: SchedulerState, worker_id: str) -> None:
    """A worker that was given up has not died: it has what nobody has made again."""
    for stored in state.kept_by.get(worker_id, {}).values():
        stored.is_lost = False


def story(place: Place, function: str, *, is_released: bool) -> ObjectLost:
    """Return the error for a value that cannot be made again."""
    why = f"was kept by worker {place.worker_id}, which was lost"
    if is_released:
        why = "was let go of (rustray.free was called, or its program dropped the last reference)"
    return ObjectLost(
        f"the value ({place.size} bytes) {why}, and {function} cannot be run again to make it: "
        "hand it in again"
    )


def object_views(
    state: SchedulerState, now: float, limit: int
) -> tuple[list[ObjectView], list[ObjectTotal]]:
    """Return the largest values that stay with workers, and what each worker keeps."""
    totals: list[ObjectTotal] = []
    sized: list[tuple[int, str, StoredOutcome]] = []
    for worker_id, kept in sorted(state.kept_by.items()):
        mine = [(_size_of(stored), name, stored) for name, stored in kept.items()]
        lost = sum(stored.is_lost for _, _, stored in mine)
        totals.append(ObjectTotal(worker_id, len(mine), sum(size for size, _, _ in mine), lost))
        sized += mine
    largest = heapq.nlargest(limit, sized, key=lambda one: one[:2])
    return [_view_of(stored, now) for _, _, stored in largest], totals


def _size_of(stored: StoredOutcome) -> int:
    return 0 if stored.place is None else stored.place.size


def _view_of(stored: StoredOutcome, now: float) -> ObjectView:
    place, batch = stored.place, stored.batch
    assert place is not None
    return ObjectView(
        place.object_id,
        task_id(SessionPrefix(batch.prefix), batch.first + stored.offset),
        batch.queue.task_class.function,
        place.size,
        place.worker_id,
        max(now - stored.finished_at_s, 0.0),
        stored.pins,
        stored.is_lost,
    )
