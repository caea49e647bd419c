"""What becomes of the values of a worker that leaves in good order: others take them over.

Each goes to another worker: of the same machine if there is one, for that maps it without a copy,
else to who keeps fewest. Where no worker can have it, it goes to the head, as far as it may travel
there and has room. What nobody can take is lost when the last task has left the worker, and is made
again if somebody needs it (`remaking`). The worker stays until it keeps nothing, or its time is up.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque

from rustray.common.errors import PayloadError
from rustray.scheduler import placed
from rustray.scheduler.commands import ReplaceOutcome
from rustray.scheduler.leaving import Asked, Leaving
from rustray.scheduler.records import StoredOutcome, WorkerRecord
from rustray.scheduler.results import size_of
from rustray.scheduler.state import SchedulerState
from rustray.scheduler.value_commands import AdoptObject, FreeObject, SurrenderObject
from rustray.task.columns import NO_PAYLOADS, PlacedColumn
from rustray.task.frames import Surrendered
from rustray.task.place import MAX_SENT_BYTES, Place, next_name

WINDOW = 64
"""Values of one worker that are on their way."""
HEAD_WINDOW_BYTES = 64 << 20
"""How much of that is on its way to the head."""
MAX_REFUSALS = 2
"""Workers that could not take a value, before the head takes it: there may be no way from node to
node."""
HEAD = ""
"""Stands for the head among the ids of workers that are asked to take a value."""


def begin(state: SchedulerState, worker: WorkerRecord) -> None:
    """A worker leaves, or has come back and still does."""
    leaving = state.leaving.get(worker.worker_id)
    if leaving is None:
        kept = state.kept_by.get(worker.worker_id, {}).values()
        state.leaving[worker.worker_id] = Leaving(deque(kept))
        return
    _ask_anew(state, worker.worker_id, leaving, HEAD)


def on_worker_ready(state: SchedulerState) -> None:
    """There is a worker more, which may take what nobody could."""
    for leaving in state.leaving.values():
        leaving.waiting += leaving.stuck
        leaving.stuck.clear()
        for refused in leaving.refused.values():
            refused &= {HEAD}


def on_worker_back(state: SchedulerState, worker: WorkerRecord) -> None:
    """A worker has a new session: what it was told in the last one may not have arrived."""
    for worker_id, leaving in state.leaving.items():
        _ask_anew(state, worker_id, leaving, worker.worker_id)


def on_worker_lost(state: SchedulerState, worker_id: str) -> None:
    """A worker is gone: with what it kept, and what it was to take."""
    state.leaving.pop(worker_id, None)
    for other, leaving in state.leaving.items():
        _ask_anew(state, other, leaving, worker_id)


def _ask_anew(state: SchedulerState, worker_id: str, leaving: Leaving, taker: str) -> None:
    """Think anew about the values that somebody was asked to take."""
    kept = state.kept_by.get(worker_id, {})
    for object_id in [each for each, one in leaving.asked.items() if one.taker == taker]:
        _settle(leaving, object_id)
        if object_id in kept:
            leaving.waiting.append(kept[object_id])


def _settle(leaving: Leaving, object_id: str) -> None:
    """Note that who was asked to take a value has answered, or will not."""
    asked = leaving.asked.pop(object_id)
    if asked.taker == HEAD:
        leaving.head_bytes -= asked.size


# ── Asking ────────────────────────────────────────────────────────────────────────────────────


def run(state: SchedulerState) -> None:
    """Have values taken from workers that leave, as far as the windows allow."""
    for worker_id, leaving in state.leaving.items():
        worker = state.workers[worker_id]
        if worker.state != "draining":
            continue  # it is away
        is_last = not (worker.leases or leaving.asked or leaving.waiting)
        if is_last and leaving.stuck:
            leaving.waiting += leaving.stuck
            leaving.stuck.clear()
        if leaving.waiting:
            _ask(state, worker, leaving)


def _ask(state: SchedulerState, worker: WorkerRecord, leaving: Leaving) -> None:
    asked = Counter(one.taker for one in leaving.asked.values())
    while leaving.waiting and len(leaving.asked) < WINDOW:
        stored = leaving.waiting.popleft()
        place = stored.place
        if place is None or stored.is_lost or place.worker_id != worker.worker_id:
            continue  # it was let go of meanwhile
        taker = _taker_of(state, worker, leaving, place, asked)
        if taker is not None:
            name = next_name(place.object_id, state.next_lease)
            state.next_lease += 1  # no other number is never used twice, by no head
            state.commands.append(AdoptObject(taker, place, name))
        elif _has_room(state, leaving, place):
            if leaving.head_bytes + place.size > HEAD_WINDOW_BYTES:
                leaving.waiting.appendleft(stored)
                return  # each answer makes room
            taker, name = HEAD, ""
            leaving.head_bytes += place.size
            state.commands.append(SurrenderObject(worker.worker_id, place.object_id))
        elif worker.leases or leaving.asked:
            leaving.stuck.append(stored)
            continue
        else:
            _give_up(state, stored, place)
            continue
        leaving.asked[place.object_id] = Asked(taker, place.size, name)
        asked[taker] += 1


def _taker_of(
    state: SchedulerState,
    worker: WorkerRecord,
    leaving: Leaving,
    place: Place,
    asked: Counter[str],
) -> str | None:
    """Return the worker that is best asked to take a value, or None."""
    refused, machine = leaving.refused.get(place.object_id, ()), worker.info.host_key
    if len(refused) >= MAX_REFUSALS:
        return None
    able = [
        (bool(machine) and one.info.host_key == machine and bool(one.info.object_port), one)
        for worker_id, one in state.workers.items()
        if one.state == "ready" and worker_id not in refused and one.info.address
    ]

    def burden(each: tuple[bool, WorkerRecord]) -> tuple[bool, int, int]:
        is_near, one = each
        count = len(state.kept_by.get(one.worker_id, ())) + asked[one.worker_id]
        return not is_near, count, one.load.order

    return min(able, key=burden)[1].worker_id if able else None


def _has_room(state: SchedulerState, leaving: Leaving, place: Place) -> bool:
    """Whether the head may take a value."""
    shelf, size = state.staying, place.size
    if size > MAX_SENT_BYTES or HEAD in leaving.refused.get(place.object_id, ()):
        return False
    under_way = sum(each.head_bytes for each in state.leaving.values())
    return shelf.bytes + under_way + size <= shelf.limit_bytes


def _give_up(state: SchedulerState, stored: StoredOutcome, place: Place) -> None:
    """Nobody can take a value, and its worker has nothing else to wait for."""
    stored.is_lost = True
    state.counters["objects_lost"] += 1
    state.commands.append(FreeObject(place.worker_id, place.object_id))
    if stored.pins or stored.is_wanted:
        state.to_remake.append(stored)


# ── Answers ───────────────────────────────────────────────────────────────────────────────────


def on_surrendered(state: SchedulerState, worker: WorkerRecord, item: Surrendered) -> None:
    """A worker that leaves has sent a value here, or says why not."""
    leaving = state.leaving.get(worker.worker_id)
    asked = None if leaving is None else leaving.asked.get(item.object_id)
    if leaving is None or asked is None or asked.taker != HEAD:
        return
    _settle(leaving, item.object_id)
    stored = state.kept_by.get(worker.worker_id, {}).get(item.object_id)
    if stored is not None and item.payloads is None:
        leaving.refused.setdefault(item.object_id, set()).add(HEAD)
        leaving.waiting.append(stored)


def on_adopted(state: SchedulerState, taker: WorkerRecord, item: Surrendered) -> bool:
    """Take what a worker says of a value that it was to take over; False: it was not asked."""
    for worker_id, leaving in state.leaving.items():
        asked = leaving.asked.get(item.object_id)
        if asked is not None and asked.taker == taker.worker_id:
            _settle(leaving, item.object_id)
            stored = state.kept_by.get(worker_id, {}).get(item.object_id)
            if stored is None or stored.place is None or stored.is_lost:
                break  # nobody needs it any more
            try:
                _move(state, taker, stored, asked.name, item)
            except PayloadError:
                leaving.refused.setdefault(item.object_id, set()).add(taker.worker_id)
                leaving.waiting.append(stored)
            return True
    _send_away(state, taker, item)
    return False


def _send_away(state: SchedulerState, taker: WorkerRecord, item: Surrendered) -> None:
    """Have a worker let go of what it has taken over for nobody."""
    if isinstance(item.payloads, PlacedColumn):
        with contextlib.suppress(PayloadError):
            place = placed.read_place(item.payloads)
            if placed.is_of(place, taker) and not placed.is_known(state, place):
                state.commands.append(FreeObject(taker.worker_id, place.object_id))


def _move(
    state: SchedulerState, taker: WorkerRecord, stored: StoredOutcome, name: str, item: Surrendered
) -> None:
    """Note that a value is with another worker.

    Raises:
        PayloadError: it is not.
    """
    new, old = placed.read_place(item.payloads), stored.place
    assert old is not None
    is_right = (new.object_id, new.size) == (name, old.size)
    if not is_right or placed.is_known(state, new) or not placed.is_of(new, taker):
        raise PayloadError("a worker says that it has taken over another value")
    placed.move(state, stored, new)
    state.staying.bytes -= size_of(stored)
    stored.payloads = PlacedColumn.of_item(new.pack())
    state.staying.bytes += size_of(stored)
    arguments = stored.arguments or NO_PAYLOADS
    state.commands.append(ReplaceOutcome(stored.number, stored.payloads, arguments))
    state.commands.append(FreeObject(old.worker_id, old.object_id))
    state.counters["objects_moved"] += 1
    if stored.is_wanted:
        state.commands.append(SurrenderObject(new.worker_id, new.object_id))
