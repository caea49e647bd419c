"""Locks, semaphores, events and queues over real gRPC, with processes that are killed."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

import rustray
from e2e import coordination_programs as programs
from helpers.cluster import Cluster, joined
from helpers.cut_line import CutLine
from helpers.waiting import aeventually, eventually
from rustray.proto.rustray.v1 import head_pb2 as wire

pytestmark = pytest.mark.slow

LEASE_S = 2.0
SETTINGS = {
    "SCHEDULER__LEASE_TTL_S": str(LEASE_S),
    "SCHEDULER__HEARTBEAT_INTERVAL_S": "0.5",
}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and a worker."""
    with running(tmp_path_factory.mktemp("coordination")) as cluster:
        yield cluster


@pytest.fixture
def own(cluster: Cluster) -> Iterator[None]:
    """This process's session with them."""
    with cluster.session():
        yield


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """Run a head and a worker."""
    with Cluster(folder, SETTINGS) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        yield cluster


def held(folder: Path) -> list[int]:
    """Return the fences that somebody has noted there."""
    return sorted(int(path.name.removeprefix("held-")) for path in folder.glob("held-*"))


@pytest.mark.usefixtures("own")
def test_a_killed_program_frees_what_it_held(cluster: Cluster, tmp_path: Path) -> None:
    """When its lease has ended: the lock, its place in a line, and the item it had just taken."""
    made = rustray.Queue("killed", codec="msgpack")
    made.put("item")
    argv = ["-m", "e2e.coordination_programs", "killed", str(tmp_path)]
    holder = cluster.launch("holder", argv, RUSTRAY_ADDRESS=cluster.address)
    eventually(lambda: held(tmp_path), 20)
    assert not rustray.Lock("killed").acquire(timeout=LEASE_S + 0.3)  # it renews its lease
    holder.kill()
    begun = time.monotonic()
    with rustray.Lock("killed") as lock:
        assert lock.fence > held(tmp_path)[0]
        assert time.monotonic() - begun < LEASE_S + 5.0
    assert made.empty()  # it was confirmed long ago
    rustray.Queue("killed-empty").put(1)
    assert rustray.Queue("killed-empty").get(timeout=10) == 1  # nobody stands before


@pytest.mark.usefixtures("own")
def test_a_killed_executor_frees_what_its_task_held(cluster: Cluster, tmp_path: Path) -> None:
    """At once; the next attempt of the task has a larger fence."""
    ref = programs.hold_until.remote("executor", str(tmp_path))
    first = eventually(lambda: held(tmp_path), 20)[0]
    for pid in cluster.workers["a"].executor_pids():
        psutil.Process(pid).kill()
    eventually(lambda: len(held(tmp_path)) == 2, 20)
    (tmp_path / "go").touch()
    assert rustray.get(ref, timeout=20) == held(tmp_path)[1] > first


@pytest.mark.usefixtures("own")
async def test_a_holder_that_is_cut_off_learns_that_its_lease_is_lost(cluster: Cluster) -> None:
    """Its fence is refused, and it can begin again when the line is back."""
    with CutLine(cluster.port) as line:
        far = rustray.HeadNode("127.0.0.1", line.port)
        near = cluster.head_node()
        async with far, near:
            lock, other = far.lock("cut"), near.lock("cut")
            await lock.aacquire()
            fence = lock.fence
            line.cut()
            assert await other.aacquire(timeout=LEASE_S + 8.0)
            assert other.fence > fence
            line.heal()
            with pytest.raises(rustray.LeaseLost):
                await lock.acheck()
            with pytest.raises(rustray.LeaseLost):
                await lock.arelease()
            assert not await lock.aacquire(timeout=0.1)
            await other.arelease()
            assert await lock.aacquire(timeout=10)
            await lock.arelease()


@pytest.mark.usefixtures("own")
async def test_who_may_ask_and_what_nonsense_does(cluster: Cluster) -> None:
    """A role that may not is refused, and what makes no sense is the caller's mistake."""
    token = cluster.run("token", "create", "--role", "observe").stdout.strip().splitlines()[-1]
    async with cluster.head_node(token.split()[-1]) as watcher:
        with pytest.raises(rustray.AuthorizationError, match="Coordinate"):
            await watcher.lock("x").aacquire()
    async with cluster.head_node() as head:
        await aeventually(lambda: joined(head, 1), 20)
        api = head._connected
        call = api._channel.unary_unary("/rustray.v1.HeadService/Coordinate", None, None)  # type: ignore[attr-defined]
        bad: Any = wire.CoordinateRequest
        for message in (
            b"\xff\xff",
            bad().SerializeToString(),
            bad(holder=b"x", number=1, action=77).SerializeToString(),
            bad(holder=b"x", number=1, action=4, kind=9).SerializeToString(),
            bad(holder=b"x", number=1, action=4, kind=1, name="x").SerializeToString(),
            bad(holder=b"x" * 99, number=1, action=1).SerializeToString(),
            bad(holder=b"x", number=1, action=1, term=5).SerializeToString(),
            bad(holder=b"x", number=1, action=1, wait_s=float("nan")).SerializeToString(),
        ):
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(message, metadata=api._metadata())  # type: ignore[attr-defined]
            assert raised.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
            )
        call = api._channel.unary_unary(  # type: ignore[attr-defined]
            "/rustray.v1.HeadService/CoordinateForTask", None, None
        )
        request = wire.CoordinateForTaskRequest(worker_id="nobody", lease=1, offset=0)
        request.request.number, request.request.action = 1, wire.COORDINATION_ACTION_RENEW
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request.SerializeToString(), metadata=api._metadata())  # type: ignore[attr-defined]
        assert raised.value.code() is grpc.StatusCode.FAILED_PRECONDITION  # LEASE_LOST
        async with head.lock("x"):
            pass


def test_a_restart_of_the_head_keeps_what_is_held_and_queued(tmp_path: Path) -> None:
    """By programs and by tasks; lines form again, and fences never go back."""
    with running(tmp_path) as cluster, cluster.session():
        mine, made = rustray.Lock("restart"), rustray.Queue("restart", maxsize=3)
        mine.acquire()
        made.put_many([1, 2, 3])
        rustray.Event("restart").set()
        in_task = programs.hold_until.remote("restart-task", str(tmp_path))
        in_line = programs.acquire_and_say.remote("restart")
        eventually(lambda: held(tmp_path), 20)
        got: list[object] = []
        waiting = threading.Thread(
            target=lambda: got.append(rustray.Queue("restart-2").get()), daemon=True
        )
        waiting.start()
        cluster.restart_head()
        mine.check()
        assert rustray.Event("restart").is_set()
        assert not rustray.Lock("restart").acquire(blocking=False)
        assert not rustray.Lock("restart-task").acquire(timeout=0.2)
        assert made.get_many() == [1, 2, 3]
        fence = mine.fence
        mine.release()
        assert rustray.get(in_line, timeout=30) > fence
        (tmp_path / "go").touch()
        assert rustray.get(in_task, timeout=30) == held(tmp_path)[0]  # the same attempt
        with rustray.Lock("restart-task") as lock:
            assert lock.fence > fence
        rustray.Queue("restart-2").put("late")
        waiting.join(20)
        assert got == ["late"]
