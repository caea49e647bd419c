"""What runs in an executor for a chunk of a map."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from rustray.client.map_calls import FULL_BYTES, Registered, run_items, run_items_async
from rustray.common.errors import FunctionNotFound
from rustray.task.codec import decode_failure
from rustray.task.functions import registry
from rustray.worker.context import TaskInterrupt


def _invert(x: int) -> float:
    return 1 / x


def test_plain_values_travel_as_they_are_and_others_encoded() -> None:
    """Numbers and texts cost no pickle of their own; the rest is pickled one by one."""
    items: list[Any] = [1, "a", b"b", None, 2.5, [1], {"a": 1}]
    run_s, values, encoded, failures = run_items(lambda x: x, False, 1.0, items)
    assert values == [1, "a", b"b", None, 2.5, None, None]
    assert {place: pickle.loads(data) for place, data in encoded.items()} == {5: [1], 6: {"a": 1}}
    assert failures == {}
    assert run_s >= 0


def test_a_result_is_what_it_was_when_the_function_returned() -> None:
    """A list that the next item changes arrives as it was."""
    seen: list[int] = []

    def remember(x: int) -> list[int]:
        seen.append(x)
        return seen

    _, _, encoded, _ = run_items(remember, False, 1.0, [1, 2, 3])
    assert [pickle.loads(encoded[place]) for place in range(3)] == [[1], [1, 2], [1, 2, 3]]


def test_failures_belong_to_their_items() -> None:
    """An exception has the user's frames only, and the others have run."""
    _, values, _, failures = run_items(_invert, False, 1.0, [1, 0, 2])
    assert values == [1.0, None, 0.5]
    info = decode_failure(failures[1])
    assert info.error_type == "builtins.ZeroDivisionError"
    assert "in _invert" in info.traceback
    assert "run_items" not in info.traceback
    assert type(pickle.loads(info.pickled)) is ZeroDivisionError


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
def test_whatever_an_item_raises_is_a_failure(error: BaseException) -> None:
    """Also what is no `Exception`."""

    def raise_it(_x: int) -> None:
        raise error

    _, _, _, failures = run_items(raise_it, False, 1.0, [1])
    assert decode_failure(failures[0]).error_type == f"builtins.{type(error).__name__}"


def test_an_exception_that_cannot_be_described_is_a_failure_too() -> None:
    """Its own methods raise while it is looked at."""

    class Vicious(Exception):
        def __str__(self) -> str:
            raise SystemExit(1)

        def __reduce_ex__(self, _protocol: Any) -> Any:
            raise SystemExit(2)

    def raise_it(_x: int) -> None:
        raise Vicious

    _, values, _, failures = run_items(raise_it, False, 1.0, [1, 2])
    assert len(values) == 2
    assert "Vicious" in decode_failure(failures[0]).error_type


def test_an_interrupt_ends_the_chunk() -> None:
    """A cancel is of the task and not of an item."""

    def interrupt(_x: int) -> None:
        raise TaskInterrupt

    with pytest.raises(TaskInterrupt):
        run_items(interrupt, False, 1.0, [1, 2])


def test_a_result_that_cannot_be_pickled_is_its_items_failure() -> None:
    """It says which part of it, and that the function itself succeeded."""
    _, values, _, failures = run_items(
        lambda x: {"lock": threading.Lock()} if x else 0, False, 1.0, [0, 1, 0]
    )
    assert values == [0, None, 0]
    info = decode_failure(failures[1])
    assert info.code == "PAYLOAD"
    assert "succeeded, but the result cannot be pickled: result['lock']" in info.message


def test_the_rest_is_given_back_when_time_is_up() -> None:
    """A chunk ends after its budget, with what has run; one item always runs."""
    _, values, _, _ = run_items(lambda x: x, False, 0.0, [1, 2, 3])
    assert values == [1]


def test_the_rest_is_given_back_when_results_are_large() -> None:
    """Before they are over the limit of a result."""
    for size in (FULL_BYTES, FULL_BYTES // 2):
        _, values, encoded, _ = run_items(lambda _, size=size: bytes(size), False, 9.0, range(9))
        assert len(values) == FULL_BYTES // size
        assert (len(encoded) > 0) == (size == FULL_BYTES)


def test_star_spreads_the_arguments() -> None:
    """An item of several inputs is a tuple of arguments."""
    assert run_items(pow, True, 1.0, [(2, 3), (2, 3, 5)])[1] == [8, 3]


async def test_coroutines_are_awaited_one_after_the_other() -> None:
    """Both where it is known that the function is one and where it turns out."""
    running: list[int] = []

    async def double(x: int) -> int:
        running.append(x)
        assert len(running) == 1
        running.clear()
        if x == 1:
            raise ValueError("one")
        return 2 * x

    for report in (
        await run_items_async(double, False, 1.0, [0, 1, 2]),
        await run_items(double, False, 1.0, [0, 1, 2]),
    ):
        assert report[1] == [0, None, 4]
        assert decode_failure(report[3][1]).message == "one"


def test_registered_functions_are_looked_up_where_they_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By name, which is all that travels."""
    monkeypatch.setattr(registry, "functions", dict(registry.functions))
    call = pickle.loads(pickle.dumps(Registered("double_it")))
    _, _, _, failures = run_items(call, False, 1.0, [1])
    assert decode_failure(failures[0]).code == FunctionNotFound.code
    registry.add("double_it", lambda x: 2 * x)
    assert run_items(call, False, 1.0, [4])[1] == [8]
