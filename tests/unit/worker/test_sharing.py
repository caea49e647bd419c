"""Large arguments and results pass between agent and executors as memory, not as bytes."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import socket
import sys
from collections.abc import Iterator
from typing import Any

import cloudpickle
import numpy as np
import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ResourceExhausted
from rustray.objects.recycling import POOL
from rustray.objects.segment import Segment
from rustray.task.codec import decode_failure, encode_call
from rustray.task.columns import PayloadColumn, SharedColumn
from rustray.task.flat import MIN_BUFFER_BYTES
from rustray.task.spec import Codec, ExecutorKind
from rustray.task.state import TaskState
from rustray.worker import wire
from rustray.worker.sharing import (
    ControlReader,
    ObjectMissing,
    ResultSender,
    segment_of,
    take_result,
)
from unit.worker.executor_harness import bench

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LARGE = MIN_BUFFER_BYTES // 8
KINDS = list(ExecutorKind)


def describe(*arrays: Any) -> Any:
    """Say what a task sees of its arguments."""
    return [(a.flags.writeable, a.ctypes.data % 64, int(a.sum())) for a in arrays]


def build(first: int, size: int) -> Any:
    """Return an array."""
    return np.arange(first, first + size, dtype=np.int64)


def open_files() -> int:
    gc.collect()  # of other tests
    POOL.clear()
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("kind", KINDS)
async def test_arguments_are_mapped_read_only_and_aligned(kind: ExecutorKind) -> None:
    """Whether a chunk has one large item, or several large ones, whatever their sizes."""
    before = open_files()
    async with bench() as b:
        executor = b.spawn(kind, 2)
        number = b.define(executor, describe)
        one = build(0, LARGE)
        lease = b.run(executor, number, [one])
        assert await b.values(lease, 1) == [[(False, 0, int(one.sum()))]]
        calls = [[build(i, LARGE + i), build(i, 10)] for i in range(5)]
        lease = b.run(executor, number, *calls)
        found = await b.values(lease, 5)
        for (large, small), (seen, own) in zip(calls, found, strict=True):
            assert seen[0] is False
            assert seen[1] % 16 == 0
            assert (seen[2], own[2]) == (large.sum(), small.sum())
            assert own[0] is True
    assert open_files() <= before


@pytest.mark.parametrize("kind", KINDS)
async def test_results_are_the_memory_that_the_executor_wrote(kind: ExecutorKind) -> None:
    """Small and large results of one chunk come back right, the large ones shared."""
    before = open_files()
    async with bench() as b:
        executor = b.spawn(kind, 2)
        number = b.define(executor, build)
        sizes = [3, LARGE, 5, LARGE + 1, 1, LARGE * 4, 2]
        lease = b.run(executor, number, *[(i, size) for i, size in enumerate(sizes)])
        values = await b.values(lease, len(sizes))
        for i, (size, value) in enumerate(zip(sizes, values, strict=True)):
            assert np.array_equal(value, build(i, size))
            assert value.flags.writeable == (size < LARGE)
        shared = [o for o in b.seen.outcomes if isinstance(o.payloads, SharedColumn)]
        assert sorted(o.offset - 100 for o in shared) == [1, 3, 5]
        assert all(o.payloads.size_bytes >= MIN_BUFFER_BYTES for o in shared)
        assert open_files() < before + 40
        # What a user holds outlives the executor, and the kernel knows no name of it.
        del shared, b.seen.outcomes[:]
    assert values[1].sum() == build(1, LARGE).sum()
    assert open_files() <= before


async def test_large_data_of_other_codecs_goes_the_same_way() -> None:
    """Bytes are bytes: what the codec makes of them is not asked."""

    def double(data: bytes) -> bytes:
        return data + data

    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, double)
        data = os.urandom(MIN_BUFFER_BYTES)
        lease = b.run(executor, number, [data])
        assert await b.values(lease, 1) == [data + data]
        assert isinstance(b.seen.outcomes[-1].payloads, SharedColumn)


def test_small_arguments_travel_as_bytes_and_shared_ones_are_not_copied_again() -> None:
    """A chunk of many small ones is no large one; memory of a client is passed on as it is."""
    small = PayloadColumn.of([bytes(1000)] * 1000)
    assert segment_of(small) is None
    segment = Segment.write([bytes(MIN_BUFFER_BYTES)])
    descriptor = segment_of(SharedColumn(segment.view(), segment))
    assert descriptor is not None
    try:
        assert os.path.sameopenfile(descriptor, segment.fileno())
    finally:
        os.close(descriptor)
    copied = segment_of(SharedColumn(segment.view()))
    assert copied is not None
    try:
        assert not os.path.sameopenfile(copied, segment.fileno())
    finally:
        os.close(copied)


async def test_without_descriptors_payloads_travel_as_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An agent that cannot make memory sends what it has the old way."""

    def refuse(_parts: object) -> Segment:
        raise OSError(24, "too many open files")

    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, describe)
        await b.pid_of(executor)
        monkeypatch.setattr(Segment, "write", refuse)
        one = build(0, LARGE)
        lease = b.run(executor, number, [one])
        ((seen,),) = await b.values(lease, 1)
        assert (seen[0], seen[2]) == (False, one.sum())


async def test_an_executor_without_descriptors_sends_bytes() -> None:
    """The result arrives all the same."""

    def starve(size: int) -> Any:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert soft
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        return np.arange(size)

    async with bench() as b:
        executor = b.spawn()
        lease = b.run(executor, b.define(executor, starve), [LARGE])
        (value,) = await b.values(lease, 1)
        assert np.array_equal(value, np.arange(LARGE))
        assert not isinstance(b.seen.outcomes[-1].payloads, SharedColumn)


@pytest.fixture
def channel() -> Iterator[tuple[socket.socket, ControlReader]]:
    """An executor's end, and the agent's reader of the other one."""
    theirs, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    reader = ControlReader(ours)
    yield theirs, reader
    reader.close()
    theirs.close()
    ours.close()


def _offer(theirs: socket.socket, number: int, descriptor: int) -> None:
    packet = wire.CONTROL.pack(wire.OBJECT, number, 0, 0)
    socket.send_fds(theirs, [packet], [descriptor])
    os.close(descriptor)


def test_orders_are_not_lost_on_the_way_to_some_memory(
    channel: tuple[socket.socket, ControlReader],
) -> None:
    """Packets before and between keep their order; memory may be taken in any."""
    theirs, reader = channel
    sender = ResultSender(theirs)
    theirs.send(wire.CONTROL.pack(wire.RECLAIMED, 1, 2, 3))
    first = sender.send(b"a" * MIN_BUFFER_BYTES)
    theirs.send(wire.CONTROL.pack(wire.RECLAIMED, 4, 5, 6))
    second = sender.send(b"b" * MIN_BUFFER_BYTES)
    assert first is not None
    assert second is not None
    assert sender.send(b"small") is None
    assert bytes(reader.take(*second)[0]) == b"b" * MIN_BUFFER_BYTES
    assert bytes(reader.take(*first)[0]) == b"a" * MIN_BUFFER_BYTES
    assert reader.packets
    assert [wire.CONTROL.unpack(reader.read() or b"")[1] for _ in range(2)] == [1, 4]
    assert reader.read() is None
    with pytest.raises(ObjectMissing):
        reader.take(9, 1)


@pytest.mark.parametrize("lie", ["file", "unsealed", "size", "number"])
def test_a_false_executor_cannot_make_the_agent_map_what_may_shrink(
    channel: tuple[socket.socket, ControlReader], lie: str, tmp_path: Any
) -> None:
    """User code may write to our channel: that is its executor's end, and no SIGBUS of ours."""
    theirs, reader = channel
    number = 1
    if lie == "file":
        descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
        os.write(descriptor, bytes(MIN_BUFFER_BYTES))
    elif lie == "unsealed":
        descriptor = os.memfd_create("x", os.MFD_ALLOW_SEALING)
        os.write(descriptor, bytes(MIN_BUFFER_BYTES))
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
    else:
        size = MIN_BUFFER_BYTES - 1 if lie == "size" else MIN_BUFFER_BYTES
        descriptor = Segment.write([bytes(size)]).detach()
        number = 2 if lie == "number" else 1
    before = open_files()
    _offer(theirs, number, descriptor)
    with pytest.raises(ValueError, match="memory"):
        take_result(reader, int(TaskState.SUCCEEDED), 1, MIN_BUFFER_BYTES)
    reader.close()
    assert open_files() <= before - 1


def test_an_agent_without_descriptors_reports_a_failure_that_says_so(
    channel: tuple[socket.socket, ControlReader],
) -> None:
    """The kernel drops what there is no room for; the task ends with a typed error."""
    theirs, reader = channel
    memory = ResultSender(theirs).send(bytes(MIN_BUFFER_BYTES))
    assert memory is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        state, payloads = take_result(reader, int(TaskState.SUCCEEDED), *memory)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert state == TaskState.FAILED
    info = decode_failure(payloads[0])
    assert info.code == ResourceExhausted.code
    assert "too many files are open" in info.message


async def test_an_executor_that_dies_leaves_nothing_of_what_it_passed_on() -> None:
    """Killed with a result on its way: the descriptors are closed with its handle."""
    before = open_files()

    def offer_and_die(size: int) -> None:
        import gc

        from rustray.worker.sharing import ResultSender

        sender = next(each for each in gc.get_objects() if isinstance(each, ResultSender))
        for _ in range(20):
            assert sender.send(bytes(size))
        os.kill(os.getpid(), 9)

    async with bench() as b:
        executor = b.spawn()
        b.run(executor, b.define(executor, offer_and_die), [MIN_BUFFER_BYTES])
        gone = await b.exit_of(executor)
        assert gone.signal == 9
        await aeventually(lambda: open_files() < before + 10)
    assert open_files() <= before


async def test_a_pickle_bomb_in_a_result_is_never_unpickled_by_the_agent() -> None:
    """A large result under a data codec passes through as bytes."""

    class Bomb:
        def __reduce__(self) -> Any:
            return os._exit, (99,)

    payload = cloudpickle.dumps((Bomb(), bytes(MIN_BUFFER_BYTES)))
    async with bench() as b:
        executor = b.spawn()

        def pass_on(data: bytes) -> bytes:
            return data

        lease = b.run_payloads(
            executor, b.define(executor, pass_on), [encode_call(Codec.PICKLE, (payload,), {})]
        )
        assert await b.values(lease, 1) == [payload]
