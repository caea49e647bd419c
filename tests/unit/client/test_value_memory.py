"""A value for which this process has no memory."""

from __future__ import annotations

from typing import Any

import pytest

from rustray.client import values
from rustray.client.loop_thread import LoopThread
from rustray.client.values import Hold, Placed, SessionValues
from rustray.common.errors import ResourceExhausted
from rustray.common.ids import TaskId
from rustray.objects.segment import Segment
from rustray.rpc.api import RawResult
from rustray.task.place import Place
from rustray.task.spec import Codec
from rustray.task.state import TaskState

PLACE = Place("o-1", 200_000, "w-1")


class OneValue:
    """A head that knows where one value is, and sends it."""

    async def locate_result(self, task_id: str, *_: Any) -> RawResult:
        return RawResult(
            task_id, TaskState.SUCCEEDED, Codec.PICKLE, PLACE.pack(), "w-1", 1, is_placed=True
        )

    async def fetch_object(self, place: Place, _: str) -> Segment:
        return Segment.write([bytes(place.size)])


def test_who_has_no_memory_to_map_a_value_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bug: a bare OSError of a failed mapping; the value is there, and can be had again."""

    def full(_: Segment) -> memoryview:
        raise OSError(12, "cannot map 200000 bytes: Cannot allocate memory")

    thread = LoopThread()
    api: Any = OneValue()
    session = SessionValues(api, thread)
    placed = Placed(Hold(PLACE.pack(), TaskId("0" * 32)))
    monkeypatch.setattr(values, "mapped", lambda *_: None)
    with monkeypatch.context() as short:
        short.setattr(Segment, "view", full)
        with pytest.raises(ResourceExhausted, match="no memory here for a value of 200000 bytes"):
            session.load(placed, 10.0)
    assert bytes(session.load(placed, 10.0)) == bytes(PLACE.size)
    session.close()
    thread.stop()
