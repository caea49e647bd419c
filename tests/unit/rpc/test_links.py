"""The writer's rule: write now if nothing is in flight, else pull when the write is done."""

from __future__ import annotations

import asyncio
from typing import cast

import pytest

from helpers.rpc import ScriptedPump
from rustray.common.errors import CommunicationError, InvariantError
from rustray.rpc.api import Link
from rustray.rpc.grpcio import EOF
from rustray.rpc.links import FrameLink


class FakeStream:
    """A stream whose writes end when the test says so."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.pending: list[asyncio.Future[None]] = []
        self.incoming: asyncio.Queue[object] = asyncio.Queue()
        self.is_instant = False
        self.gives_way = False

    async def write(self, message: bytes, /) -> None:
        self.written.append(message)
        if self.gives_way:
            await asyncio.sleep(0)
        if not self.is_instant:
            self.pending.append(asyncio.get_running_loop().create_future())
            await self.pending[-1]

    async def read(self) -> object:
        return await self.incoming.get()


@pytest.fixture
async def stream() -> FakeStream:
    """A stream."""
    return FakeStream()


@pytest.fixture
async def pump() -> ScriptedPump:
    """A pump."""
    return ScriptedPump()


@pytest.fixture
async def link(pump: ScriptedPump, stream: FakeStream) -> FrameLink:
    """A link between both, frames being bytes."""
    found = FrameLink(pump, stream, bytes, bytes)
    pump.link = cast("Link", found)
    return found


async def turn() -> None:
    """Let callbacks run."""
    for _ in range(5):
        await asyncio.sleep(0)


async def test_an_idle_link_writes_from_within_wake(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """The first frame is under way when wake returns, without a turn of the loop."""
    pump.send(b"one")
    assert stream.written == [b"one"]
    assert not link.ended.done()


async def test_a_busy_link_leaves_frames_to_the_pump(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """While a write is in flight the pump is not asked, so that it can collect."""
    pump.send(b"one")
    pulls = pump.pulls
    pump.send(b"two")
    link.wake()
    await turn()
    assert pump.pulls == pulls
    stream.pending[0].set_result(None)
    await turn()
    assert stream.written == [b"one", b"two"]


@pytest.mark.parametrize("gives_way", [False, True])
async def test_instant_writes_go_on_until_the_pump_is_dry(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink, gives_way: bool
):
    """Writes that end at once, or after a bare turn, need no further wake."""
    stream.is_instant, stream.gives_way = True, gives_way
    pump.waiting += [b"1", b"2", b"3"]
    link.wake()
    await turn()
    assert stream.written == [b"1", b"2", b"3"]
    pump.send(b"4")
    await turn()
    assert stream.written[-1] == b"4"


async def test_a_failed_write_ends_the_stream_once(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """A write that fails is a lost connection; nothing is pulled afterwards."""
    pump.send(b"one")
    pump.waiting.append(b"two")
    stream.pending[0].set_exception(OSError("gone"))
    await turn()
    link.wake()
    assert [type(error) for error in pump.closed] == [CommunicationError]
    assert stream.written == [b"one"]


async def test_drain_waits_for_the_last_write(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """A drain returns when the pump is dry and nothing is in flight."""
    pump.send(b"one")
    pump.waiting.append(b"two")
    draining = asyncio.create_task(link.drain())
    await turn()
    stream.pending[0].set_result(None)
    await turn()
    assert not draining.done()
    stream.pending[1].set_result(None)
    await draining
    assert stream.written == [b"one", b"two"]


async def test_a_wake_from_within_next_frame_does_not_write_twice(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """A pump that wakes its link while it is being asked changes nothing."""
    frames = [b"one"]

    def next_frame() -> bytes | None:
        link.wake()
        return frames.pop() if frames else None

    pump.next_frame = next_frame  # type: ignore[method-assign]
    link.wake()
    assert stream.written == [b"one"]


async def test_control_messages_go_before_frames(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """A message of the link's own overtakes frames that wait."""
    pump.send(b"one")
    pump.waiting.append(b"two")
    link.send_control(b"token")
    stream.pending[0].set_result(None)
    await turn()
    assert stream.written == [b"one", b"token"]


async def test_reading_ends_with_the_stream(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink
):
    """Messages reach the pump in order until the end, which is orderly."""
    for message in (b"a", b"b", EOF):
        stream.incoming.put_nowait(message)
    await link.read_on()
    assert pump.received == [b"a", b"b"]
    assert pump.closed == [None]


async def test_a_pump_that_fails_at_its_end_harms_nobody(
    pump: ScriptedPump, stream: FakeStream, link: FrameLink, caplog: pytest.LogCaptureFixture
):
    """An exception out of on_closed is logged, and the link is over."""

    def explode(_: object) -> None:
        raise KeyError("boom")

    pump.on_closed = explode  # type: ignore[method-assign,assignment]
    link.fail(InvariantError("x"))
    assert link.ended.done()
    assert "boom" in caplog.text


async def test_what_ended_a_stream_keeps_nothing_of_the_message(
    link: FrameLink, pump: ScriptedPump
) -> None:
    """Regression: the error's traceback held a bad frame of 32 MB until the next collection."""

    def decode(message: bytes) -> bytes:
        try:
            raise ValueError("no frame")
        except ValueError as error:
            raise CommunicationError(f"{len(message)} bytes that are no frame") from error

    try:
        decode(b"x" * 1000)
    except CommunicationError as error:
        link.fail(error)
    told = link.ended.result()
    assert isinstance(told, CommunicationError)
    assert (told.__traceback__, told.__cause__, told.__context__) == (None, None, None)
    assert pump.closed == [told]
