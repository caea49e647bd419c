"""`@rustray.remote`, `.options`, and what `.remote` sends."""

from __future__ import annotations

import functools
import importlib.util
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

import rustray
from helpers.fake_head import FakeHead
from rustray.client.options import VALID, pickle_function, task_class
from rustray.client.remote import RemoteGenerator
from rustray.common.errors import PayloadError
from rustray.task.spec import ExecutorKind


@rustray.remote
def square(x: int) -> int:
    """Square."""
    return x * x


def power(x: int, y: int) -> int:
    """Raise to a power."""
    return int(x**y)


class Scale:
    """Has a state, and can be called."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def __call__(self, x: int) -> int:
        """Multiply."""
        return self.factor * x


class LaterScale(Scale):
    """The same as a coroutine function."""

    async def __call__(self, x: int) -> int:  # type: ignore[override]
        """Multiply."""
        return self.factor * x


class CountTo(Scale):
    """The same as a generator function."""

    def __call__(self, x: int) -> Iterator[int]:  # type: ignore[override]
        """Count from there, so many."""
        yield from range(x, x + self.factor)


@rustray.remote(num_cpus=2, name="named")
def named(*args: Any, **kwargs: Any) -> Any:
    """Return the arguments."""
    return args, kwargs


def test_results_come_in_the_order_of_the_references(head: FakeHead) -> None:
    """`get` of a list keeps its order."""
    refs = [square.remote(i) for i in range(10_000)]
    assert rustray.get(refs) == [i * i for i in range(10_000)]
    assert len(head.ran) == 10_000


def test_arguments_arrive_as_they_were_given(head: FakeHead) -> None:
    """Positional and keyword arguments travel, under the option's name."""
    ref = named.remote(1, "a", self=3, fn=None)
    assert rustray.get(ref) == ((1, "a"), {"self": 3, "fn": None})
    assert head.ran[0][0] == "named"


def test_arguments_are_those_of_the_call(head: FakeHead) -> None:
    """An argument that changes after the call does not change the task."""
    values = [1, 2]
    ref = named.remote(values)
    values.append(3)
    assert rustray.get(ref) == (([1, 2],), {})


def test_a_function_travels_once_per_session(head: FakeHead) -> None:
    """Its code stands in one class definition, however many tasks follow."""
    for i in range(5):
        rustray.get(square.remote(i))
    definitions = [d for frame in head.frames for d in frame.classes]
    assert len(definitions) == 1
    assert definitions[0].code
    assert len(definitions[0].task_class.code_hash) == 32


def test_a_function_may_refer_to_its_own_name(head: FakeHead) -> None:
    """A remote function inside its own globals survives pickling."""
    code = cloudpickle.loads(cloudpickle.dumps(square))
    assert code.__name__ == "square"
    assert rustray.get(code.remote(3)) == 9


def test_options_override_per_call(head: FakeHead) -> None:
    """`.options` makes another class of tasks and leaves the function as it was."""
    urgent = square.options(
        priority=5, num_cpus=0.5, max_retries=0, oom_retries=2, labels={"b": "2", "a": "1"}
    )
    rustray.get([square.remote(1), urgent.remote(2)])
    first, second = [d.task_class for frame in head.frames for d in frame.classes]
    assert (first.priority, second.priority) == (0, 5)
    assert second.resources.amounts() == {"cpu_cores": 0.5}
    assert (second.max_retries, second.oom_retries) == (0, 2)
    assert second.labels == (("a", "1"), ("b", "2"))


def test_an_unknown_option_lists_the_valid_ones() -> None:
    """The error names the option, a near name, and all valid names."""
    with pytest.raises(ValueError, match=r"'num_cpu' \(did you mean 'num_cpus'") as caught:
        rustray.remote(num_cpu=1)
    assert all(name in str(caught.value) for name in VALID)
    with pytest.raises(ValueError, match="max_calls"):
        square.options(max_calls=1)


def test_an_exclusive_function_runs_in_a_process() -> None:
    """Also a coroutine function, which would share one otherwise."""

    async def fetch() -> None:
        """Nothing."""

    plain = task_class(fetch, b"", {})
    alone = task_class(fetch, b"", {"exclusive": True})
    assert (plain.executor, plain.exclusive) == (ExecutorKind.ASYNC, False)
    assert (alone.executor, alone.exclusive) == (ExecutorKind.PROCESS, True)


@pytest.mark.parametrize(
    "options",
    [
        {"num_cpus": -1},
        {"num_cpus": float("nan")},
        {"num_cpus": "2"},
        {"memory_mb": float("inf")},
        {"resources": {"": 1}},
        {"resources": {"cpu_cores": 1}},
        {"resources": 3},
        {"labels": {"a": 1}},
        {"priority": 1 << 31},
        {"priority": 0.5},
        {"max_retries": -2},
        {"oom_retries": -2},
        {"oom_retries": True},
        {"timeout_s": 0},
        {"queue_timeout_s": -1},
        {"total_timeout_s": float("nan")},
        {"executor": "fork"},
        {"retry_exceptions": 3},
        {"retry_exceptions": [int]},
        {"retry_exceptions": ["not a name"]},
        {"retry_delay_s": -1},
        {"retry_delay_s": 10**400},
        {"crash_limit": 0},
        {"lifetime": "for ever"},
        {"crash_limit": True},
        {"wait_for_resources": "yes"},
        {"exclusive": 1},
        {"exclusive": True, "executor": "thread"},
        {"name": ""},
        {"name": "x" * 257},
    ],
)
def test_bad_option_values_fail_at_once(options: dict[str, Any]) -> None:
    """A value out of range is a ValueError where it is written."""
    with pytest.raises(ValueError, match=next(iter(options)).split("_")[0]):
        rustray.remote(**options)


def test_an_async_function_runs_on_an_event_loop() -> None:
    """`async def` functions get the async executor by themselves."""

    async def fetch() -> None:
        """Nothing."""

    assert task_class(fetch, b"", {}).executor is ExecutorKind.ASYNC
    assert task_class(fetch, b"", {"executor": "thread"}).executor is ExecutorKind.THREAD


def test_calling_it_directly_is_refused_with_a_hint() -> None:
    """f(x) is a TypeError that names f.remote(x)."""
    with pytest.raises(TypeError, match=r"square\.remote"):
        square(3)


def test_classes_and_non_functions_are_refused() -> None:
    """Actors are not part of this version, and the error says so."""
    with pytest.raises(TypeError, match="actors"):
        rustray.remote(type("Counter", (), {}))
    with pytest.raises(TypeError, match="decorates a function"):
        rustray.remote(3)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="already"):
        rustray.remote(square)


def test_whatever_can_be_called_is_taken(head: FakeHead) -> None:
    """Partials and objects with ``__call__``, with their state."""
    partial = rustray.remote(functools.partial(power, 2))
    scale = rustray.remote(num_cpus=2)(Scale(3))
    assert rustray.get([partial.remote(5), scale.remote(4), scale.remote(x=5)]) == [32, 12, 15]
    assert "partial" in repr(partial)
    assert repr(scale) == "<remote function Scale>"
    with pytest.raises(TypeError, match=r"Scale\(\) runs as a task: call Scale\.remote"):
        scale(1)


def test_an_object_that_can_be_called_is_judged_by_its_method() -> None:
    """Its tasks have the name of its class, and run on an event loop if the method does."""
    seen = {}
    for given in (Scale(2), LaterScale(2)):
        made = rustray.remote(given)
        seen[given] = task_class(made._function, b"", made._options)
    kinds = [(found.function.rpartition(".")[2], found.executor) for found in seen.values()]
    assert kinds == [("Scale", ExecutorKind.PROCESS), ("LaterScale", ExecutorKind.ASYNC)]
    assert isinstance(rustray.remote(CountTo(2)), RemoteGenerator)


def test_an_argument_that_cannot_travel_is_named(head: FakeHead) -> None:
    """The error says which argument, and where in it."""
    with pytest.raises(PayloadError, match=r"args\[1\]\['x'\]"):
        named.remote(1, {"x": threading.Lock()})
    assert not head.ran


def test_a_function_that_cannot_travel_says_so(head: FakeHead) -> None:
    """A closure over a lock is a PayloadError that names the function."""
    lock = threading.Lock()

    @rustray.remote
    def guarded() -> None:
        with lock:
            pass

    with pytest.raises(PayloadError, match="guarded cannot be pickled"):
        guarded.remote()


def test_names_survive_the_decorator() -> None:
    """The wrapper keeps name and docstring."""
    assert square.__name__ == "square"  # type: ignore[attr-defined]
    assert square.__doc__ == "Square."
    assert "square" in repr(square)


@pytest.mark.parametrize("wrap", [lambda work: work, functools.partial], ids=["bare", "partial"])
def test_a_module_that_nobody_can_import_travels_by_value(tmp_path: Path, wrap: Any) -> None:
    """Functions of a file that was loaded from outside the path run in other processes."""
    source = "def helper(x):\n    return x + 1\n\ndef work(x):\n    return helper(x)\n"
    (tmp_path / "offside.py").write_text(source)
    spec = importlib.util.spec_from_file_location("offside_module", tmp_path / "offside.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["offside_module"] = module
    try:
        spec.loader.exec_module(module)
        code, code_hash = pickle_function(wrap(module.work))
        assert len(code_hash) == 32
        del sys.modules["offside_module"]
        assert cloudpickle.loads(code)(1) == 2
    finally:
        sys.modules["offside_module"] = module
        cloudpickle.unregister_pickle_by_value(module)
        del sys.modules["offside_module"]
