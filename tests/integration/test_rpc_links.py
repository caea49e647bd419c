"""What every frame stream keeps to, in this process and over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from helpers.rpc import FakeAuth, FakeHead, ScriptedPump, make_identity
from helpers.waiting import aeventually
from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    HeadUnavailable,
    InvariantError,
    RustRayError,
)
from rustray.rpc.auth import Guard
from rustray.rpc.head_client import GrpcHeadClient, connect
from rustray.rpc.memory_link import memory_link_pair
from rustray.rpc.server import HeadServer
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AcceptedRange, ClientFrame, HeadFrame, Submission

PREFIX = b"0123456789"
Open = Callable[[ScriptedPump], Awaitable[ScriptedPump]]


def submit(number: int, size: int = 1) -> ClientFrame:
    """Make the client's frame of that number, with one task of that many bytes."""
    payloads = PayloadColumn.of([b"x" * size])
    return ClientFrame(number=number, submissions=[Submission(1, number, payloads)])


@pytest.fixture
def head() -> FakeHead:
    return FakeHead()


@pytest.fixture
async def server(head: FakeHead) -> AsyncIterator[tuple[HeadServer, int]]:
    found = HeadServer(head.api, head, auth=FakeAuth(), identity=None, port=0)
    port = await found.start()
    yield found, port
    await found.stop(0.5)


@pytest.fixture
async def client(server: tuple[HeadServer, int]) -> AsyncIterator[GrpcHeadClient]:
    found = await connect(f"127.0.0.1:{server[1]}", token_source="submit:eve", insecure=True)
    yield found
    await found.close()


@pytest.fixture(params=["memory", "plain", "tls"])
async def open_stream(
    request: pytest.FixtureRequest, head: FakeHead, tmp_path: Path
) -> AsyncIterator[Open]:
    """Join a client's pump to a head's; gives the head's."""
    import asyncio

    if request.param == "memory":

        async def open_memory(pump: ScriptedPump) -> ScriptedPump:
            peer = ScriptedPump()
            mine, theirs = memory_link_pair(asyncio.get_running_loop(), pump, peer)
            peer.attach(theirs)
            pump.link = mine
            return peer

        yield open_memory
        return
    identity = make_identity(tmp_path / "state") if request.param == "tls" else None
    server = HeadServer(head.api, head, auth=FakeAuth(), identity=identity, port=0)
    port = await server.start()
    client = await connect(
        f"rustray://127.0.0.1:{port}",
        token_source="submit:eve",
        ca_pem=identity.ca_pem if identity else None,
        insecure=identity is None,
    )

    async def open_grpc(pump: ScriptedPump) -> ScriptedPump:
        pump.link = await client.open_client_stream(PREFIX, pump)
        return head.pumps[-1]

    yield open_grpc
    await client.close()
    await server.stop(0.5)


async def test_frames_arrive_in_order_on_both_ways(open_stream: Open):
    """Each end gets what the other sent, equal and in order."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    frames = [submit(number) for number in range(1, 101)]
    answers = [HeadFrame(number=n, ack=n, accepted=[AcceptedRange(n, 1)]) for n in range(1, 101)]
    for frame, answer in zip(frames, answers, strict=True):
        pump.send(frame)
        peer.send(answer)
    await aeventually(lambda: len(peer.received) == 100 and len(pump.received) == 100)
    assert peer.received == frames
    assert pump.received == answers


async def test_a_frame_that_waited_before_the_link_is_sent(open_stream: Open):
    """What waits when the stream opens goes without a further wake."""
    pump = ScriptedPump()
    pump.waiting.append(submit(1))
    peer = await open_stream(pump)
    if not peer.received and pump.link is not None:
        pump.link.wake()
    await aeventually(lambda: len(peer.received) == 1)


async def test_a_wake_without_a_frame_is_harmless(open_stream: Open):
    """A pump that says it has something and does not sends nothing."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    assert pump.link is not None
    for _ in range(10):
        pump.link.wake()
    pump.send(submit(1))
    await aeventually(lambda: len(peer.received) == 1)
    assert peer.closed == []


async def test_replies_from_within_on_frame_go_out(open_stream: Open):
    """A pump may answer a frame while it handles it."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    peer.reply = lambda frame: HeadFrame(number=frame.number, ack=frame.number)
    for number in range(1, 51):
        pump.send(submit(number))
    await aeventually(lambda: len(pump.received) == 50)
    assert [frame.ack for frame in pump.received] == list(range(1, 51))


async def test_large_frames_travel(open_stream: Open):
    """A payload of 16 MiB goes in one frame."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    pump.send(submit(1, 16 * 1024 * 1024))
    await aeventually(lambda: len(peer.received) == 1, 30)
    assert len(peer.received[0].submissions[0].payloads.blob) == 16 * 1024 * 1024


async def test_close_delivers_what_waits_and_ends_both_sides_once(open_stream: Open):
    """An orderly end loses nothing, tells each pump once with None, and may be asked for twice."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    assert pump.link is not None
    pump.waiting += [submit(number) for number in range(1, 21)]
    await pump.link.close()
    await pump.link.close()
    await aeventually(lambda: bool(peer.closed))
    assert len(peer.received) == 20
    assert pump.closed == [None]
    assert peer.closed == [None]
    pump.send(submit(21))


async def test_the_head_may_end_the_stream(open_stream: Open):
    """A close at the head's side is an orderly end for the client, after the last frames."""
    pump = ScriptedPump()
    peer = await open_stream(pump)
    peer.waiting.append(HeadFrame(number=1))
    await aeventually(lambda: peer.link is not None)
    assert peer.link is not None
    await peer.link.close()
    await aeventually(lambda: bool(pump.closed))
    assert len(pump.received) == 1
    assert (pump.closed, peer.closed) == ([None], [None])


async def test_a_pump_that_refuses_a_frame_ends_the_stream(open_stream: Open):
    """A RustRayError out of on_frame reaches both pumps as that error."""

    def refuse(_: object) -> object:
        raise CommunicationError("frame 7 came after frame 1")

    pump = ScriptedPump()
    peer = await open_stream(pump)
    peer.reply = refuse
    pump.send(submit(1))
    await aeventually(lambda: bool(pump.closed and peer.closed))
    for (error,) in (pump.closed, peer.closed):
        assert isinstance(error, CommunicationError)
        assert "frame 7" in str(error)


async def test_a_bug_in_a_pump_does_not_travel(open_stream: Open):
    """Any other exception ends the stream, and its text stays here."""

    def explode(_: object) -> object:
        raise KeyError("secret detail")

    pump = ScriptedPump()
    peer = await open_stream(pump)
    peer.reply = explode
    pump.send(submit(1))
    await aeventually(lambda: bool(pump.closed and peer.closed))
    for (error,) in (pump.closed, peer.closed):
        assert isinstance(error, InvariantError)
        assert "secret" not in str(error)


async def test_a_bug_in_the_sender_ends_the_stream(open_stream: Open):
    """An exception out of next_frame ends the stream for both."""
    pump = ScriptedPump()
    peer = await open_stream(pump)

    def explode() -> None:
        raise KeyError("secret detail")

    pump.next_frame = explode  # type: ignore[method-assign]
    assert pump.link is not None
    pump.link.wake()
    await aeventually(lambda: bool(pump.closed and peer.closed))
    assert isinstance(pump.closed[0], InvariantError)
    assert isinstance(peer.closed[0], RustRayError)


# ── Over gRPC only ──────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_vanishes_is_noticed(head: FakeHead, client: GrpcHeadClient):
    """A connection that breaks without a goodbye is an error for the head's pump."""
    pump = ScriptedPump()
    link = await client.open_client_stream(PREFIX, pump)
    link._call.cancel()  # type: ignore[attr-defined]
    await aeventually(lambda: bool(head.pumps[0].closed and pump.closed))
    assert isinstance(head.pumps[0].closed[0], CommunicationError)
    assert isinstance(pump.closed[0], HeadUnavailable)


async def test_a_head_that_stops_ends_its_streams_in_order(
    head: FakeHead, client: GrpcHeadClient, server: tuple[HeadServer, int]
):
    """Stopping the server is an orderly end for both pumps."""
    pump = ScriptedPump()
    await client.open_client_stream(PREFIX, pump)
    await server[0].stop(1.0)
    await aeventually(lambda: bool(pump.closed))
    assert (pump.closed, head.pumps[0].closed) == ([None], [None])


async def test_a_refused_stream_raises_and_tells_no_pump(head: FakeHead, client: GrpcHeadClient):
    """What the head raises for a new stream is raised by the opening call."""
    head.error = CommunicationError("session 3 is not known; register again")
    pump = ScriptedPump()
    with pytest.raises(CommunicationError, match="register again"):
        await client.open_client_stream(PREFIX, pump)
    assert pump.closed == []


async def test_the_head_learns_who_opened_the_stream(head: FakeHead, client: GrpcHeadClient):
    """The endpoint gets the verified caller and the hello."""
    await client.open_client_stream(PREFIX, ScriptedPump())
    assert head.callers[-1].subject == "user:eve"
    assert head.calls[-1] == ("client_pump", PREFIX)


async def test_a_role_that_may_not_open_the_stream_is_refused(client: GrpcHeadClient):
    """A submitter's token does not open a worker's stream."""
    with pytest.raises(AuthorizationError):
        await client.open_worker_stream("w-1", 1, ScriptedPump())


class _Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


async def test_a_stream_ends_after_its_token_unless_renewed(head: FakeHead):
    """30 s after its token a stream ends; one renewed by the same subject stays."""
    clock = _Clock()
    server = HeadServer(
        head.api, head, auth=Guard(FakeAuth(), "head", clock), identity=None, port=0
    )
    port = await server.start()
    clients = [
        await connect(f"127.0.0.1:{port}", token_source=f"submit:{name}:970.2", insecure=True)
        for name in ("late", "good", "thief")
    ]
    pumps = [ScriptedPump() for _ in clients]
    clock.now = 970.0
    links = [
        await client.open_client_stream(PREFIX, pump)
        for client, pump in zip(clients, pumps, strict=True)
    ]
    clock.now = 1_000.0
    links[1].renew_token("submit:good:4e9")  # type: ignore[attr-defined]
    links[2].renew_token("submit:eve:4e9")  # type: ignore[attr-defined]
    await aeventually(lambda: bool(pumps[2].closed))
    clock.now = 1_001.0
    for link in server._links:
        link._watch_token()
    await aeventually(lambda: bool(pumps[0].closed))
    assert isinstance(pumps[0].closed[0], AuthenticationError)
    assert isinstance(pumps[2].closed[0], AuthenticationError)
    pumps[1].link = links[1]
    pumps[1].send(submit(1))
    good = head.pumps[1]
    await aeventually(lambda: len(good.received) == 1)
    assert pumps[1].closed == []
    for client in clients:
        await client.close()
    await server.stop(0.5)
