"""GPUs by id: which a task gets, what it is told of them, and that they come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.worker_bench import WorkerBench, a_class
from rustray.common.resources import GPU, UNIT, ResourceSet
from rustray.task.spec import ExecutorKind
from rustray.worker import detect, numerics
from rustray.worker.config import WorkerConfig
from rustray.worker.events import Setting
from rustray.worker.gpus import GpuPool, GpuShare

from .executor_harness import Bench, bench


def units(gpus: float) -> int:
    """Return GPUs in units."""
    return round(gpus * UNIT)


# ── The pool ──────────────────────────────────────────────────────────────────────────────────


def test_a_fraction_comes_from_the_fullest_gpu_that_has_enough() -> None:
    """So whole ones stay free."""
    pool = GpuPool(units(3), ())
    for need, indices in ((0.5, (0,)), (0.25, (0,)), (0.5, (1,)), (0.25, (0,)), (1, (2,))):
        share = pool.find(units(need))
        assert share == GpuShare(indices, units(need))
        pool.take(share)
    assert pool.find(UNIT) is None
    assert pool.find(units(0.6)) is None
    assert pool.times(units(0.5)) == 1


def test_whole_and_fraction_are_of_different_gpus() -> None:
    """1.5 GPUs are one and a half."""
    pool = GpuPool(units(2), ("7", "GPU-abc"))
    share = pool.find(units(1.5))
    assert share == GpuShare((0, 1), units(1.5))
    assert pool.names(share) == ("7", "GPU-abc")
    pool.take(share)
    assert pool.free == [0, units(0.5)]
    pool.give_back(share)
    assert pool.free == [UNIT, UNIT]


needs = st.sampled_from([0.1, 0.25, 0.3333, 0.4, 0.5, 0.6, 0.7, 1, 1.4, 1.5, 2, 3])


@given(total=st.sampled_from([0.5, 1, 1.5, 2, 3, 8]), need=needs)
def test_the_heads_count_is_what_the_worker_can_do(total: float, need: float) -> None:
    """`ResourceSet.times_in` of an empty worker is how many the pool gives out."""
    pool = GpuPool(units(total), ())
    count = 0
    while (share := pool.find(units(need))) is not None:
        pool.take(share)
        count += 1
    assert min(pool.free) >= 0
    assert ResourceSet({GPU: units(need)}).times_in({GPU: units(total)}) == count


# ── The core ──────────────────────────────────────────────────────────────────────────────────


def settings_of(b: WorkerBench) -> list[tuple[str, ...]]:
    """Return the GPUs of each executor that has tasks."""
    return [x.setting.gpu_ids or () for x in b.executors.values() if x.tasks]


def test_whole_gpus_go_to_one_task_each_and_come_back_whatever_its_end() -> None:
    """Success, death of the executor, cancel: the ids are free again."""
    b = WorkerBench({"cpu_cores": 4, "gpus": 2}).start()
    lease = b.grant(3, a_class(gpus=1))
    assert sorted(settings_of(b)) == [("0",), ("1",)]
    busy = [n for n, x in b.executors.items() if x.tasks]
    b.finish(busy[0])
    assert sorted(settings_of(b)) == [("0",), ("1",)]
    b.die(busy[1])
    assert len(settings_of(b)) == 1
    b.cancel(lease, 0, 3, force=True)
    for number in [n for n, x in b.executors.items() if x.signal is not None]:
        b.die(number)
    assert b.manager.used["gpus"] == 0
    b.grant(2, a_class(gpus=1))
    b.finish_all()
    b.collect()
    b.assert_all_told()


def test_a_process_stays_with_its_gpus_and_ends_before_another_gets_them() -> None:
    """It holds memory there, and has seen no others."""
    b = WorkerBench({"cpu_cores": 2, "gpus": 2}).start()
    b.grant(1, a_class(gpus=1))
    (warm,) = [n for n, x in b.executors.items() if x.tasks]
    b.finish(warm)
    b.grant(1, a_class(gpus=1))
    assert b.executors[warm].tasks, "a warm process is preferred"
    b.finish(warm)
    b.grant(1, a_class(gpus=2))
    assert settings_of(b) == []
    assert b.executors[warm].signal is not None
    b.die(warm)
    b.make_ready()
    assert settings_of(b) == [("0", "1")]


def test_a_task_without_gpus_sees_none_where_there_are_some() -> None:
    """Nor does it get a process that has worked with one."""
    b = WorkerBench({"cpu_cores": 1, "gpus": 1}).start()
    b.grant(1, a_class(gpus=1))
    (first,) = b.executors
    b.finish(first)
    b.grant(1, a_class())
    assert settings_of(b) == []
    b.make_ready()
    assert settings_of(b) == [()]


def test_threads_get_ids_too() -> None:
    """Each task of a shared executor has its own."""
    b = WorkerBench({"cpu_cores": 1, "gpus": 2}).start()
    b.grant(3, a_class(gpus=1, cpu=0, kind=ExecutorKind.THREAD))
    b.make_ready()
    (shared,) = [x for x in b.executors.values() if x.tasks]
    assert sorted(shared.gpus.values()) == [("0",), ("1",)]


def test_a_worker_without_gpus_prepares_nothing() -> None:
    """One core, no GPU: no executor is ever set up for anything."""
    b = WorkerBench({"cpu_cores": 2}).start()
    b.grant(50, a_class())
    assert [x.setting.gpu_ids for x in b.executors.values() if x.tasks] == [None, None]
    b.finish_all()


# ── What a task sees ──────────────────────────────────────────────────────────────────────────


async def test_the_variables_are_there_before_the_call() -> None:
    """And again other ones for the next task."""

    def look() -> tuple[list[str | None], tuple[str, ...]]:
        import rustray

        names = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        return [os.environ.get(name) for name in names], rustray.context().gpu_ids

    own = {**os.environ, "MKL_NUM_THREADS": "7"}
    own.pop("OMP_NUM_THREADS", None)
    own.pop("CUDA_DEVICE_ORDER", None)
    async with bench(env=own) as b:
        found = await _results(b, look, [Setting(4, ("2", "5")), Setting(1, ()), Setting(1, None)])
    assert found == [
        (["2,5", "PCI_BUS_ID", "4", "7"], ("2", "5")),
        (["", "PCI_BUS_ID", "1", "7"], ()),
        (["", "PCI_BUS_ID", "1", "7"], ()),
    ]


async def _results(b: Bench, function: object, each: list[Setting]) -> list[object]:
    assert callable(function)
    executor = b.spawn()
    number = b.define(executor, function)
    found = []
    for setting in each:
        b.pool.prepare(executor, setting)
        lease = b.run(executor, number, ())
        found += await b.values(lease, 1)
    return found


def test_what_the_user_has_set_stands() -> None:
    """A number of threads, and the order of devices."""
    found = numerics.variables({"OMP_NUM_THREADS": "3", "CUDA_DEVICE_ORDER": "x"}, 2, ("1",))
    assert "OMP_NUM_THREADS" not in found
    assert "CUDA_DEVICE_ORDER" not in found
    assert found["NUMEXPR_NUM_THREADS"] == "2"
    assert found["HIP_VISIBLE_DEVICES"] == "1"


# ── What a worker offers ──────────────────────────────────────────────────────────────────────


def make_gpus(root: Path, count: int) -> Path:
    """Build a /proc with so many NVIDIA GPUs."""
    for index in range(count):
        (root / "proc/driver/nvidia/gpus" / f"0000:0{index}:00.0").mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    ("own", "found"),
    [
        ({}, (3, None)),
        ({"CUDA_VISIBLE_DEVICES": "2, 0"}, (2, ("2", "0"))),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8f,MIG-1"}, (2, ("GPU-8f", "MIG-1"))),
        ({"CUDA_VISIBLE_DEVICES": ""}, (0, ())),
        ({"CUDA_VISIBLE_DEVICES": "1,-1,2"}, (1, ("1",))),
        ({"HIP_VISIBLE_DEVICES": "1"}, (1, ("1",))),
        ({"ROCR_VISIBLE_DEVICES": "GPU-1,GPU-2"}, (2, ("0", "1"))),
    ],
)
def test_the_workers_own_environment_is_the_pool(
    own: dict[str, str], found: tuple[int, object], tmp_path: Path
) -> None:
    """What it hides is not given out."""
    assert detect.gpus(own, make_gpus(tmp_path, 3)) == found


def test_gpus_of_amd_are_counted(tmp_path: Path) -> None:
    """Nodes with SIMD units are GPUs, the others processors."""
    for index, simds in enumerate((0, 304, 304)):
        node = tmp_path / f"sys/class/kfd/kfd/topology/nodes/{index}"
        node.mkdir(parents=True)
        (node / "properties").write_text(f"cpu_cores_count 8\nsimd_count {simds}\n")
    assert detect.gpus({}, tmp_path) == (2, None)
    assert detect.gpus({}, tmp_path / "nothing") == (0, None)


def test_more_gpus_than_are_visible_are_refused() -> None:
    """The message names the variable and the ids."""
    with pytest.raises(ValueError, match=r"2 are to be offered.*CUDA_VISIBLE_DEVICES.*'7'"):
        WorkerConfig(1, 100, gpus=2, gpu_ids=("7",))
    assert WorkerConfig(1, 100, gpus=2).limits().gpu_ids == ()
    assert WorkerConfig(1, 100, gpus=1, gpu_ids=("7", "8")).limits().gpu_ids == ("7", "8")
