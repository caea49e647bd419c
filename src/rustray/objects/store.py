"""ObjectStore: what a node keeps in memory, what on disk, and what it refuses.

A core: its methods are told what happened and return commands for the shell
(`rustray.objects.node_store`); it has no clock and does nothing itself.

The four thresholds are parts of the limit, named as Dask names them. Above *target* the objects
that nobody has used for longest go to disk; above *spill* they do so as well when other things on
the machine need the memory (`measured`); above *pause* the worker starts no more tasks; and above
*terminate* nothing more is taken in: who asks waits while objects go to disk, and is refused if
none can. Nothing is killed.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rustray.objects.records import (
    Command,
    DropDisk,
    DropMemory,
    Granted,
    Lost,
    Place,
    Ready,
    Refused,
    Restore,
    Spill,
    StoreCounters,
    StoreLimits,
)

_ADVICE: Final = (
    ", and the disk takes no more of them: let go of values (rustray objects list, rustray.free), "
    "or give the worker more room (worker.object_memory_mb, worker.object_disk_mb)"
)
_TAKES_MEMORY: Final = frozenset({Place.RESERVED, Place.MEMORY, Place.WRITING, Place.READING})


@dataclass(slots=True, eq=False)
class _Object:
    object_id: str
    size: int
    place: Place = Place.WAITING
    pins: int = 0
    asked: int = 0
    """Pins that wait for it to come back."""
    has_file: bool = False
    is_freed: bool = False
    """Nobody may ask for it any more; it goes as soon as nothing holds it."""


@dataclass(slots=True)
class ObjectStore:
    """The accounts.

    Attributes:
        limits: As given.
        used: Bytes in memory, or promised to be.
        disk_used: Bytes on disk, or on their way there.
        measured: Bytes used of the limit by all on the machine, as last told; 0: never.
        counters: For people.
        is_disk_broken: The disk has refused, and was not tried again yet.
    """

    limits: StoreLimits
    used: int = 0
    disk_used: int = 0
    measured: int = 0
    counters: StoreCounters = field(default_factory=StoreCounters)
    is_disk_broken: bool = False
    _objects: dict[str, _Object] = field(default_factory=dict)
    _idle: OrderedDict[str, None] = field(default_factory=OrderedDict)
    """In memory and not pinned, longest unused first."""
    _queue: deque[str] = field(default_factory=deque)
    """Who waits for room, in order: to be written, or to come back."""
    _leaving: int = 0
    """Bytes in memory that are being written to disk."""

    # ── What is asked ─────────────────────────────────────────────────────────────────────

    def reserve(self, object_id: str, size: int) -> list[Command]:
        """Ask for room; `Granted` or `Refused` comes now or later.

        Raises:
            ValueError: the id is taken, or the size is none.
        """
        if object_id in self._objects:
            raise ValueError(f"object {object_id} exists")
        if size <= 0:
            raise ValueError(f"object {object_id} has {size} bytes")
        self._objects[object_id] = _Object(object_id, size)
        self._queue.append(object_id)
        return list(self._advance())

    def take_over(self, object_id: str, size: int) -> list[Command] | None:
        """Enter what is in memory already, beyond the limit too if the disk has room for that.

        Returns None if there is no room; raises ValueError as `reserve`.
        """
        excess = self.used - self._leaving + size - self._line(self.limits.terminate)
        if excess > max(self._disk_room(), 0):
            self.counters.refused += 1
            return None
        if object_id in self._objects or size <= 0:
            raise ValueError(f"object {object_id} exists, or has {size} bytes")
        self._objects[object_id] = _Object(object_id, size, Place.RESERVED)
        self.used += size
        return self.commit(object_id)

    def commit(self, object_id: str) -> list[Command]:
        """It is written, and nobody changes it any more."""
        found = self._objects[object_id]
        assert found.place is Place.RESERVED
        found.place = Place.MEMORY
        self.counters.put += 1
        self.counters.put_bytes += found.size
        return list(self._settle(found))

    def abort(self, object_id: str) -> list[Command]:
        """It will not be written: its room, or its place in the queue, is free again."""
        found = self._objects.pop(object_id)
        if found.place is Place.WAITING:
            self._queue.remove(object_id)
        else:
            assert found.place is Place.RESERVED
            self.used -= found.size
        return list(self._advance())

    def pin(self, object_id: str) -> list[Command]:
        """Hold it in memory; `Ready`, `Refused` or `Lost` comes now or later.

        Raises:
            KeyError: it is not here.
        """
        found = self._objects[object_id]
        if found.is_freed or found.place in (Place.WAITING, Place.RESERVED):
            raise KeyError(object_id)
        if found.place in (Place.MEMORY, Place.WRITING):
            found.pins += 1
            self._idle.pop(object_id, None)
            return [Ready(object_id)]
        found.asked += 1
        if found.place is Place.DISK and found.asked == 1:
            self._queue.append(object_id)
        return list(self._advance())

    def unpin(self, object_id: str) -> list[Command]:
        """Let go of one pin."""
        found = self._objects[object_id]
        assert found.pins > 0
        found.pins -= 1
        return list(self._settle(found))

    def free(self, object_id: str) -> list[Command]:
        """Nobody refers to it any more; unknown ids are no error, for it may come twice."""
        found = self._objects.get(object_id)
        if found is None or found.is_freed:
            return []
        found.is_freed = True
        self.counters.freed += 1
        if found.place is Place.WAITING:
            self._queue.remove(object_id)
            del self._objects[object_id]
            return [Refused(object_id, "it was freed"), *self._advance()]
        if found.place is Place.DISK and found.asked:
            self._queue.remove(object_id)
            lost: list[Command] = [Lost(object_id)] * found.asked
            return [*lost, *self._settle(found)]
        return list(self._settle(found))

    # ── What happened ─────────────────────────────────────────────────────────────────────

    def spilled(self, object_id: str, is_stored: bool) -> list[Command]:
        """It is on disk, or the disk has refused it."""
        found = self._objects[object_id]
        assert found.place is Place.WRITING
        found.place = Place.MEMORY
        self._leaving -= found.size
        if is_stored:
            found.has_file = True
            self.counters.spilled += 1
            self.counters.spilled_bytes += found.size
        else:
            self.disk_used -= found.size
            self.counters.disk_errors += 1
            self.is_disk_broken = True
        if is_stored and not found.pins and not found.is_freed:
            return [*self._leave(found), *self._advance()]
        return list(self._settle(found))

    def restored(self, object_id: str, is_whole: bool) -> list[Command]:
        """It is in memory again, or what the disk had is not what was written."""
        found = self._objects[object_id]
        assert found.place is Place.READING
        asked, found.asked = found.asked, 0
        if is_whole:
            found.place = Place.MEMORY
            self.counters.restored += 1
            self.counters.restored_bytes += found.size
            if found.is_freed:
                return [*[Lost(object_id)] * asked, *self._settle(found)]
            found.pins += asked
            return [*[Ready(object_id)] * asked, *self._settle(found)]
        self.counters.lost += 1
        self.used -= found.size
        self.disk_used -= found.size
        del self._objects[object_id]
        return [*[Lost(object_id)] * asked, DropDisk(object_id), *self._advance()]

    def restore_failed(self, object_id: str, text: str) -> list[Command]:
        """It could not be read, and may well be there: it stays where it is."""
        found = self._objects[object_id]
        assert found.place is Place.READING
        found.place = Place.DISK
        self.used -= found.size
        self.counters.disk_errors += 1
        asked, found.asked = found.asked, 0
        return [*[Refused(object_id, text)] * asked, *self._settle(found)]

    def measured_now(self, used_bytes: int) -> list[Command]:
        """So much of the limit is used by all on the machine."""
        self.measured = used_bytes
        return list(self._advance())

    def try_disk_again(self) -> list[Command]:
        """The disk that has refused may take something by now."""
        self.is_disk_broken = False
        return list(self._advance())

    # ── What it looks like ────────────────────────────────────────────────────────────────

    @property
    def is_paused(self) -> bool:
        """Whether no more tasks should start, until what is on its way to the disk has left.

        (Where nothing can leave, those that wait may be just the tasks that need what is here.)
        """
        is_high = max(self.used, self.measured) > self._line(self.limits.pause)
        return is_high and self._leaving > 0

    def __contains__(self, object_id: str) -> bool:
        found = self._objects.get(object_id)
        return found is not None and not found.is_freed and found.place is not Place.WAITING

    def __len__(self) -> int:
        return len(self._objects)

    def rows(self) -> Iterator[tuple[str, int, Place, int]]:
        """Yield (id, bytes, place, pins) of each object."""
        for found in self._objects.values():
            yield found.object_id, found.size, found.place, found.pins

    # ── How it decides ────────────────────────────────────────────────────────────────────

    def _line(self, part: float) -> int:
        return int(self.limits.memory_bytes * part)

    def _settle(self, found: _Object) -> Iterator[Command]:
        """Put an object where it belongs after something of it has changed."""
        if found.place is Place.MEMORY and not found.pins:
            if found.is_freed:
                self._idle.pop(found.object_id, None)
                self.used -= found.size
                yield DropMemory(found.object_id)
                yield from self._forget(found)
            else:
                self._idle[found.object_id] = None
                self._idle.move_to_end(found.object_id)
        elif found.place is Place.DISK and found.is_freed:
            yield from self._forget(found)
        yield from self._advance()

    def _forget(self, found: _Object) -> Iterator[Command]:
        del self._objects[found.object_id]
        if found.has_file:
            self.disk_used -= found.size
            yield DropDisk(found.object_id)

    def _advance(self) -> Iterator[Command]:
        """Give room to who waits, in order, and send to disk what has to go."""
        while self._queue:
            found = self._objects[self._queue[0]]
            lack = self.used + found.size - self._line(self.limits.terminate)
            if lack > 0:
                yield from self._make_room(lack)
                lack = self.used + found.size - self._line(self.limits.terminate)
            if lack > 0 and self._leaving > 0 and found.size <= self._line(self.limits.terminate):
                break  # room comes when it has left
            self._queue.popleft()
            yield from self._refuse(found) if lack > 0 else self._admit(found)
        yield from self._make_room(self._excess())

    def _excess(self) -> int:
        """Return how much should go to disk in the background."""
        over_target = self.used - self._line(self.limits.target)
        under_pressure = self.measured - self._line(self.limits.spill)
        return max(over_target, min(under_pressure, self.used))

    def _make_room(self, lack: int) -> Iterator[Command]:
        """Have so many bytes leave the memory, or as many as can."""
        lack -= self._leaving
        while lack > 0:
            found = next(self._leavers(), None)
            if found is None:
                return
            lack -= found.size
            if found.has_file:
                yield from self._leave(found)
            else:
                del self._idle[found.object_id]
                found.place = Place.WRITING
                self._leaving += found.size
                self.disk_used += found.size
                yield Spill(found.object_id)

    def _disk_room(self) -> int:
        return 0 if self.is_disk_broken else self.limits.disk_bytes - self.disk_used

    def _leavers(self) -> Iterator[_Object]:
        room = self._disk_room()
        for object_id in self._idle:
            found = self._objects[object_id]
            if found.has_file or found.size <= room:
                yield found

    def _leave(self, found: _Object) -> Iterator[Command]:
        self._idle.pop(found.object_id, None)
        found.place = Place.DISK
        self.used -= found.size
        yield DropMemory(found.object_id)

    def _admit(self, found: _Object) -> Iterator[Command]:
        self.used += found.size
        if found.place is Place.WAITING:
            found.place = Place.RESERVED
            yield Granted(found.object_id)
        else:
            found.place = Place.READING
            yield Restore(found.object_id)

    def _refuse(self, found: _Object) -> Iterator[Command]:
        self.counters.refused += 1
        text = (
            f"the object store is full: {found.size} bytes were asked for, {self.used} of "
            f"{self._line(self.limits.terminate)} are in use{_ADVICE}"
        )
        if found.place is Place.WAITING:
            del self._objects[found.object_id]
            yield Refused(found.object_id, text)
        else:
            asked, found.asked = found.asked, 0
            yield from [Refused(found.object_id, text)] * asked


def check(store: ObjectStore) -> None:
    """Look whether the accounts are right; for tests.

    Raises:
        AssertionError: they are not.
    """
    objects = store._objects.values()
    assert store.used == sum(o.size for o in objects if o.place in _TAKES_MEMORY)
    assert store._leaving == sum(o.size for o in objects if o.place is Place.WRITING)
    on_disk = (o for o in objects if o.has_file or o.place is Place.WRITING)
    assert store.disk_used == sum(o.size for o in on_disk)
    assert set(store._idle) == {
        o.object_id for o in objects if o.place is Place.MEMORY and not o.pins
    }
    waiting = {o.object_id for o in objects if o.place is Place.WAITING}
    waiting |= {o.object_id for o in objects if o.place is Place.DISK and o.asked}
    assert set(store._queue) == waiting
    assert len(store._queue) == len(waiting)
    assert store.used <= store._line(store.limits.terminate) + store.limits.disk_bytes
    assert store.disk_used <= store.limits.disk_bytes
