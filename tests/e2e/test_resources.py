"""GPUs, alternatives and runtime environments: the same over the network and embedded."""

from __future__ import annotations

import asyncio
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from helpers.cluster import Cluster
from helpers.waiting import eventually
from rustray.common.errors import PayloadError, ResourceNotAvailable

pytestmark = pytest.mark.slow


@rustray.remote
def look() -> dict[str, Any]:
    """Say what the process is like."""
    return {
        "pid": os.getpid(),
        "files": sorted(os.listdir()),
        "vars": [os.environ.get(name) for name in ("RES_JOB", "RES_TASK", "OMP_NUM_THREADS")],
    }


@rustray.remote
def version() -> int:
    """Import a module that only a runtime_env brings."""
    return int(importlib.import_module("res_versioned").VERSION)


@rustray.remote
async def version_async() -> int:
    """The same on an event loop."""
    await asyncio.sleep(0)
    return int(importlib.import_module("res_versioned").VERSION)


JOB = {"env_vars": {"RES_JOB": "job"}}


@pytest.fixture(scope="module", params=["network", "embedded"], autouse=True)
def _session(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[None]:
    if request.param == "embedded":
        with rustray.init(num_cpus=3, num_gpus=2, runtime_env=JOB):
            yield
        return
    with Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        cluster.start_head()
        cluster.start_worker(
            "east", "--gpus", "2", "--label", "zone=east", cpus=3, CUDA_VISIBLE_DEVICES="0,1,5"
        )
        with cluster.as_own(), rustray.init(cluster.address, runtime_env=JOB):
            eventually(lambda: cluster.json("workers", "list")["workers"], 20)
            yield


@pytest.fixture
def directories(tmp_path: Path) -> list[Path]:
    """Two directories with a module of the same name and different content."""
    made = []
    for number in (1, 2):
        root = tmp_path / f"v{number}"
        root.mkdir()
        (root / "res_versioned.py").write_text(f"VERSION = {number}\n")
        (root / f"data{number}.txt").write_text("data")
        made.append(root)
    return made


def test_a_task_finds_its_variables_and_its_directory(directories: list[Path]) -> None:
    """Those of the job too; and other tasks find nothing of it, before or after."""
    before = rustray.get(look.remote())
    assert before["vars"] == ["job", None, "1"]
    env = {"env_vars": {"RES_TASK": "task"}, "working_dir": directories[0]}
    inside = rustray.get(look.options(runtime_env=env, num_cpus=2).remote())
    assert inside["vars"] == ["job", "task", "2"]
    assert inside["files"] == ["data1.txt", "res_versioned.py"]
    after = rustray.get([look.remote() for _ in range(6)])
    assert {tuple(each["vars"]) for each in after} == {("job", None, "1")}
    assert inside["pid"] not in {each["pid"] for each in after}


@pytest.mark.parametrize("function", [version, version_async])
@pytest.mark.parametrize("field", ["working_dir", "py_modules"])
def test_two_versions_of_a_module_live_side_by_side(
    function: Any, field: str, directories: list[Path]
) -> None:
    """In processes and on event loops; interleaved, for longer than there are executors."""
    chosen = [
        function.options(
            runtime_env={field: root if field == "working_dir" else [root / "res_versioned.py"]}
        )
        for root in directories
    ]
    refs = [chosen[n % 2].remote() for n in range(12)]
    assert rustray.get(refs, timeout=60) == [1, 2] * 6
    assert "res_versioned" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        rustray.get(function.remote())


def test_a_task_of_a_task_finds_the_same_environment(directories: list[Path]) -> None:
    """Unless it asks for another one."""

    @rustray.remote
    def parent() -> list[Any]:
        own = version.options(runtime_env={"env_vars": {"RES_TASK": "x"}})
        refs = [version.remote(), own.remote()]
        return [rustray.get(refs[0]), isinstance(rustray.wait(refs[1:])[0], list)]

    inside = parent.options(runtime_env={"working_dir": directories[1]})
    assert rustray.get(inside.remote(), timeout=60) == [2, True]


def test_gpus_and_environments_together(directories: list[Path]) -> None:
    """A process has one environment and one set of GPUs."""

    def see() -> tuple[str, str | None, int]:
        return os.environ["CUDA_VISIBLE_DEVICES"], os.environ.get("RES_TASK"), os.getpid()

    plain = rustray.remote(see)
    both = plain.options(num_gpus=2, num_cpus=0.5, runtime_env={"env_vars": {"RES_TASK": "x"}})
    one = plain.options(num_gpus=1, num_cpus=0.5)
    found = rustray.get([both.remote(), one.remote(), one.remote(), both.remote(), plain.remote()])
    assert [each[:2] for each in found[::3]] == [("0,1", "x"), ("0,1", "x")]
    assert {each[0] for each in found[1:3]} <= {"0", "1"}
    assert found[4][:2] == ("", None)
    assert len({found[0][2], found[1][2], found[4][2]}) == 3


def test_the_alternative_that_is_free_wins() -> None:
    """The task sees which of its requests it got."""

    @rustray.remote(num_gpus=3, fallback_strategy=[{"num_gpus": 2, "num_cpus": 9}, {"num_gpus": 1}])
    def which() -> tuple[int, int]:
        task = rustray.context()
        return task.alternative, len(task.gpu_ids)

    assert rustray.get(which.remote()) == (2, 1)


def test_what_is_not_there_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    """At the call, for a task's own directory."""
    with pytest.raises(PayloadError, match="does not exist"):
        look.options(runtime_env={"working_dir": tmp_path / "none"}).remote()


def test_a_selector_that_nobody_meets_is_refused_with_the_label() -> None:
    """With the nearest miss, as for amounts; a preference alone is none."""
    nowhere = look.options(label_selector={"zone": "in(north,south)"})
    with pytest.raises(
        ResourceNotAvailable, match=r"label zone is .*'in\(north,south\)' is needed"
    ):
        rustray.get(nowhere.remote())
    assert rustray.get(look.options(label_selector_soft={"zone": "north"}).remote())
    assert rustray.get(look.options(label_selector={"zone": "!north"}).remote())
