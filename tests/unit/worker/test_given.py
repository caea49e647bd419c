"""Inputs in the node's memory go to the executor with the task; nothing depends on that."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from helpers.waiting import aeventually
from rustray.objects.segment import Segment
from rustray.task import codec as codecs
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.inputs import WHOLE, InputValue, Slot, join_call, join_parts
from rustray.task.place import Place
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState
from rustray.worker import wire
from rustray.worker.given import MAX_GIVEN, NOTHING, ROOM, Given, give
from unit.worker.executor_harness import Bench, bench

VALUE = list(range(50_000))


def placed(name: str, value: object = VALUE) -> tuple[PlacedColumn, Segment]:
    """Return the place of a value, and its memory."""
    content = codecs.encode_value(Codec.PICKLE, value)
    segment = Segment.write([content])
    return PlacedColumn.of_item(Place(name, segment.size, "w-1").pack()), segment


def call_with(*places: PlacedColumn) -> bytes:
    """Encode a call that takes them all."""
    slots = tuple(Slot(index) for index in range(len(places)))
    call = codecs.encode_call(Codec.PICKLE, slots, {})
    return join_call(call, [InputValue(int(Codec.PICKLE), one, WHOLE, "t") for one in places])


def taker(executor: int, made: Bench) -> int:
    """Introduce a function that counts the descriptors of its process, and takes inputs."""

    def count(*values: list[int]) -> tuple[int, int]:
        return sum(map(len, values)), len(os.listdir("/proc/self/fd"))

    code = cloudpickle.dumps(count)
    task_class = TaskClass("job", code_hash=b"2" * 32, codec=Codec.PICKLE, has_inputs=True)
    return made.define_class(executor, task_class, code)


async def test_an_executor_needs_no_port_for_what_comes_along() -> None:
    """There is none here; again and again the values are there, and no descriptor stays."""
    place, segment = placed("a-1")
    other, beside = placed("a-2", [1])
    known = {place[0]: segment, other[0]: beside}
    async with bench() as made:
        made.pool.look = known.get
        executor = made.spawn()
        number = taker(executor, made)
        counts = set()
        for _ in range(5):
            lease = made.run_payloads(executor, number, [call_with(place, other)])
            ((size, descriptors),) = await made.values(lease, 1)
            assert size == len(VALUE) + 1
            counts.add(descriptors)
        assert len(counts) == 1


async def test_two_parts_of_one_result_leave_no_descriptor_behind() -> None:
    """Bug: its memory came twice, and one of the two stayed open for ever."""
    content = join_parts([codecs.encode_value(Codec.PICKLE, each) for each in (VALUE, [1])])
    segment = Segment.write([content])
    place = PlacedColumn.of_item(Place("a-1", segment.size, "w-1").pack())
    call = codecs.encode_call(Codec.PICKLE, (Slot(0), Slot(1)), {})
    parts = [InputValue(int(Codec.PICKLE), place, index, "t") for index in (0, 1)]
    async with bench() as made:
        made.pool.look = {place[0]: segment}.get
        executor = made.spawn()
        number = taker(executor, made)
        counts = set()
        for _ in range(5):
            lease = made.run_payloads(executor, number, [join_call(call, parts)])
            ((size, descriptors),) = await made.values(lease, 1)
            assert size == len(VALUE) + 1
            counts.add(descriptors)
        assert len(counts) == 1


def test_what_comes_twice_is_closed_once(pair: tuple[socket.socket, socket.socket]) -> None:
    """Whatever an agent sends, the executor keeps no more than it knows of."""
    place, segment = placed("a-1")
    messages, beside = give(7, PayloadColumn.of([call_with(place)]), {place[0]: segment}.get)
    before, given = len(os.listdir("/proc/self/fd")), Given()
    for _ in range(3):
        pair[0].sendmsg([messages], beside)
        _pass_on(pair, given, place[0])
    ((level, kind, data),) = beside
    pair[0].sendmsg([messages], [(level, kind, bytes(data) * 2)])
    _pass_on(pair, given, place[0])
    given.drop()
    assert len(os.listdir("/proc/self/fd")) == before


async def test_nothing_is_kept_of_tasks_that_never_begin(tmp_path: Path) -> None:
    """What came along with those that are taken back is let go of with them."""
    place, segment = placed("a-1")
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)

    def wait() -> str:
        with open(gate) as opened:
            return opened.read()

    async with bench() as made:
        made.pool.look = {place[0]: segment}.get
        executor = made.spawn()
        number = taker(executor, made)
        first = made.run_payloads(executor, number, [call_with(place)])
        ((_, before),) = await made.values(first, 1)
        waiting = made.run(executor, made.define(executor, wait), ())
        await aeventually(lambda: made.pool.running(executor) == (waiting, 100))
        for _ in range(5):
            made.run_payloads(executor, number, [call_with(place)])
        made.pool.reclaim(executor)
        await aeventually(lambda: made.seen.returned)
        await asyncio.to_thread(Path(gate).write_text, "go")
        assert await made.values(waiting, 1) == ["go"]
        last = made.run_payloads(executor, number, [call_with(place)])
        assert await made.values(last, 1) == [(len(VALUE), before)]


@pytest.mark.parametrize("kind", [ExecutorKind.THREAD, ExecutorKind.ASYNC])
async def test_others_ask_the_port(kind: ExecutorKind) -> None:
    """Where several tasks share a process they do, and say so where there is none."""
    place, segment = placed("a-1")
    async with bench() as made:
        made.pool.look = {place[0]: segment}.get
        executor = made.spawn(kind)
        lease = made.run_payloads(executor, taker(executor, made), [call_with(place)])
        assert await made.ended(lease, 1) == {0: TaskState.LEASED}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A data channel."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


def _pass_on(pair: tuple[socket.socket, socket.socket], given: Given, *what: bytes) -> None:
    """Receive one packet as an executor does, and read the messages in it."""
    splitter = wire.MessageSplitter()
    data, beside, _, _ = pair[1].recvmsg(1 << 16, ROOM, socket.MSG_CMSG_CLOEXEC)
    given.receive(beside)
    for kind, number, content, start, stop in splitter.feed(data):
        assert (kind, number) == (wire.GIVEN, 7)
        given.name(content, start, stop)
    assert set(given.found) == set(what)


def test_a_descriptor_that_does_not_come_is_not_mistaken_for_the_next(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """An executor may be short of descriptors: it finds what there is, by what it is."""
    (one, first), (two, second) = placed("a-1"), placed("a-2", [2])
    known = {one[0]: first, two[0]: second}
    messages, beside = give(7, PayloadColumn.of([call_with(one, two)]), known.get)
    ((level, kind, data),) = beside
    pair[0].sendmsg([messages], [(level, kind, bytes(data)[4:])])
    given = Given()
    _pass_on(pair, given, two[0])
    assert given.take(one[0], first.size) is None
    taken = given.take(two[0], second.size)
    assert taken is not None
    assert codecs.decode_value(Codec.PICKLE, bytes(taken.view())) == [2]
    given.drop()
    assert given.take(two[0], second.size) is None


def test_what_is_not_here_and_too_much_does_not_go_along() -> None:
    """Nor does anything of a chunk of several tasks, or of what is no call with inputs."""
    place, segment = placed("a-1")
    known = {place[0]: segment}.get
    one = call_with(place)
    assert give(7, PayloadColumn.of([one]), known)[0]
    for payloads in (
        [one, one],
        [call_with(*[place] * (MAX_GIVEN + 1))],
        [call_with(placed("a-2")[0])],
        [b"\2\0\0\0" + bytes(80)],
        [b"\xff" * 80],
        [b""],
    ):
        assert give(7, PayloadColumn.of(payloads), known) == (b"", NOTHING)


async def test_a_chunk_is_sent_though_too_many_descriptors_are_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel limits them: ETOOMANYREFS; the executor asks the port, here in vain."""
    place, segment = placed("a-1")
    async with bench() as made:
        made.pool.look = {place[0]: segment}.get
        executor = made.spawn()
        number = taker(executor, made)
        first = made.run_payloads(executor, number, [call_with(place)])
        await made.values(first, 1)
        refused = []
        send = socket.socket.sendmsg

        def refuse(sock: socket.socket, parts: list[bytes], beside: object = ()) -> int:
            if beside:
                refused.append(beside)
                raise OSError(errno.ETOOMANYREFS, "too many references")
            return send(sock, parts)

        monkeypatch.setattr(socket.socket, "sendmsg", refuse)
        lease = made.run_payloads(executor, number, [call_with(place)])
        assert await made.ended(lease, 1) == {0: TaskState.LEASED}
        assert refused
