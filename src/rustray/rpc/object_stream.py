"""FetchObject: an object from the node that has it, in chunks, straight to who needs it.

The token of such a call names the one object (it is for the audience ``object:<id>``), and so does
the call's metadata, so that it is judged before anything of its body is read. A stream that is
cut goes on where it was; what arrives is hashed on the way, and is nothing to anybody before
the digest was right.

Chunks of 1 MiB: with smaller ones each megabyte costs more, larger ones fit no cache (the
receiver's CPU per 100 MiB was 240 ms at 256 KiB, 188 at 1 MiB, 202 at 4 MiB, and 173 for a
bare TLS socket). How many are on their way at a time is HTTP/2's window, which follows the
line's bandwidth and delay.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final

from rustray.common.errors import (
    CommunicationError,
    ConfigError,
    HeadUnavailable,
    ObjectLost,
    RustRayError,
)
from rustray.objects.digest import Digest
from rustray.objects.segment import Segment, SegmentWriter
from rustray.proto.rustray.v1 import worker_pb2 as wire
from rustray.rpc.convert import parse
from rustray.rpc.grpcio import EOF, aio
from rustray.rpc.status import from_rpc_error
from rustray.security.object_tokens import OBJECT_KEY
from rustray.security.roles import FETCH_OBJECT

CHUNK_BYTES: Final = 1 << 20
STALL_S: Final = 30.0
"""Who takes no chunk for so long loses the stream; so does who sends none."""
TRIES: Final = 4
"""Streams in a row that bring nothing, before a fetch gives up."""
_PAUSE_S: Final = 0.05
_DATA_TAG: Final = 0x0A  # field 1, length-delimited


@dataclass(frozen=True, slots=True)
class ObjectSource:
    """Where an object is, and what opens it.

    Attributes:
        object_id: Names it.
        size: Its bytes.
        token: For this object, from the head; "" where there are no tokens.
    """

    object_id: str
    size: int
    token: str = ""


# ── The node that has it ────────────────────────────────────────────────────────────────────────


async def send_object(
    view: memoryview, offset: int, write: Callable[[bytes], Awaitable[None]]
) -> None:
    """Write an object from an offset on: its size, chunks, and the digest of all of it.

    Raises:
        ConfigError: the offset is not in it.
        TimeoutError: the reader takes nothing.
    """
    size = len(view)
    if not 0 <= offset <= size:
        raise ConfigError(f"offset {offset} is outside of the object, which has {size} bytes")
    await write(wire.ObjectChunk(size=size).SerializeToString())
    digest = Digest()
    for start in range(0, offset, CHUNK_BYTES):
        digest.update(view[start : min(start + CHUNK_BYTES, offset)])
        await asyncio.sleep(0)
    for start in range(offset, size, CHUNK_BYTES):
        part = view[start : start + CHUNK_BYTES]
        digest.update(part)
        async with asyncio.timeout(STALL_S):
            await write(pack_data(part))
    await write(wire.ObjectChunk(digest=digest.digest()).SerializeToString())


def pack_data(part: memoryview) -> bytes:
    """Encode ``ObjectChunk(data=part)`` with one copy instead of three."""
    head = bytearray([_DATA_TAG])
    left = len(part)
    while left > 0x7F:
        head.append(left & 0x7F | 0x80)
        left >>= 7
    head.append(left)
    return b"".join((head, part))


def unpack_data(message: bytes) -> memoryview | None:
    """Decode a message that has data and nothing else; None: it is another one."""
    if not message or message[0] != _DATA_TAG:
        return None
    length = shift = 0
    position = 1
    for position in range(1, min(len(message), 11)):
        byte = message[position]
        length |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            break
    position += 1
    return memoryview(message)[position:] if position + length == len(message) else None


# ── Who needs it ────────────────────────────────────────────────────────────────────────────────


async def fetch_object(channel: aio.Channel, source: ObjectSource) -> Segment:
    """Bring an object here, into sealed memory.

    Args:
        channel: To the node that has it.
        source: What to bring.

    Raises:
        ObjectLost: it is not there, has another size, or came damaged twice.
        AuthenticationError: the token is not good (any more), or for another object.
        CommunicationError: the way there is broken; says how much had come.
        OSError: there is no memory here.
    """
    for _ in range(2):
        fetch = _Fetch(channel, source)
        try:
            if await fetch.run():
                return fetch.writer.finish(source.size)
        finally:
            fetch.writer.close()
    raise ObjectLost(
        f"object {source.object_id} came damaged twice: the digest of what arrived is not the one "
        "that its node has computed"
    )


class _Fetch:
    """One try to bring an object, over as many streams as it takes."""

    def __init__(self, channel: aio.Channel, source: ObjectSource) -> None:
        self._call = channel.unary_stream(FETCH_OBJECT, None, None)
        self._source = source
        self._digest = Digest()
        self._said: bytes | None = None
        self.writer = SegmentWriter()
        self.received = 0

    async def run(self) -> bool:
        """Receive all of it; False: its digest is wrong."""
        idle = 0
        while True:
            before = self.received
            try:
                await self._stream()
            except aio.AioRpcError as error:
                cause = from_rpc_error(error)
                if not isinstance(cause, CommunicationError | HeadUnavailable):
                    raise cause from None
            except TimeoutError:
                cause = CommunicationError(f"nothing came for {STALL_S:g} s")
            else:
                return self._said == self._digest.digest()
            idle = 0 if self.received > before else idle + 1
            if idle >= TRIES:
                raise self._gave_up(cause) from None
            await asyncio.sleep(_PAUSE_S * 2**idle)

    def _gave_up(self, cause: RustRayError) -> CommunicationError:
        source = self._source
        return CommunicationError(
            f"object {source.object_id} could not be fetched: {self.received} of {source.size} "
            f"bytes came, and then its node did not answer {TRIES} times in a row ({cause})"
        )

    async def _stream(self) -> None:
        source = self._source
        metadata = [(OBJECT_KEY, source.object_id)]
        if source.token:
            metadata.append(("authorization", f"Bearer {source.token}"))
        request = wire.FetchObjectRequest(object_id=source.object_id, offset=self.received)
        call: Any = self._call(request.SerializeToString(), metadata=tuple(metadata))
        try:
            while (message := await asyncio.wait_for(call.read(), STALL_S)) is not EOF:
                data = unpack_data(message)
                if data is not None:
                    self._take(data)
                else:
                    self._take_other(message)
        finally:
            call.cancel()
        if self._said is None or self.received != source.size:
            raise ObjectLost(
                f"the node that has object {source.object_id} ended after {self.received} of "
                f"{source.size} bytes"
            )

    def _take(self, data: memoryview) -> None:
        if self.received + len(data) > self._source.size:
            raise ObjectLost(f"object {self._source.object_id} is larger than it should be")
        self.writer.write(data)
        self._digest.update(data)
        self.received += len(data)

    def _take_other(self, message: bytes) -> None:
        chunk = parse(wire.ObjectChunk, message, "part of an object")
        if chunk.size and chunk.size != self._source.size:
            raise ObjectLost(
                f"object {self._source.object_id} has {chunk.size} bytes there, and should have "
                f"{self._source.size}"
            )
        if chunk.data:
            self._take(memoryview(chunk.data))
        if chunk.digest:
            self._said = chunk.digest


__all__ = ["ObjectSource", "fetch_object", "send_object"]
