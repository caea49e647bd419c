"""Large values in an embedded cluster: as on any other, and gone when nobody needs them."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import rustray
from helpers.waiting import eventually
from rustray.client import context
from rustray.client.attachment import Attachment
from rustray.common.errors import ObjectLost
from rustray.task.state import TaskState

MIB = 1 << 20
LARGE = 30 * MIB
"""More than any message carries."""


@rustray.remote
def make(size: int) -> bytes:
    """Return so many bytes."""
    return bytes(size)


@rustray.remote(max_retries=0)
def make_once(size: int) -> bytes:
    """The same, never run again: so it may not stay with its worker."""
    return bytes(size)


@rustray.remote
def total(*values: bytes) -> int:
    """Return how many bytes came."""
    return sum(map(len, values))


@rustray.remote
def until(folder: str) -> bytes:
    """Return when a file is there."""
    while not Path(folder, "over").exists():
        time.sleep(0.01)  # the task's work
    return b"done"


def _stream(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(LARGE)


stream: Any = rustray.remote(num_returns="streaming")(_stream)


def kept() -> int:
    """Return how many values stay with the worker."""
    runtime = context._runtime
    assert isinstance(runtime, Attachment)
    assert runtime._api is not None
    _, totals = runtime._thread.call(runtime._api.list_objects(1))
    return sum(total.objects for total in totals)


@rustray.remote
def get_lent(refs: list[Any]) -> int:
    """Get what was given inside of a list, and so as a reference."""
    return len(rustray.get(refs[0]))


def test_what_a_task_gets_by_a_reference_is_kept_once(cluster: None) -> None:
    """Bug: each `get` in a task left a copy with the worker, for a day."""
    before = kept()
    value = rustray.put(bytes(MIB))
    for _ in range(5):
        assert rustray.get(get_lent.remote([value])) == MIB
    eventually(lambda: kept() == before + 1)
    assert rustray.get(get_lent.remote([value])) == MIB
    assert len(rustray.get(value)) == MIB
    rustray.free(value)  # it was lent, and would stay
    eventually(lambda: kept() == before)


def test_who_asks_again_and_again_has_a_large_result_in_the_end(cluster: None) -> None:
    """Bug: who did not wait was told for ever that the task is RUNNING."""
    runtime = context._runtime
    assert isinstance(runtime, Attachment)
    assert runtime._api is not None
    api, ref = runtime._api, make.remote(MIB)
    rustray.wait([ref])

    def is_told() -> bool:
        return runtime._thread.call(api.get_result(ref.task_id, 0.0)).state is TaskState.SUCCEEDED

    eventually(is_told)


def test_a_large_result_comes_back(cluster: None) -> None:
    """It was refused above 16 MiB."""
    assert len(rustray.get(make.remote(LARGE))) == LARGE
    assert len(rustray.get(make_once.remote(LARGE))) == LARGE


def test_a_large_value_is_put_once_for_all_that_take_it(cluster: None) -> None:
    """And the program may have it back."""
    ref = rustray.put(bytes(LARGE))
    assert rustray.get([total.remote(ref), total.remote(ref, ref)]) == [LARGE, 2 * LARGE]
    assert len(rustray.get(ref)) == LARGE


def test_a_value_of_more_than_2_gib_is_refused(cluster: None) -> None:
    """Bug: a larger one was put as it is, and only as an argument or a result refused."""
    for hand_in in (rustray.put, total.remote):
        with pytest.raises(rustray.PayloadError, match="at most 2147483648"):
            hand_in(np.zeros(2**31 + 5, dtype=np.uint8))  # its pages are never touched


def test_large_results_go_from_task_to_task(cluster: None) -> None:
    """Also one that has to go through the head: there its size was bounded by a message."""
    assert rustray.get(total.remote(make.remote(LARGE), make.remote(LARGE))) == 2 * LARGE
    assert rustray.get(total.remote(make_once.remote(LARGE))) == LARGE


def test_large_arguments_go_beside_references(cluster: None) -> None:
    """Regression: with the value of the reference they were too much for one task."""
    ref = make_once.remote(LARGE)
    assert rustray.get(total.remote(bytes(LARGE))) == LARGE
    assert rustray.get(total.remote(bytes(LARGE), ref)) == 2 * LARGE
    assert rustray.get(total.remote(ref, bytes(LARGE), make.remote(3))) == 2 * LARGE + 3


def test_a_large_argument_beside_a_reference_is_put(cluster: None, tmp_path: Path) -> None:
    """So it waits with the worker for what the reference stands for, and not in a message."""
    gc.collect()
    assert eventually(lambda: kept() == 0, 10.0)
    found = total.remote(bytes(LARGE), until.remote(str(tmp_path)))
    assert eventually(lambda: kept() == 1, 10.0)
    (tmp_path / "over").touch()
    assert rustray.get(found) == LARGE + 4


def test_large_items_are_streamed(cluster: None) -> None:
    """Each is a value of its own."""
    assert [len(value) for value in stream.remote(3).values()] == [LARGE] * 3


def test_a_large_value_goes_with_its_last_reference(cluster: None) -> None:
    """It stayed as long as the budget of the head's results allowed."""
    gc.collect()
    assert eventually(lambda: kept() == 0, 10.0)
    made, put = make.remote(LARGE), rustray.put(bytes(LARGE))
    assert len(rustray.get(made)) == len(rustray.get(put)) == LARGE
    assert kept() == 2
    del made, put
    assert eventually(lambda: kept() == 0, 10.0)


def test_a_large_value_may_be_freed(cluster: None) -> None:
    """Who asks after that is told."""
    ref = make.remote(LARGE)
    rustray.wait([ref])
    rustray.free([ref])
    with pytest.raises(ObjectLost):
        rustray.get(ref, timeout=20)


_CLUSTER_AND_ITS_END = """
import gc
import rustray
from rustray.scheduler.records import Batch

@rustray.remote
def make(size):
    return bytes(size)

def batches():
    return sum(type(each) is Batch for each in gc.get_objects())

with rustray.init(num_cpus=1):
    rustray.get([make.remote(1_000) for _ in range(20)])
    missed = make.remote(1_000_000)
    rustray.wait([missed])
    during = batches()
gc.collect()
print(during > 0, batches())
try:
    rustray.get(missed)
except rustray.CommunicationError as error:
    print(error)
"""


def test_nothing_of_a_cluster_is_kept_after_its_end() -> None:
    """Regression: a remote function knows its last session, and that kept the head's results."""
    program = [sys.executable, "-c", _CLUSTER_AND_ITS_END]
    kept_of_it, said = subprocess.check_output(program, timeout=60, text=True).splitlines()
    assert kept_of_it == "True 0"
    assert said.startswith("rustray was shut down before this program had the value")
