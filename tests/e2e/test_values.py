"""Large values that stay with workers, on a cluster over gRPC: every way to get at one."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rustray
from e2e.value_functions import (
    MB,
    add_up,
    hand_on,
    make,
    nested,
    put_again,
    put_in,
    spoil,
    spoil_async,
    spoil_later,
    three,
    total,
)
from helpers.cluster import Cluster, Node
from helpers.waiting import eventually
from rustray.client.values import Placed, SessionValues
from rustray.common.errors import CommunicationError
from rustray.objects import own_port
from rustray.task.place import Place
from rustray.worker.state import DEFAULT_DRAIN_S

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A head and two workers of one machine."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as made:
        made.start_head()
        for name in "ab":
            made.start_worker(name, "--label", f"at={name}", functions="")
        yield made


@pytest.fixture
def cluster(shared: Cluster) -> Iterator[Cluster]:
    """The same, with a session of this program."""
    with shared.session():
        yield shared


def kept(node: Node) -> int:
    """Count the objects that a process holds in memory."""
    found = 0
    for entry in Path(f"/proc/{node.pid}/fd").iterdir():
        try:
            found += "rustray-object" in os.readlink(entry)
        except OSError:  # closed meanwhile
            continue
    return found


def place_of(ref: Any) -> Place:
    """Return where a value is that has arrived."""
    rustray.wait([ref], timeout=20)
    assert type(ref._data) is Placed
    return Place.unpack(ref._data.hold.place)


def at(name: str) -> dict[str, Any]:
    """Have tasks run on one of the workers."""
    return {"label_selector": {"at": name}}


@pytest.mark.parametrize("size_mb", [17, 31, 33])
def test_what_the_head_does_not_take_goes_to_a_worker(cluster: Cluster, size_mb: int) -> None:
    """Bug: from its 16 MiB up to what a message carries nothing could be put or given."""
    size = size_mb * MB
    value = np.full(size, 1, dtype=np.uint8)
    assert rustray.get(total.remote(rustray.put(value)), timeout=20) == size
    assert rustray.get(total.remote(value), timeout=20) == size
    (inner,) = rustray.get(put_in.remote(size), timeout=20)
    assert rustray.get(total.remote(inner), timeout=20) == size


def test_what_a_task_puts_with_its_worker_it_may_put_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Bug: the second attempt's value, under an id of its own, was where it is, not what it is."""
    size = 17 * MB
    (inner,), found = rustray.get(put_again.remote(size, str(tmp_path / "note")), timeout=40)
    assert found == size
    assert rustray.get(total.remote(inner), timeout=20) == size


def test_a_result_stays_and_whoever_needs_it_maps_it(cluster: Cluster) -> None:
    """The program, a task of the same worker, and one of another."""
    ref = make.options(**at("a")).remote(MB, 3)
    assert place_of(ref).worker_id == cluster.workers["a"].node_id
    found = rustray.get(ref, timeout=20)
    assert (found.sum(), found.flags.writeable) == (3 * MB, False)
    for name in "ab":
        assert rustray.get(total.options(**at(name)).remote(ref, ref), timeout=20) == 6 * MB


def test_parts_nested_tasks_and_copies_of_references(cluster: Cluster) -> None:
    """All kinds of references lead to the value."""
    parts: Any = three.remote(MB)
    first, small, last = parts
    assert rustray.get(small, timeout=20) == "small"
    assert rustray.get(total.remote(first, last), timeout=20) == 4 * MB
    assert rustray.get(last, timeout=20).sum() == 3 * MB
    assert rustray.get(nested.remote(MB), timeout=20) == 2 * MB
    (inner,) = rustray.get(hand_on.remote(MB), timeout=20)
    assert rustray.get(inner, timeout=20).sum() == 5 * MB
    assert rustray.get(total.remote(inner), timeout=20) == 5 * MB
    copied = pickle.loads(pickle.dumps(make.remote(MB, 4)))
    assert rustray.get(copied, timeout=20).sum() == 4 * MB


async def test_coroutines_have_it_without_blocking_their_loop(cluster: Cluster) -> None:
    """``await ref`` and ``aget``."""
    ref = make.remote(MB, 6)
    assert (await ref).sum() == 6 * MB
    assert (await rustray.aget([ref, ref], timeout=20))[1].sum() == 6 * MB


def test_one_of_several_values_that_was_pickled_stays(cluster: Cluster) -> None:
    """Though the others go, and all references of this program."""
    parts: Any = three.remote(MB)
    rustray.wait(list(parts), num_returns=3, timeout=20)
    copied = pickle.dumps(parts[2])
    del parts
    rustray.get(make.remote(1), timeout=20)
    assert rustray.get(pickle.loads(copied), timeout=20).sum() == 3 * MB


def test_a_get_keeps_its_limit_though_the_value_is_with_a_worker(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not there in time, and can be asked for again."""
    ref = make.remote(MB, 4)
    rustray.wait([ref], timeout=20)
    with monkeypatch.context() as patch:
        patch.setattr(own_port.PORTS, "take", _no_port)
        values = ref._batch.owner.values
        assert isinstance(values, SessionValues)

        async def never(*_: object) -> None:
            await asyncio.Event().wait()

        patch.setattr(values._api, "fetch_object", never)
        for ask in (lambda: rustray.get(ref, timeout=0.2), lambda: _aget(ref)):
            with pytest.raises(rustray.GetTimeout, match="ask again"):
                ask()
    assert rustray.get(ref, timeout=20).sum() == 4 * MB


def _no_port(*_: object, **__: object) -> None:
    raise ConnectionRefusedError("another machine")


def _aget(ref: Any) -> Any:
    return asyncio.run(rustray.aget(ref, timeout=0.2))


def test_a_value_goes_with_its_last_reference(cluster: Cluster) -> None:
    """Its worker lets go of the memory."""
    node = cluster.workers["a"]
    before = kept(node)
    refs = [make.options(**at("a")).remote(MB, n) for n in range(4)]
    rustray.wait(refs, num_returns=4, timeout=20)
    assert kept(node) >= before + 4
    listed = cluster.json("objects", "list")["objects"]
    assert {ref.task_id for ref in refs} <= {one["task_id"] for one in listed}
    totals = cluster.json("objects", "stats")["workers"]
    (own,) = [one for one in totals if one["worker_id"] == node.node_id]
    assert own["bytes"] > 4 * MB
    sums = [total.remote(ref) for ref in refs]
    del refs
    assert rustray.get(sums, timeout=20) == [0, MB, 2 * MB, 3 * MB]
    eventually(lambda: kept(node) <= before, 30)


@pytest.mark.parametrize("executor", ["process", "thread"])
@pytest.mark.parametrize("kind", ["raises", "returns what cannot travel"])
def test_what_a_failed_task_had_made_goes_with_it(
    cluster: Cluster, executor: str, kind: str
) -> None:
    """Bug: its traceback kept the references until its session had ended, and the values a day."""
    failing, before = spoil.options(executor=executor), _listed(cluster)
    with pytest.raises(rustray.RustRayError, match=r"spoilt|cannot be pickled"):
        rustray.get(failing.remote(MB, kind), timeout=20)
    eventually(lambda: _listed(cluster) <= before, 30)


@pytest.mark.parametrize("executor", ["process", "thread", "async"])
def test_what_coroutines_had_made_goes_with_them(cluster: Cluster, executor: str) -> None:
    """Bug: a cycle with the exception, or the thread that had brought it, kept a value a day."""
    before = _listed(cluster)
    for _ in range(3):
        with pytest.raises(ValueError, match="spoilt"):
            rustray.get(spoil_async.options(executor=executor).remote(MB), timeout=20)
    ends = [add_up.options(executor=executor).remote(MB) for _ in range(30)]
    assert rustray.get(ends, timeout=40) == [2 * MB] * 30
    eventually(lambda: _listed(cluster) <= before, 30)


def test_what_a_generator_had_made_goes_with_it(cluster: Cluster) -> None:
    """Bug: the session of one that hands in tasks was never closed."""
    before, sessions = _listed(cluster), []
    for _ in range(8):
        items = spoil_later.options(**at("a")).remote(MB)
        found, count = rustray.get(next(items), timeout=20)
        assert found == 6 * MB
        sessions.append(count)
        with pytest.raises(ValueError, match="spoilt"):
            rustray.get(next(items), timeout=20)
    assert max(sessions) <= 2, sessions  # its own, and one that is being closed
    eventually(lambda: _listed(cluster) <= before, 30)


def _listed(cluster: Cluster) -> set[str]:
    return {one["task_id"] for one in cluster.json("objects", "list")["objects"]}


def test_what_is_freed_is_gone_for_all(cluster: Cluster) -> None:
    """Also where the reference was pickled, which else keeps the value for its time."""
    node = cluster.workers["a"]
    before = kept(node)
    ref = make.options(**at("a")).remote(MB, 1)
    copy = pickle.loads(pickle.dumps(ref))
    assert rustray.get(copy, timeout=20).sum() == MB
    pending = make.options(**at("a")).remote(MB, 2)
    rustray.free([ref, pending])
    rustray.wait([pending], timeout=20)
    for one in (ref, pending):
        with pytest.raises(rustray.ObjectLost, match="freed"):
            rustray.get(one)
    eventually(lambda: kept(node) <= before, 30)
    with pytest.raises(rustray.ObjectLost):
        rustray.get(total.remote(ref), timeout=20)


def test_from_elsewhere_it_is_sent_by_its_worker_or_through_the_head(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a program on another machine, with and without a way to the worker."""
    refs = [make.remote(MB, n) for n in (7, 8)]
    rustray.wait(refs, num_returns=2, timeout=20)

    monkeypatch.setattr(own_port.PORTS, "take", _no_port)
    assert rustray.get(refs[0], timeout=20).sum() == 7 * MB
    values = refs[0]._batch.owner.values
    assert isinstance(values, SessionValues)

    async def no_way(*_: object) -> None:
        raise CommunicationError("no route")

    monkeypatch.setattr(values._api, "fetch_object", no_way)
    assert rustray.get(refs[1], timeout=20).sum() == 8 * MB


async def test_who_knows_of_no_workers_gets_the_bytes(cluster: Cluster) -> None:
    """A unary call for a result, as from any language."""
    ref = make.remote(MB, 9)
    async with cluster.head_node() as head:
        raw = await head._connected.get_result(ref.task_id, 20)
    assert len(raw.payload) > MB
    assert (await ref).sum() == 9 * MB


async def test_all_values_of_a_task_come_by_its_id(cluster: Cluster) -> None:
    """To a client that has no references to them: as a list, once it may decode them."""
    parts: Any = three.remote(MB)
    async with cluster.head_node(allow_pickle=True) as head:
        result = await head.get_task_result(parts[0].task_id, 20)
    assert result is not None
    first, second, third = result.unwrap()
    assert (first.sum(), second, third.sum()) == (MB, "small", 3 * MB)


def test_a_value_that_died_with_its_worker_is_made_again(tmp_path: Path) -> None:
    """For the program that asks, and for the tasks that need it."""
    note = tmp_path / "runs"
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", functions="")
        with cluster.session():
            early = make.remote(MB, 1, str(note))
            late = make.remote(MB, 2, str(note))
            rustray.wait([early, late], num_returns=2, timeout=20)
            cluster.restart_head()
            assert rustray.get(early, timeout=30).sum() == MB  # it is where it was
            assert len(note.read_text().split()) == 2
            eventually(lambda: cluster.json("workers", "list")["workers"], 30)
            cluster.workers["a"].kill()
            cluster.start_worker("b", functions="")
            assert rustray.get(total.remote(early), timeout=60) == MB
            assert rustray.get(late, timeout=60).sum() == 2 * MB
    assert len(note.read_text().split()) == 4


def test_a_worker_that_leaves_hands_its_values_over(tmp_path: Path) -> None:
    """To the next one, again and again, and in the end to the head; nothing is made again."""
    note, size = tmp_path / "runs", 5 * MB
    with Cluster(tmp_path) as cluster:
        cluster.start_head("--durability", "memory")
        cluster.start_worker("a", functions="")
        with cluster.session():
            made = [make.remote(size, seed, str(note)) for seed in (1, 2)]
            put = rustray.put(np.full(size, 3, dtype=np.uint8))
            refs = [*made, put]
            rustray.wait(refs, num_returns=3, timeout=20)
            for old, new in ("ab", "bc"):
                cluster.start_worker(new, functions="")
                left = cluster.workers[old]
                left.signal(signal.SIGTERM)
                assert left.wait(20) == 0
                assert rustray.get(total.remote(*refs), timeout=20) == 6 * size
            listed = cluster.json("objects", "list")["objects"]
            assert {one["worker_id"] for one in listed} == {cluster.workers["c"].node_id}
            cluster.json("workers", "drain", cluster.workers["c"].node_id)
            cluster.workers["c"].wait(20)
            assert [rustray.get(ref, timeout=20).sum() for ref in refs] == [
                size,
                2 * size,
                3 * size,
            ]
    assert len(note.read_text().split()) == 2


def test_a_worker_does_not_wait_for_what_nobody_can_take(tmp_path: Path) -> None:
    """A value that is too large for the head goes with the last worker, and is made again."""
    note, size = tmp_path / "runs", 40 * MB
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a", functions="")
        with cluster.session():
            ref = make.remote(size, 1, str(note))
            rustray.wait([ref], timeout=20)
            cluster.workers["a"].signal(signal.SIGTERM)
            began = time.monotonic()
            cluster.workers["a"].wait(20)
            assert time.monotonic() - began < DEFAULT_DRAIN_S / 2
            cluster.start_worker("b", functions="")
            assert rustray.get(ref, timeout=30).sum() == size
    assert len(note.read_text().split()) == 2
