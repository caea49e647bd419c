"""The store of a node with real memory and a real disk."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ObjectLost, ResourceExhausted
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.objects.segment import Segment
from rustray.objects.spill_files import SpillFiles
from rustray.objects.store import check

KB = 1000
_NODE = """
import sys, time
from pathlib import Path
from rustray.objects.records import StoreLimits
from rustray.objects.segment import Segment
from rustray.objects.spill_files import SpillFiles
files = SpillFiles(Path(sys.argv[1]), "other")
files.write("a", Segment.write([b"x" * 1000]))
print("ready", flush=True)
time.sleep(600)
"""


@contextlib.asynccontextmanager
async def a_store(
    root: Path | None, memory: int = 1000 * KB, disk: int = 10_000 * KB
) -> AsyncIterator[NodeStore]:
    files = SpillFiles(root, "node-1") if root is not None else None
    limits = StoreLimits(memory, disk if root is not None else 0)
    store = NodeStore(asyncio.get_running_loop(), limits, files)
    try:
        yield store
    finally:
        await store.close()


def content(seed: int, size: int = 300 * KB) -> bytes:
    return np.random.default_rng(seed).bytes(size)


async def read(store: NodeStore, name: str) -> bytes:
    async with store.hold(name) as segment:
        return bytes(segment.view())


async def test_objects_go_to_disk_and_come_back_as_they_were(tmp_path: Path) -> None:
    """Ten times what fits in memory; each one is read back right, and the bounds hold."""
    root = tmp_path / "objects"
    async with a_store(root) as store:
        for i in range(30):
            await store.put(f"o{i}", [content(i)[:1000], memoryview(content(i))[1000:]])
            assert store.core.used <= 950 * KB
        for i in range(30):
            assert await read(store, f"o{i}") == content(i)
        assert len(store.core) == 30
        assert store.core.counters.spilled >= 27
        assert store.core.counters.restored >= 27
        assert stat.S_IMODE(os.stat(root).st_mode) == 0o700
        assert {stat.S_IMODE(p.stat().st_mode) for p in (root / "node-1").iterdir()} == {0o600}
        for i in range(30):
            store.free(f"o{i}")
        await aeventually(lambda: len(store.core) == 0)
        assert store.core.disk_used == store.core.used == 0
        await aeventually(lambda: [p.name for p in (root / "node-1").iterdir()] == ["lock"])
    assert list(root.iterdir()) == []


async def test_an_array_outlives_its_object(tmp_path: Path) -> None:
    """What a user holds stays valid when the store drops, spills and closes."""
    async with a_store(tmp_path / "objects") as store:
        segment = await store.put("a", [np.arange(50_000, dtype=np.int64).data.cast("B")])
        array = np.frombuffer(segment.view(), dtype=np.int64)
        store.free("a")
        assert "a" not in store
        with pytest.raises(ValueError, match="closed"):
            segment.fileno()
    gc.collect()
    assert array.sum() == 50_000 * 49_999 // 2


async def test_a_full_store_refuses_with_a_typed_error_and_says_how_full() -> None:
    """Without a disk there is nowhere to go; when something is freed there is room again."""
    async with a_store(None) as store:
        await store.put("a", [content(1)])
        await store.put("b", [content(2)])
        await store.put("c", [content(3)])
        with pytest.raises(ResourceExhausted, match="900000 of 950000 are in use") as full:
            await store.put("d", [content(4)])
        assert full.value.reason == "OBJECT_STORE"
        closed = Segment.write([content(5)])
        with pytest.raises(ResourceExhausted):
            await store.adopt("e", closed)
        with pytest.raises(ValueError, match="closed"):
            closed.fileno()
        store.free("b")
        await store.put("d", [content(4)])
        assert await read(store, "d") == content(4)


async def test_what_somebody_else_wrote_is_taken_over() -> None:
    """No copy: the store keeps the very memory."""
    async with a_store(None) as store:
        segment = Segment.write([content(7)])
        await store.adopt("a", segment)
        async with store.hold("a") as held:
            assert held is segment
        with pytest.raises(ValueError, match="exists"):
            await store.adopt("a", Segment.write([b"x"]))


async def test_a_look_sees_what_is_in_memory_and_counts_as_use(tmp_path: Path) -> None:
    """What is on disk, freed or unknown is not seen; what was looked at leaves last."""
    async with a_store(tmp_path / "objects") as store:
        segments = [await store.put(f"o{i}", [content(i)]) for i in range(2)]
        assert store.in_memory("o0") is segments[0]
        assert store.in_memory("x") is None
        await store.put("o2", [content(2)])
        await aeventually(lambda: store.core.counters.spilled)
        assert store.in_memory("o1") is None
        assert store.in_memory("o0") is segments[0]
        async with store.hold("o0") as held:
            store.free("o0")
            assert store.in_memory("o0") is None
            assert bytes(held.view()) == content(0)
    assert store.in_memory("o2") is None


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
async def test_a_damaged_file_is_never_handed_out(tmp_path: Path, damage: str) -> None:
    """A digest that does not match, a short file and a missing one are ObjectLost."""
    root = tmp_path / "objects"
    async with a_store(root) as store:
        for i in range(3):
            await store.put(f"o{i}", [content(i)])
        await aeventually(lambda: store.core.counters.spilled >= 1)
        (path,) = (p for p in (root / "node-1").iterdir() if p.suffix == ".object")
        if damage == "flip":
            data = bytearray(path.read_bytes())
            data[150_000] ^= 1
            path.write_bytes(data)
        elif damage == "cut":
            os.truncate(path, 299_999)
        else:
            path.unlink()
        with pytest.raises(ObjectLost, match="o0"):
            await read(store, "o0")
        with pytest.raises(ObjectLost, match="not on this node"):
            await read(store, "o0")
        assert store.core.counters.lost == 1
        assert await read(store, "o2") == content(2)


async def test_a_disk_without_room_keeps_objects_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOSPC loses nothing and leaves no half file; who asks for room is told; later it goes on."""
    root = tmp_path / "objects"
    real = os.sendfile

    def full(target: int, source: int, offset: int, count: int) -> int:
        real(target, source, offset, min(count, 1000))
        raise OSError(errno.ENOSPC, "no space left on device")

    async with a_store(root) as store:
        monkeypatch.setattr(os, "sendfile", full)
        for i in range(3):
            await store.put(f"o{i}", [content(i)])
        await aeventually(lambda: store.core.is_disk_broken)
        with pytest.raises(ResourceExhausted, match="full"):
            await store.put("o3", [content(3)])
        assert [p.name for p in (root / "node-1").iterdir()] == ["lock"]
        for i in range(3):
            assert await read(store, f"o{i}") == content(i)
        monkeypatch.undo()
        store._try_again()
        await store.put("o3", [content(3)])
        assert await read(store, "o0") == content(0)


async def test_who_gives_up_waiting_leaves_no_trace(tmp_path: Path) -> None:
    """A cancelled put or hold holds neither room nor a pin."""
    async with a_store(tmp_path / "objects") as store:
        await store.put("a", [content(1, 500 * KB)])
        put = asyncio.create_task(store.put("b", [content(2, 900 * KB)]))
        await asyncio.sleep(0)
        put.cancel()
        with pytest.raises(asyncio.CancelledError):
            await put
        await aeventually(lambda: not store.core._leaving)
        assert [row[0] for row in store.core.rows()] == ["a"]
        hold = asyncio.create_task(read(store, "a"))
        await asyncio.sleep(0)
        hold.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hold
        await aeventually(lambda: all(pins == 0 for *_, pins in store.core.rows()))
        assert await read(store, "a") == content(1, 500 * KB)
        check(store.core)


async def test_pause_is_told_once_each_way(tmp_path: Path) -> None:
    """Above 0.80 no more tasks should start, until what leaves has left."""
    told: list[bool] = []
    files = SpillFiles(tmp_path / "objects", "node-1")
    limits = StoreLimits(1000 * KB, 10_000 * KB)
    store = NodeStore(asyncio.get_running_loop(), limits, files, told.append)
    for i in range(3):
        store.take_over(f"o{i}", Segment.write([content(i)]))
    assert told == [True]
    await aeventually(lambda: told == [True, False], 10)
    await store.close()


async def test_pause_is_not_told_where_nothing_can_leave() -> None:
    """Those that would wait may be the tasks that need what is here."""
    told: list[bool] = []
    store = NodeStore(asyncio.get_running_loop(), StoreLimits(1000 * KB), None, told.append)
    for i in range(3):
        store.take_over(f"o{i}", Segment.write([content(i)]))
    with pytest.raises(ResourceExhausted, match="full"):
        store.take_over("more", Segment.write([content(4)]))
    assert told == []
    await store.close()


async def test_what_is_in_memory_already_is_taken_beyond_the_limit_if_it_can_leave(
    tmp_path: Path,
) -> None:
    """The memory is used anyhow: what matters is that all of it fits in the end."""
    async with a_store(tmp_path / "objects", disk=1200 * KB) as store:
        for i in range(7):
            store.take_over(f"o{i}", Segment.write([content(i)]))
        with pytest.raises(ResourceExhausted, match="full"):
            store.take_over("more", Segment.write([content(8)]))
        check(store.core)
        for i in range(7):
            assert await read(store, f"o{i}") == content(i)


async def test_a_closed_store_says_so() -> None:
    """Neither puts nor holds hang."""
    async with a_store(None) as store:
        await store.put("a", [b"x"])
    for coroutine in (store.put("b", [b"x"]), read(store, "a")):
        with pytest.raises(ObjectLost, match="closed"):
            await coroutine


def _kill_a_node(root: Path) -> None:
    """Have another process write an object, look that nobody removes it, and kill it."""
    with subprocess.Popen(
        [sys.executable, "-c", _NODE, str(root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()
            assert SpillFiles(root, "me").sweep() == []
            assert (root / "other" / "1.object").exists()
        finally:
            other.kill()
    assert other.returncode == -signal.SIGKILL


async def test_the_files_of_a_node_that_was_killed_are_removed_by_the_next(tmp_path: Path) -> None:
    """And those of one that lives are left alone."""
    root = tmp_path / "objects"
    _kill_a_node(root)
    assert (root / "other" / "1.object").exists()
    async with a_store(root):
        await aeventually(lambda: not (root / "other").exists())


async def test_a_root_that_others_may_read_is_refused(tmp_path: Path) -> None:
    """Objects do not go where other users could read them; they stay in memory."""
    root = tmp_path / "objects"
    root.mkdir(mode=0o755)
    os.chmod(root, 0o755)
    async with a_store(root) as store:
        for i in range(3):
            await store.put(f"o{i}", [content(i)])
        await aeventually(lambda: store.core.is_disk_broken)
        assert list(root.iterdir()) == []
        assert await read(store, "o0") == content(0)
