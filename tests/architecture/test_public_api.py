"""The public names are a contract: programs written against them exist."""

from __future__ import annotations

import subprocess
import sys

import rustray
from helpers.sources import SRC
from rustray import testing
from rustray.common.errors import all_error_classes

_NAMES = {
    "AsyncMapIterator",
    "Context",
    "Event",
    "Executor",
    "HeadNode",
    "MapIterator",
    "Pool",
    "Lock",
    "Queue",
    "RefGenerator",
    "RemoteFunction",
    "ResourceRequirements",
    "Semaphore",
    "TaskContext",
    "TaskEvent",
    "TaskExecutor",
    "TaskInterrupt",
    "TaskRef",
    "TaskResult",
    "TaskSpec",
    "TaskState",
    "__version__",
    "aexplain",
    "aget",
    "ainit",
    "amap",
    "aput",
    "ashutdown",
    "await_",
    "cancel",
    "context",
    "explain",
    "free",
    "function",
    "get",
    "init",
    "is_initialized",
    "progress",
    "put",
    "remote",
    "shutdown",
    "wait",
}


def test_public_names_are_pinned() -> None:
    """What ``rustray`` exports is this list and every error; a change is a decision."""
    errors = {cls.__name__ for cls in all_error_classes().values()}
    assert sorted(rustray.__all__) == sorted(_NAMES | errors)


def test_a_star_import_leaves_the_builtin_map_alone() -> None:
    """``rustray.map`` is there and not in ``__all__``: code that says ``map`` means the other."""
    assert rustray.map.__doc__
    assert "map" not in rustray.__all__
    assert "map" in dir(rustray)


def test_every_public_name_loads_and_is_documented() -> None:
    """Each name can be had from the lazy root, and says what it is."""
    for name in rustray.__all__:
        value = getattr(rustray, name)
        assert name == "__version__" or value.__doc__, name
    assert set(rustray.__all__) <= set(dir(rustray))


def test_the_names_for_tests_are_pinned_and_documented() -> None:
    """What ``rustray.testing`` exports is a contract too."""
    assert set(testing.__all__) == {
        "FAULTS",
        "ExecutorCrash",
        "Faults",
        "HistoryEntry",
        "Run",
        "SimCluster",
        "SimFunction",
        "SimNode",
        "SimTask",
        "seeds",
    }
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)


def test_star_import_gives_the_public_names() -> None:
    """``from rustray import *`` works in a fresh interpreter, though names load lazily."""
    script = "from rustray import *; print(callable(init), callable(remote), Executor.__name__)"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={"PYTHONPATH": str(SRC)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert answer.stdout.split() == ["True", "True", "Executor"]
