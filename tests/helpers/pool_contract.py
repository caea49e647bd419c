"""What ``multiprocessing.Pool`` promises: each function here is true of it, and of `rustray.Pool`.

Run as a program, it tries them all on ``multiprocessing.Pool``; `tests/unit/test_embedded_pool.py`
tries them one by one on ours.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

WITHIN_S = 30.0
_state: list[Any] = []


def square(x: int) -> int:
    """Square."""
    return x * x


def invert(x: int) -> float:
    """Divide."""
    return 1 / x


def power(base: int, exponent: int = 2) -> int:
    """Raise to a power."""
    return int(base**exponent)


def remember(value: Any) -> None:
    """Be an initializer."""
    _state.append(value)


def recall(_x: int) -> list[Any]:
    """Return what the initializer has left in this process."""
    return list(_state)


def nap(seconds: float) -> float:
    """Sleep."""
    time.sleep(seconds)  # the task's work
    return seconds


def pid(_x: int) -> int:
    """Say which process this is."""
    return os.getpid()


def raises(kind: type[BaseException] | tuple[type[BaseException], ...], call: Any) -> BaseException:
    """Call, and return what it raises."""
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"{call} did not raise {kind}")


# ---- for a pool of two that is shared --------------------------------------------------------


def apply_calls_with_arguments(pool: Any) -> None:
    """Positional and by keyword; the result is that of the call."""
    assert pool.apply(power, (3,)) == 9
    assert pool.apply(power, (3,), {"exponent": 3}) == 27
    assert pool.apply(power, kwds={"base": 2, "exponent": 5}) == 32
    assert pool.apply(math.sqrt, [16]) == 4


def work_runs_in_other_processes(pool: Any) -> None:
    """Not in this one."""
    assert os.getpid() not in pool.map(pid, range(10))


def apply_async_returns_a_result(pool: Any) -> None:
    """ready, successful, wait and get."""
    result = pool.apply_async(square, (7,))
    result.wait(WITHIN_S)
    assert result.ready()
    assert result.successful()
    assert result.get(timeout=1) == 49
    assert result.get() == 49


def a_result_that_is_not_there_says_so(pool: Any) -> None:
    """Get raises multiprocessing.TimeoutError, successful raises ValueError."""
    result = pool.apply_async(nap, (0.5,))
    raises(multiprocessing.TimeoutError, lambda: result.get(timeout=0.01))
    raises(ValueError, result.successful)
    result.wait(0.01)
    assert not result.ready()
    assert result.get(WITHIN_S) == 0.5


def exceptions_come_from_the_call(pool: Any) -> None:
    """Of their own class, with the remote traceback as the cause."""
    calls: tuple[Callable[[], Any], ...] = (
        lambda: pool.apply(invert, (0,)),
        lambda: pool.map(invert, [1, 0, 2]),
        lambda: pool.starmap(power, [(2, "x")]),
    )
    for call in calls:
        error = raises((ZeroDivisionError, TypeError), call)
        assert type(error) in (ZeroDivisionError, TypeError)
        assert "Traceback" in str(error.__cause__)
    result = pool.apply_async(invert, (0,))
    result.wait(WITHIN_S)
    assert result.ready()
    assert not result.successful()


def callbacks_run_before_get_returns(pool: Any) -> None:
    """One of the two, once, in another thread."""
    called: list[Any] = []
    caller = threading.get_ident()

    def good(value: Any) -> None:
        called.append(("good", value, threading.get_ident() != caller))

    def bad(error: BaseException) -> None:
        called.append(("bad", type(error), threading.get_ident() != caller))

    assert pool.apply_async(square, (3,), callback=good, error_callback=bad).get(WITHIN_S) == 9
    assert called == [("good", 9, True)]
    result = pool.apply_async(invert, (0,), callback=good, error_callback=bad)
    raises(ZeroDivisionError, lambda: result.get(WITHIN_S))
    assert called[1:] == [("bad", ZeroDivisionError, True)]
    assert pool.map_async(square, [1, 2], callback=good).get(WITHIN_S) == [1, 4]
    assert called[2:] == [("good", [1, 4], True)]
    result = pool.starmap_async(power, [(1, "x")], error_callback=bad)
    raises(TypeError, lambda: result.get(WITHIN_S))
    assert called[3:] == [("bad", TypeError, True)]


def maps_return_lists_in_order(pool: Any) -> None:
    """Whatever the chunk size; generators and empty inputs too."""
    for chunksize in (None, 1, 7, 1000):
        assert pool.map(square, range(100), chunksize) == [x * x for x in range(100)]
    assert pool.map(square, (x for x in range(10))) == [x * x for x in range(10)]
    assert pool.map(square, []) == []
    assert pool.map_async(square, range(10)).get(WITHIN_S) == [x * x for x in range(10)]
    assert pool.map_async(square, []).get(WITHIN_S) == []


def starmap_spreads_arguments(pool: Any) -> None:
    """Each item is the arguments of a call."""
    assert pool.starmap(power, [(2, 3), (3, 2), [5]]) == [8, 9, 25]
    assert pool.starmap_async(power, zip(range(4), range(4), strict=True)).get(WITHIN_S) == [
        1, 1, 4, 27,
    ]  # fmt: skip


def imap_iterates_in_order(pool: Any) -> None:
    """And imap_unordered in any."""
    for options in ({}, {"chunksize": 7}):
        assert list(pool.imap(square, range(50), **options)) == [x * x for x in range(50)]
        found = pool.imap_unordered(square, range(50), **options)
        assert sorted(found) == [x * x for x in range(50)]
    assert list(pool.imap(square, iter([]))) == []


def imap_raises_at_its_place_and_goes_on(pool: Any) -> None:
    """The exception of an item does not end the iterator."""
    results = pool.imap(invert, [1, 0, 2], chunksize=1)
    assert results.next(timeout=WITHIN_S) == 1.0
    raises(ZeroDivisionError, results.next)
    assert next(results) == 0.5
    raises(StopIteration, results.next)


def imap_has_a_timeout(pool: Any) -> None:
    """``next(timeout)`` says that there is nothing yet."""
    results = pool.imap(nap, [0.4])
    raises(multiprocessing.TimeoutError, lambda: results.next(timeout=0.01))
    assert results.next(timeout=WITHIN_S) == 0.4


def imap_runs_though_nobody_asks(pool: Any) -> None:
    """The input is read to its end in the background."""
    ended = threading.Event()

    def source() -> Iterator[int]:
        yield from range(20)
        ended.set()

    results = pool.imap(square, source())
    assert ended.wait(WITHIN_S)
    assert list(results) == [x * x for x in range(20)]


def what_an_input_raises_comes_out(pool: Any) -> None:
    """At once from map; from imap after the results of what came before."""

    def source() -> Iterator[int]:
        yield 1
        yield 2
        raise LookupError("cut")

    raises(LookupError, lambda: pool.map(square, source()))
    results = pool.imap(square, source())
    assert [next(results), next(results)] == [1, 4]
    raises(LookupError, results.next)


def bad_chunk_sizes_are_refused(pool: Any) -> None:
    """By imap, at the call."""
    raises(ValueError, lambda: pool.imap(square, [1], chunksize=0))
    raises(ValueError, lambda: pool.imap_unordered(square, [1], chunksize=-1))


def a_pool_cannot_be_pickled(pool: Any) -> None:
    """It says so."""
    raises(NotImplementedError, pool.__reduce__)


# ---- for pools of their own; the argument makes one -------------------------------------------


def close_lets_work_end(make: Callable[..., Any]) -> None:
    """After close nothing is taken, join waits for what was, and results are there."""
    pool = make(2)
    single = pool.apply_async(nap, (0.2,))
    several = pool.map_async(nap, [0.05] * 4)
    results = pool.imap(square, range(5))
    raises(ValueError, pool.join)
    pool.close()
    raises(ValueError, lambda: pool.apply_async(square, (1,)))
    raises(ValueError, lambda: pool.map(square, [1]))
    raises(ValueError, lambda: pool.imap(square, [1]))
    pool.join()
    assert single.ready()
    assert several.ready()
    assert single.get() == 0.2
    assert several.get() == [0.05] * 4
    assert list(results) == [0, 1, 4, 9, 16]
    pool.close()
    pool.terminate()


def leaving_the_block_terminates(make: Callable[..., Any]) -> None:
    """What has not ended is not waited for."""
    began = time.monotonic()
    with make(1) as pool:
        assert pool.apply(square, (2,)) == 4
        result = pool.apply_async(nap, (300,))
        pool.map_async(nap, [300] * 3)
    pool.join()
    assert time.monotonic() - began < 60
    raises(multiprocessing.TimeoutError, lambda: _ended_in_time(result))
    raises(ValueError, lambda: pool.apply(square, (1,)))
    raises(ValueError, pool.__enter__)


def _ended_in_time(result: Any) -> None:
    # The standard library's never ends; one that says what happened is as good.
    try:
        result.get(timeout=0.1)
    except RuntimeError as error:
        raise multiprocessing.TimeoutError(str(error)) from error


def initializers_run_first(make: Callable[..., Any]) -> None:
    """Once in each process, for calls and for maps."""
    with make(1, initializer=remember, initargs=("x",)) as pool:
        assert pool.apply(recall, (0,)) == ["x"]
        assert pool.map(recall, range(3)) == [["x"]] * 3
    pool.join()


def bad_arguments_are_refused(make: Callable[..., Any]) -> None:
    """Before anything is started."""
    raises(ValueError, lambda: make(0))
    raises(TypeError, lambda: make(1, initializer=3))


SHARED: tuple[Callable[[Any], None], ...] = (
    apply_calls_with_arguments,
    work_runs_in_other_processes,
    apply_async_returns_a_result,
    a_result_that_is_not_there_says_so,
    exceptions_come_from_the_call,
    callbacks_run_before_get_returns,
    maps_return_lists_in_order,
    starmap_spreads_arguments,
    imap_iterates_in_order,
    imap_raises_at_its_place_and_goes_on,
    imap_has_a_timeout,
    imap_runs_though_nobody_asks,
    what_an_input_raises_comes_out,
    bad_chunk_sizes_are_refused,
    a_pool_cannot_be_pickled,
)
OWN: tuple[Callable[[Callable[..., Any]], None], ...] = (
    close_lets_work_end,
    leaving_the_block_terminates,
    initializers_run_first,
    bad_arguments_are_refused,
)


def main() -> None:
    """Try everything on the standard library's pool."""
    with multiprocessing.Pool(2) as pool:
        for check in SHARED:
            check(pool)
            print("ok", check.__name__)
    for own in OWN:
        own(multiprocessing.Pool)
        print("ok", own.__name__)


if __name__ == "__main__":
    main()
    sys.exit(0)
