"""The accounts of an object store: what fits, what goes to disk, what is refused."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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
    StoreLimits,
)
from rustray.objects.store import ObjectStore, check

FULL = (
    "the object store is full: 300 bytes were asked for, 900 of 950 are in use, and the disk takes "
    "no more of them: let go of values (rustray objects list, rustray.free), or give the worker "
    "more room (worker.object_memory_mb, worker.object_disk_mb)"
)


def a_store(memory: int = 1000, disk: int = 10_000) -> ObjectStore:
    return ObjectStore(StoreLimits(memory, disk))


def put(store: ObjectStore, object_id: str, size: int) -> list[Command]:
    """Reserve where there is room, and commit; returns what follows."""
    first = store.reserve(object_id, size)
    assert Granted(object_id) in first
    first.remove(Granted(object_id))
    return first + store.commit(object_id)


def places(store: ObjectStore) -> dict[str, Place]:
    return {object_id: place for object_id, _, place, _ in store.rows()}


def test_above_target_what_was_not_used_for_longest_goes_to_disk() -> None:
    """And only as much as has to; a pin counts as use."""
    store = a_store()
    for name in "abc":
        assert put(store, name, 200) == []
    assert store.pin("a") == [Ready("a")]
    assert store.unpin("a") == []
    assert put(store, "d", 200) == [Spill("b")]
    assert store.used == 800  # it is there until it is safely on disk
    assert store.spilled("b", True) == [DropMemory("b")]
    assert store.used == 600
    assert store.disk_used == 200
    check(store)


def test_what_is_pinned_stays() -> None:
    """Who holds an object finds it in memory, whatever comes."""
    store = ObjectStore(StoreLimits(1000, 10_000, target=0.65, spill=0.7))
    for name in "abc":
        put(store, name, 300)
        assert store.pin(name) == [Ready(name)]
    assert store.spilled("c", True) == []  # it was on its way when it was pinned
    assert store.used == 900
    assert store.reserve("d", 300) == [Refused("d", FULL)]
    assert store.unpin("b") == [Spill("b")]  # above the target, and now it may
    assert store.unpin("c") == []  # enough is leaving
    assert store.spilled("b", True) == [DropMemory("b")]
    check(store)


def test_who_asks_for_room_waits_while_objects_leave_and_in_order() -> None:
    """First come, first served: a small one does not overtake a large one."""
    store = a_store()
    put(store, "a", 500)
    assert store.reserve("big", 900) == [Spill("a")]
    assert store.reserve("small", 10) == []
    assert store.spilled("a", True) == [DropMemory("a"), Granted("big"), Granted("small")]
    check(store)


def test_a_disk_that_refuses_is_left_alone_until_it_is_tried_again() -> None:
    """The object stays in memory, who waits for room is refused; later it goes on."""
    store = a_store()
    put(store, "a", 500)
    assert store.reserve("b", 900) == [Spill("a")]
    assert [type(each) for each in store.spilled("a", False)] == [Refused]
    assert store.is_disk_broken
    assert places(store) == {"a": Place.MEMORY}
    assert put(store, "c", 300) == []  # over the target, but there is nowhere to go
    assert store.try_disk_again() == [Spill("a")]
    check(store)


def test_a_full_disk_takes_no_more_but_what_fits() -> None:
    """The bound on disk holds."""
    store = a_store(disk=250)
    for name in "abc":
        put(store, name, 200)
    assert put(store, "d", 200) == [Spill("a")]
    store.spilled("a", True)
    assert put(store, "e", 200) == []
    assert store.disk_used == 200
    check(store)


def test_an_object_comes_back_when_it_is_asked_for_once_for_all_who_ask() -> None:
    """And goes again without being written a second time."""
    store = a_store()
    put(store, "a", 500)
    put(store, "b", 400)
    assert store.spilled("a", True) == [DropMemory("a")]
    assert store.pin("a") == [Restore("a"), Spill("b")]
    assert store.pin("a") == []
    assert store.restored("a", True) == [Ready("a"), Ready("a")]
    assert store.spilled("b", True) == [DropMemory("b")]
    store.unpin("a")
    store.unpin("a")
    assert put(store, "c", 300) == [DropMemory("a")]
    check(store)


def test_what_the_disk_has_damaged_is_lost() -> None:
    """All who wait for it are told, and it is forgotten; a disk that fails to read keeps it."""
    store = a_store()
    put(store, "a", 500)
    put(store, "b", 400)
    store.spilled("a", True)
    store.pin("a")
    assert store.restore_failed("a", "EIO") == [Refused("a", "EIO")]
    assert store.pin("a") == [Restore("a")]
    assert store.restored("a", False) == [Lost("a"), DropDisk("a")]
    assert "a" not in store
    with pytest.raises(KeyError):
        store.pin("a")
    check(store)


def test_freed_objects_go_when_nothing_holds_them() -> None:
    """Pinned, on the way to disk, on the way back, waiting: each ends in its own time."""
    store = a_store()
    put(store, "pinned", 100)
    store.pin("pinned")
    assert store.free("pinned") == []
    assert store.used == 100
    with pytest.raises(KeyError):
        store.pin("pinned")
    assert store.unpin("pinned") == [DropMemory("pinned")]
    put(store, "a", 500)
    assert put(store, "b", 400) == [Spill("a")]
    assert store.free("a") == []
    assert store.spilled("a", True) == [DropMemory("a"), DropDisk("a")]
    assert store.free("a") == []
    assert put(store, "c", 300) == [Spill("b")]
    assert store.spilled("b", True) == [DropMemory("b")]
    assert store.pin("b") == [Restore("b"), Spill("c")]
    assert store.free("b") == []
    assert store.restored("b", True) == [Lost("b"), DropMemory("b"), DropDisk("b")]
    assert store.reserve("late", 800) == []
    assert store.free("late") == [Refused("late", "it was freed")]
    assert places(store) == {"c": Place.WRITING}
    check(store)


def test_pressure_of_others_sends_objects_to_disk_and_pauses() -> None:
    """Thresholds 0.70 and 0.80 look at all that is used."""
    store = a_store()
    put(store, "a", 200)
    put(store, "b", 200)
    assert store.measured_now(700) == []
    assert store.measured_now(750) == [Spill("a")]
    assert not store.is_paused
    store.measured_now(801)
    assert store.is_paused
    check(store)


@pytest.mark.parametrize(
    "lines", [(0, 0.7, 0.8, 0.9), (0.8, 0.7, 0.8, 0.9), (0.6, 0.7, 0.8, 1.1), (0.6, 0.9, 0.8, 1)]
)
def test_thresholds_out_of_order_are_refused(lines: tuple[float, ...]) -> None:
    """They are parts of the limit, each at least the one before it."""
    with pytest.raises(ValueError, match="thresholds"):
        StoreLimits(1000, 0, *lines)


def test_an_id_that_is_taken_or_a_size_of_nothing_is_refused() -> None:
    """Two objects never share an id."""
    store = a_store()
    put(store, "a", 1)
    with pytest.raises(ValueError, match="exists"):
        store.reserve("a", 1)
    with pytest.raises(ValueError, match="0 bytes"):
        store.reserve("b", 0)


class StoreMachine(RuleBasedStateMachine):
    """Anything in any order; a shell that answers late and sometimes badly."""

    def __init__(self) -> None:
        super().__init__()
        self.store = ObjectStore(StoreLimits(1000, 1500))
        self.number = 0
        self.waiting: set[str] = set()
        self.granted: set[str] = set()
        self.asked: dict[str, int] = {}
        self.pins: dict[str, int] = {}
        self.in_memory: set[str] = set()
        self.on_disk: set[str] = set()
        self.spilling: set[str] = set()
        self.restoring: set[str] = set()

    def _answer_reader(self, object_id: str) -> None:
        self.asked[object_id] -= 1
        assert self.asked[object_id] >= 0
        if not self.asked[object_id]:
            del self.asked[object_id]

    def _run(self, commands: list[Command]) -> None:
        for command in commands:
            name = command.object_id
            match command:
                case Granted():
                    self.waiting.remove(name)
                    self.granted.add(name)
                case Refused() if name in self.waiting:
                    self.waiting.remove(name)
                case Ready():
                    assert name in self.in_memory
                    self._answer_reader(name)
                    self.pins[name] = self.pins.get(name, 0) + 1
                case Refused() | Lost():
                    self._answer_reader(name)
                case _:
                    self._move(command)

    def _move(self, command: Command) -> None:
        name = command.object_id
        match command:
            case Spill():
                assert name in self.in_memory
                assert name not in self.on_disk | self.spilling
                assert not self.pins.get(name)
                self.spilling.add(name)
            case Restore():
                assert name in self.on_disk
                assert name not in self.in_memory | self.restoring
                self.restoring.add(name)
            case DropMemory():
                assert not self.pins.get(name)
                assert name not in self.spilling
                self.in_memory.remove(name)
            case DropDisk():
                self.on_disk.remove(name)

    @rule(size=st.integers(1, 1100))
    def reserve(self, size: int) -> None:
        self.number += 1
        name = f"o{self.number}"
        self.waiting.add(name)
        self._run(self.store.reserve(name, size))

    @precondition(lambda self: self.granted)
    @rule(data=st.data(), is_written=st.booleans())
    def write(self, data: st.DataObject, is_written: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.granted)))
        self.granted.remove(name)
        if is_written:
            self.in_memory.add(name)
            self._run(self.store.commit(name))
        else:
            self._run(self.store.abort(name))

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.waiting)))
        self.waiting.remove(name)
        self._run(self.store.abort(name))

    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        name = f"o{data.draw(st.integers(1, self.number + 1))}"
        try:
            commands = self.store.pin(name)
        except KeyError:
            return
        self.asked[name] = self.asked.get(name, 0) + 1
        self._run(commands)

    @precondition(lambda self: any(self.pins.values()))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, c in self.pins.items() if c)))
        self.pins[name] -= 1
        self._run(self.store.unpin(name))

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        self._run(self.store.free(f"o{data.draw(st.integers(1, self.number + 1))}"))

    @precondition(lambda self: self.spilling)
    @rule(data=st.data(), is_stored=st.booleans())
    def disk_answers(self, data: st.DataObject, is_stored: bool) -> None:
        name = data.draw(st.sampled_from(sorted(self.spilling)))
        self.spilling.remove(name)
        if is_stored:
            self.on_disk.add(name)
        self._run(self.store.spilled(name, is_stored))

    @precondition(lambda self: self.restoring)
    @rule(data=st.data(), how=st.sampled_from(["whole", "damaged", "fails"]))
    def disk_gives_back(self, data: st.DataObject, how: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.restoring)))
        self.restoring.remove(name)
        if how == "fails":
            self._run(self.store.restore_failed(name, "EIO"))
            return
        if how == "whole":
            self.in_memory.add(name)
        self._run(self.store.restored(name, how == "whole"))

    @rule(used=st.integers(0, 1200))
    def measured(self, used: int) -> None:
        self._run(self.store.measured_now(used))

    @rule()
    def try_disk(self) -> None:
        self._run(self.store.try_disk_again())

    @invariant()
    def accounts_are_right(self) -> None:
        check(self.store)
        rows = list(self.store.rows())
        assert self.in_memory == {n for n, _, p, _ in rows if p in (Place.MEMORY, Place.WRITING)}
        assert {n: c for n, c in self.pins.items() if c} == {n: c for n, _, _, c in rows if c}

    def _disk_does_all(self) -> None:
        while self.spilling or self.restoring:
            if self.spilling:
                name = self.spilling.pop()
                self.on_disk.add(name)
                self._run(self.store.spilled(name, True))
            else:
                name = self.restoring.pop()
                self.in_memory.add(name)
                self._run(self.store.restored(name, True))

    def teardown(self) -> None:
        """When all is over, nobody waits and nothing is left."""
        self._disk_does_all()
        while self.granted or any(self.pins.values()):
            if self.granted:
                self._run(self.store.abort(self.granted.pop()))
            else:
                name = next(n for n, c in self.pins.items() if c)
                self.pins[name] -= 1
                self._run(self.store.unpin(name))
            self._disk_does_all()
        assert not self.waiting
        assert not self.asked
        for name, *_ in list(self.store.rows()):
            self._run(self.store.free(name))
        self._disk_does_all()
        assert (self.store.used, self.store.disk_used, len(self.store)) == (0, 0, 0)
        assert not self.in_memory
        assert not self.on_disk


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestStore = StoreMachine.TestCase
