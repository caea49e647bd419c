"""Items between the connection and who iterates."""

from __future__ import annotations

import gc
from typing import Any

import pytest

import rustray
from rustray.client.generators import RefGenerator
from rustray.client.session import ClientSession
from rustray.common.errors import CommunicationError, GetTimeout, PayloadError
from rustray.task.codec import encode_value
from rustray.task.columns import PayloadColumn
from rustray.task.failures import encode_failure
from rustray.task.frames import AcceptedRange, ClientFrame, HeadFrame, Outcome
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import StreamItems, StreamRead

STREAM = TaskClass("f", b"h" * 32, codec=Codec.PICKLE, stream_window=8)


class Client:
    """A session without a connection, with one stream that the head has accepted."""

    def __init__(self) -> None:
        self.roused = 0
        self.session = ClientSession(self._rouse)
        entry = self.session.define(STREAM, b"code")
        self.refs: RefGenerator[Any] = RefGenerator(self.session.submit(entry, b"call"))
        self.frames()
        self.session.apply(HeadFrame(accepted=[AcceptedRange(0, 1)]))

    def _rouse(self) -> None:
        self.roused += 1

    def frames(self) -> list[ClientFrame]:
        """Return all that waits to be sent."""
        found = []
        frame = ClientFrame()
        while self.session.fill(frame, {1}):
            found.append(frame)
            frame = ClientFrame()
        assert self.session.rest()
        return found

    def reads(self) -> list[StreamRead]:
        """Return what the head is told of consumers."""
        return [read for frame in self.frames() for read in frame.reads]

    def items(self, first: int, *values: object) -> None:
        """Have items arrive."""
        payloads = PayloadColumn.of([encode_value(Codec.PICKLE, each, "item") for each in values])
        self.session.apply(HeadFrame(items=[StreamItems(0, first, payloads)]))

    def end(self, items: int, failure: str = "") -> None:
        """Have the outcome arrive."""
        payload = encode_value(Codec.PICKLE, items, "result")
        state = TaskState.SUCCEEDED
        if failure:
            payload = encode_failure(FailureInfo("TASK_FAILED", failure))
            state = TaskState.FAILED
        outcome = Outcome(0, state, PayloadColumn.of([payload]), "w", 1, items)
        self.session.apply(HeadFrame(outcomes=[outcome]))


def test_items_are_given_in_order_until_the_end() -> None:
    """As references whose value is there, or as values; the task's own value is their number."""
    client = Client()
    client.items(0, "a", "b")
    client.items(2, "c")
    first = next(client.refs)
    assert rustray.get(first) == "a"
    assert rustray.get([first, next(client.refs)]) == ["a", "b"]
    client.end(3)
    assert list(client.refs.values()) == ["c"]
    assert rustray.get(client.refs.completed()) == 3
    assert list(client.refs) == []


def test_what_comes_twice_or_too_early_is_left_out() -> None:
    """A head sends again what a client asks for after a reconnect."""
    client = Client()
    client.items(0, "a", "b")
    client.items(1, "b", "c")
    client.items(5, "f")
    client.items(3, "d", "e", "f")
    client.end(6)
    assert list(client.refs.values()) == list("abcdef")


def test_an_outcome_that_comes_before_the_last_items_waits_for_them() -> None:
    """Over a new connection, before the head knows what is missing."""
    client = Client()
    client.items(0, "a")
    client.end(3, "half-way")
    assert not client.refs.completed().is_done
    client.items(1, "b", "c")
    assert client.refs.completed().is_done
    found = list(client.refs)
    assert rustray.get(found[:3]) == ["a", "b", "c"]
    with pytest.raises(rustray.TaskExecutionFailed, match="half-way"):
        rustray.get(found[3])
    assert list(client.refs) == []


def test_a_new_connection_asks_for_what_is_missing() -> None:
    """From the first item on that has not arrived, before it asks for the outcome."""
    client = Client()
    client.items(0, "a", "b")
    next(client.refs)
    client.session.restart()
    [frame] = client.frames()
    assert frame.reads == [StreamRead(0, 1, 2)]
    assert [(one.first, one.count) for one in frame.follow] == [(0, 1)]


def test_the_head_is_told_of_consumption_a_few_times_a_window() -> None:
    """And in the end, so that it keeps nothing."""
    client = Client()
    client.items(0, *range(8))
    told = []
    for _ in range(8):
        next(client.refs)
        told += client.reads()
    assert [read.consumed for read in told] == [2, 4, 6, 8]
    client.items(8, 8)
    client.end(9)
    next(client.refs)
    assert client.reads() == [StreamRead(0, 9)]


def test_much_is_told_at_once() -> None:
    """A generator that waits for bytes must not wait for more items."""
    client = Client()
    client.items(0, bytes(5 << 20))
    next(client.refs)
    assert client.reads() == [StreamRead(0, 1)]


@pytest.mark.parametrize("how", ["close", "with", "drop"])
def test_a_consumer_that_leaves_cancels_its_task(how: str) -> None:
    """However it leaves."""
    client = Client()
    client.items(0, "a", "b")
    if how == "close":
        client.refs.close()
        assert list(client.refs) == []
    elif how == "with":
        with client.refs as refs:
            next(refs)
    else:
        del client.refs
        gc.collect()
    [frame] = client.frames()
    assert [(read.sequence, read.has_left) for read in frame.reads] == [(0, True)]
    assert [(one.first, one.count) for one in frame.cancels] == [(0, 1)]


def test_a_stream_that_was_read_to_its_end_is_not_cancelled() -> None:
    """To drop it means nothing any more."""
    client = Client()
    client.items(0, "a")
    client.end(1)
    assert list(client.refs.values()) == ["a"]
    client.reads()
    del client.refs
    gc.collect()
    assert client.frames() == []


def test_a_wait_for_an_item_can_have_a_limit() -> None:
    """The stream goes on."""
    client = Client()
    with pytest.raises(GetTimeout, match=r"no item .* 0\.01 s"):
        client.refs.next(timeout=0.01)
    client.items(0, "a")
    assert rustray.get(client.refs.next(timeout=0.01)) == "a"


async def test_coroutines_iterate_too() -> None:
    """References and values."""
    client = Client()
    client.items(0, "a", "b", "c")
    client.end(3)
    async for ref in client.refs:
        assert await ref == "a"
        break
    assert [value async for value in client.refs.values()] == ["b", "c"]


def test_a_consumer_that_outlives_its_session_is_no_trouble() -> None:
    """It takes what has arrived, and may be dropped: there is nobody to tell."""
    client = Client()

    def closed() -> None:
        raise RuntimeError("Event loop is closed")

    client.session.reads._rouse = closed
    client.items(0, *range(8))
    client.session.close(CommunicationError("shut down"))
    assert [rustray.get(next(client.refs)) for _ in range(8)] == list(range(8))
    client.refs.close()


def test_a_session_that_closes_ends_the_iteration() -> None:
    """With the reason, at the place where it is."""
    client = Client()
    client.items(0, "a")
    client.session.close(CommunicationError("shut down"))
    values = client.refs.values()
    assert next(values) == "a"
    with pytest.raises(CommunicationError, match="shut down"):
        next(values)


def test_a_stream_is_no_value() -> None:
    """It can neither be got nor sent; what to do is said."""
    client = Client()
    with pytest.raises(TypeError, match="iterate"):
        rustray.get(client.refs)  # type: ignore[call-overload]
    client.items(0, "a")
    for thing in (client.refs, next(client.refs)):
        with pytest.raises(PayloadError, match="value"):
            thing.__reduce__()


def test_generator_functions_are_streams_by_themselves() -> None:
    """As in Ray; what makes no sense is refused where it is written."""

    @rustray.remote(generator_backpressure_num_objects=5)
    def counts() -> Any:
        yield 1

    @rustray.remote
    def returns() -> Any:
        return iter([1])

    from rustray.client.options import task_class

    def window(function: Any) -> int:
        return task_class(function._function, b"", function._options).stream_window

    assert window(counts) == 5
    assert window(returns) == 0
    assert window(returns.options(num_returns="streaming")) == 128
    with pytest.raises(ValueError, match="is a generator function"):
        counts.options(num_returns=1)
    with pytest.raises(ValueError, match="in a process"):
        counts.options(executor="thread")
    for bad in (0, -1, True, 1 << 20, "4"):
        with pytest.raises(ValueError, match="generator_backpressure_num_objects"):
            counts.options(generator_backpressure_num_objects=bad)
