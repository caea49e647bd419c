"""References as arguments and results, `put` and several returns, on a real embedded cluster."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import rustray
from rustray.client.generators import RefGenerator
from rustray.client.remote import RemoteFunction


@rustray.remote
def add(*numbers: int) -> int:
    """Add up."""
    return sum(numbers)


@rustray.remote
def same(value: Any) -> Any:
    """Return what came."""
    return value


def _halves(values: list[int]) -> tuple[list[int], list[int]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


halves: Any = rustray.remote(num_returns=2)(_halves)


@rustray.remote(max_retries=0)
def fail(_value: object) -> None:
    """Raise."""
    raise KeyError("not there")


def test_a_reference_stands_for_its_value(cluster: None) -> None:
    """By position and by name, also more than once, mixed with values."""
    one, two = add.remote(1), add.remote(2)
    assert rustray.get(add.remote(one, 10, two, one)) == 14

    @rustray.remote
    def named(*, left: int, right: int) -> tuple[int, int]:
        return left, right

    assert rustray.get(named.remote(left=two, right=one)) == (2, 1)


def test_chains_and_fan_ins(cluster: None) -> None:
    """A hundred in a row, a thousand at once, a tree."""
    last: Any = add.remote(0)
    for _ in range(100):
        last = add.remote(last, 1)
    assert rustray.get(last) == 100
    level = [add.remote(number) for number in range(1_000)]
    assert rustray.get(add.remote(*level)) == 499_500
    while len(level) > 1:
        level = [add.remote(*level[place : place + 10]) for place in range(0, len(level), 10)]
    assert rustray.get(level[0]) == 499_500


def test_loops_that_carry_a_reference_keep_their_order(cluster: None) -> None:
    """Two functions that take each other's results in turn: none is handed in before its input."""
    value: Any = add.remote(0)
    for _ in range(30):
        value = same.remote(add.remote(value, 1))
    assert rustray.get(value) == 30


def test_a_failure_reaches_those_that_wait_for_it(cluster: None) -> None:
    """As an instance of the same class, with a note that names the task that failed."""
    failed = fail.remote(1)
    with pytest.raises(KeyError) as caught:
        rustray.get(add.remote(same.remote(failed), 1))
    assert isinstance(caught.value, rustray.TaskExecutionFailed)
    assert any(failed.task_id in note for note in caught.value.__notes__)


def test_what_is_put_travels_to_any_number_of_tasks(cluster: None) -> None:
    """A value, small or large, under one reference."""
    small = rustray.put({"a": 1})
    assert rustray.get(small) == {"a": 1}
    large = rustray.put(bytes(1_000_000))
    sizes = rustray.get([same.remote(large), same.remote(large)])
    assert [len(value) for value in sizes] == [1_000_000] * 2
    with pytest.raises(TypeError, match="a reference already"):
        rustray.put(small)
    with pytest.raises(rustray.PayloadError, match="pickled"):
        rustray.put(unpicklable())


def unpicklable() -> Any:
    """Return what cannot be pickled."""
    return [threading.Lock()]


def test_a_generator_is_a_stream_or_several_values_as_its_options_say(cluster: None) -> None:
    """Bug: what was a stream once stayed one, and was broken with another ``num_returns``."""

    @rustray.remote
    def three() -> Iterator[int]:
        yield from range(3)

    several: Any = three.options(num_returns=3)
    assert rustray.get(several.remote(), timeout=60) == [0, 1, 2]
    again = several.options(num_returns="streaming").remote()
    assert [rustray.get(ref, timeout=60) for ref in again] == [0, 1, 2]

    @rustray.remote(num_returns="streaming")
    def one() -> list[int]:
        return [7]

    whole: Any = one.options(num_returns=1)
    assert rustray.get(whole.remote(), timeout=60) == [7]


def test_several_returns_have_references_of_their_own(cluster: None) -> None:
    """They can be got, waited for and taken; a function that returns another number is told."""
    low, high = halves.remote(list(range(6)))
    assert rustray.get([high, low]) == [[3, 4, 5], [0, 1, 2]]
    low, high = halves.remote(same.remote([1, 2, 3, 4]))
    ready, rest = rustray.wait([low, high], num_returns=2, timeout=60)
    assert (len(ready), len(rest)) == (2, 0)
    assert rustray.get(same.remote(high)) == [3, 4]

    @rustray.remote(num_returns=3)
    def wrong() -> tuple[int, int]:
        return 1, 2

    with pytest.raises(rustray.PayloadError, match="num_returns=3, and returned 2 values"):
        rustray.get(wrong.remote())
    for bad in (0, -1, 2.0, "many", True):
        with pytest.raises(ValueError, match="num_returns"):
            halves.options(num_returns=bad)


def test_references_inside_of_values_stay_references(cluster: None) -> None:
    """They come out at the other end, and are worth the same there."""
    one = add.remote(1)
    inner = rustray.get(same.remote({"ref": one}))["ref"]
    assert isinstance(inner, rustray.TaskRef)
    assert inner.task_id == one.task_id
    assert rustray.get(inner) == 1
    assert rustray.get(add.remote(inner, 1)) == 2
    low, _ = halves.remote([1, 2])
    assert rustray.get(pickle.loads(pickle.dumps(low))) == [1]


def test_a_borrowed_reference_is_waited_for_and_cancelled(cluster: None) -> None:
    """Before its task has ended too, by `get`, `wait` and `cancel`."""
    nap = rustray.remote(time.sleep)
    long = nap.remote(600)
    borrowed = pickle.loads(pickle.dumps(long))
    with pytest.raises(rustray.GetTimeout):
        rustray.get(borrowed, timeout=0.1)
    assert rustray.wait([borrowed], timeout=0.1) == ([], [borrowed])
    rustray.cancel(borrowed)
    with pytest.raises(rustray.TaskCancelled):
        rustray.get(borrowed, timeout=60)
    with pytest.raises(rustray.TaskCancelled):
        rustray.get(long, timeout=60)


async def test_borrowed_references_and_parts_are_awaitable(cluster: None) -> None:
    """Like any other."""
    low, high = halves.remote([1, 2])
    assert await low == [1]
    assert await pickle.loads(pickle.dumps(high)) == [2]
    assert await rustray.aget([high, await rustray.aput(5)]) == [[2], 5]


@rustray.remote
def total_of(refs: list[rustray.TaskRef[int]]) -> int:
    """Get what it was given references to."""
    return sum(rustray.get(refs))


@rustray.remote
def graph_inside(number: int) -> int:
    """Hand in a graph of its own."""
    value = rustray.put(number)
    for _ in range(3):
        value = add.remote(value, 1)
    return rustray.get(value)


@rustray.remote
def references(count: int) -> list[rustray.TaskRef[int]]:
    """Return what it has not waited for."""
    return [add.remote(number) for number in range(count)]


@rustray.remote(max_retries=2)
def interrupted(mark: str) -> int:
    """Die once, in the midst of a graph whose values differ from attempt to attempt."""
    first = add.remote(os.getpid())
    found = rustray.get(add.remote(first, 1))
    if not os.path.exists(mark):
        Path(mark).touch()
        os._exit(3)
    return found - os.getpid()


def test_tasks_put_and_take_too(cluster: None, tmp_path: Path) -> None:
    """References go in and out of tasks; a retry begins a graph of its own."""
    assert rustray.get(graph_inside.remote(10)) == 13
    refs = [add.remote(1), add.remote(2), rustray.put(5)]
    assert rustray.get(total_of.remote(refs)) == 8
    assert rustray.get(rustray.get(references.remote(3))) == [0, 1, 2]
    assert rustray.get(interrupted.remote(str(tmp_path / "mark"))) == 1


def test_a_task_that_only_awaits_what_it_was_given(cluster: None) -> None:
    """Regression: nothing else had loaded the client's side there, and no session was found."""
    code = (
        "import rustray\n"
        "@rustray.remote\n"
        "def one(): return 1\n"
        "@rustray.remote\n"
        "async def waits(refs): return await refs[0]\n"
        "with rustray.init(num_cpus=1):\n"
        "    print(rustray.get(waits.remote([one.remote()]), timeout=60))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_a_failure_is_the_same_through_a_reference_in_a_task(cluster: None) -> None:
    """It is an instance of the class that was raised, wherever it is asked for."""

    @rustray.remote
    def looks(refs: list[Any]) -> str:
        try:
            rustray.get(refs[0])
        except KeyError as error:
            return type(error).__mro__[1].__name__
        return "nothing"

    assert rustray.get(looks.remote([fail.remote(1)])) == "TaskExecutionFailed"


def test_a_reference_of_another_cluster_is_refused(cluster: None) -> None:
    """It says that this one does not know it."""
    code = (
        "import pickle, rustray\n"
        "with rustray.init(num_cpus=1):\n"
        "    print(pickle.dumps(rustray.put(1)).hex())\n"
    )
    text = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    ).stdout
    foreign = pickle.loads(bytes.fromhex(text.split()[-1]))
    with pytest.raises(rustray.ObjectLost, match="another cluster"):
        rustray.get(add.remote(foreign, 1), timeout=60)
    with pytest.raises(rustray.TaskNotFound):
        rustray.get(foreign, timeout=60)


def test_a_stream_that_is_over_before_its_consumer_is_there_loses_nothing(cluster: None) -> None:
    """Bug: where all of it had come before `remote` returned, once in thousands of calls."""

    @rustray.remote
    def count(up_to: int) -> Iterator[int]:
        yield from range(up_to)

    ref = RemoteFunction.remote(count, 3)  # what `remote` does, before it makes a generator of it
    rustray.wait([ref], timeout=20)
    assert list(RefGenerator(ref).values()) == [0, 1, 2]


def test_an_item_of_a_generator_goes_on_to_another_task(cluster: None) -> None:
    """Its reference stands for it, small or large, by name too; inside of others it does not."""

    @rustray.remote
    def count(sizes: list[int]) -> Iterator[bytes]:
        for size in sizes:
            yield bytes(size)

    @rustray.remote
    def length(value: bytes, *, more: bytes = b"") -> int:
        return len(value) + len(more)

    refs = list(count.remote([3, 500_000]))
    assert rustray.get([length.remote(ref) for ref in refs]) == [3, 500_000]
    assert rustray.get(length.remote(b"", more=refs[1])) == 500_000
    assert rustray.get(length.remote(refs[0], more=refs[0])) == 6
    with pytest.raises(rustray.PayloadError, match="argument of its own"):
        same.remote([refs[0]])


@rustray.remote
def large() -> bytes:
    """Return what stays with its worker."""
    return bytes(1 << 20)


@rustray.remote
def get_and_return() -> list[Any]:
    """Return a reference to a value that this task has got, and to tasks that it hands in last."""
    made = large.remote()
    rustray.get(made)
    return [made, *[large.remote() for _ in range(50)]]


def test_what_a_task_returns_a_reference_to_is_not_let_go(cluster: None) -> None:
    """Bug: it was, when the task's code had ended, if something else was on its way to the head."""
    for _ in range(5):
        for ref in rustray.get(get_and_return.remote()):
            assert len(rustray.get(ref, timeout=20)) == 1 << 20
