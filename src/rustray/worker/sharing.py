"""Large payloads between the agent and its executors: sealed memory instead of copies.

The bytes are in a segment; its descriptor goes over the control channel with a number, and then a
message on the data channel names that number. So whoever reads the message finds the descriptor
there already, or waits for it a moment. Where there is no memory or no descriptor left, the
payload travels in the message as small ones do.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, cast

from rustray.common.errors import ResourceExhausted
from rustray.objects.segment import Segment
from rustray.task.columns import PayloadColumn, SharedColumn
from rustray.task.failures import encode_failure
from rustray.task.flat import ALIGNMENT, MIN_BUFFER_BYTES, FlatValue, parts_of
from rustray.task.result import FailureInfo
from rustray.task.state import TaskState
from rustray.worker import wire

SHARED_BYTES: Final = MIN_BUFFER_BYTES
"""Payloads of so many bytes travel in memory of their own."""
_ROOM: Final = socket.CMSG_SPACE(4)

Item = bytes | FlatValue
"""An encoded value, in one piece or in parts."""


class ObjectMissing(ValueError):
    """A message names memory that has not come before it."""


class NoDescriptors(OSError):
    """The memory that a message names could not be taken: this process has too many files open."""


def segment_of(payloads: PayloadColumn) -> int | None:
    """Have large arguments in sealed memory; None: they are not large, or there is no memory.

    Returns:
        A descriptor that the caller closes.
    """
    size = payloads.size_bytes
    if size < SHARED_BYTES * len(payloads):
        return None
    with contextlib.suppress(OSError, ValueError):
        if isinstance(payloads, SharedColumn) and isinstance(payloads.owner, Segment):
            return os.dup(payloads.owner.fileno())
        return Segment.write([payloads.blob]).detach()
    return None


class ResultSender:
    """Sends large results of an executor; any thread."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._last = 0
        self._lock = threading.Lock()
        os.register_at_fork(after_in_child=self._renew_lock)

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def send(self, item: Item) -> tuple[int, int] | None:
        """Pass the memory with a result on; None: it has to travel in the message.

        Returns:
            The number that the message names, and the size.
        """
        if len(item) < SHARED_BYTES:
            return None
        segment = None
        try:
            segment = Segment.write(parts_of(item))
            with self._lock:
                self._last += 1
                number = self._last
            socket.send_fds(
                self._control, [wire.CONTROL.pack(wire.OBJECT, number, 0, 0)], [segment.fileno()]
            )
        except OSError:
            return None
        finally:
            if segment is not None:
                segment.close()
        return number, segment.size


class ControlReader:
    """The agent's end of a control channel: packets, and the memory that comes with some.

    Attributes:
        packets: Those that were read on the way to some memory.
    """

    def __init__(self, sock: socket.socket, on_calls: Callable[[int], None] = os.close) -> None:
        """Read from a socket.

        Args:
            sock: Of packets, that does not block.
            on_calls: Takes over the descriptor that carries calls of tasks.
        """
        self._sock = sock
        self._on_calls = on_calls
        self.packets: deque[bytes] = deque()
        self._objects: dict[int, int | None] = {}
        self._relay: int | None = None

    def read(self) -> bytes | None:
        """Return the next packet; None: there is none now; b"": there will be none any more."""
        while not self.packets:
            try:
                packet = self._receive()
            except BlockingIOError:
                return None
            except OSError:
                return b""
            if packet is not None:
                return packet
        return self.packets.popleft()

    def take(self, number: int, size: int) -> SharedColumn:
        """Map the memory that a message names; its segment is the column's owner.

        Raises:
            ObjectMissing: it has not come.
            ValueError: it is not sealed, or not of that size.
            OSError: it cannot be mapped, or could not be received.
        """
        with contextlib.suppress(OSError):
            while number not in self._objects:
                packet = self._receive()
                if packet is not None:
                    self.packets.append(packet)
                    if not packet:
                        break
        if number not in self._objects:
            raise ObjectMissing(f"the memory of result {number} has not come")
        descriptor = self._objects.pop(number)
        if descriptor is None:
            raise NoDescriptors("too many files are open in the worker")
        segment = Segment.adopt(descriptor, size)
        return SharedColumn(segment.view(), segment)

    def take_relay(self) -> int | None:
        """Return the descriptor that has come with a `wire.RELAY`, for its taker to close."""
        descriptor, self._relay = self._relay, None
        return descriptor

    def close(self) -> None:
        """Let go of what nobody has taken."""
        if self._relay is not None:
            os.close(self._relay)
        for descriptor in self._objects.values():
            if descriptor is not None:
                os.close(descriptor)
        self._objects.clear()

    def _receive(self) -> bytes | None:
        """Read one packet; None if it was one that brought something, which has been taken."""
        packet, descriptor = receive_packet(self._sock)
        if len(packet) == wire.CONTROL.size:
            kind, number, _, _ = wire.CONTROL.unpack(packet)
            if kind == wire.OBJECT:
                self._objects[number] = descriptor
                return None
            if kind == wire.RELAY and self._relay is None:
                self._relay, descriptor = descriptor, None
            if kind == wire.CALLS and descriptor is not None:
                self._on_calls(descriptor)
                return None
        if descriptor is not None:
            os.close(descriptor)
        return packet


class ArgumentMemory:
    """The executor's end: the control thread puts memory in, who runs tasks takes it out."""

    def __init__(self) -> None:
        self._objects: dict[int, int | None] = {}
        self._changed = threading.Condition()
        self._is_over = False

    def put(self, number: int, descriptor: int | None) -> None:
        """Take what came."""
        with self._changed:
            self._objects[number] = descriptor
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing comes any more."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def take(self, number: int, size: int) -> bytes:
        """Map the arguments of a chunk; waits until they have come.

        What it returns is a read-only memory view, used as bytes are.

        Raises:
            OSError: the agent is gone, or they could not be received or mapped.
            ValueError: they are not what the message says.
        """
        with self._changed:
            while number not in self._objects:
                if self._is_over:
                    raise ConnectionError("the agent is gone")
                self._changed.wait()
            descriptor = self._objects.pop(number)
        if descriptor is None:
            raise NoDescriptors("too many files are open in the executor")
        segment = Segment.adopt(descriptor, size)
        try:
            return cast("bytes", segment.view())
        finally:
            segment.close()


def pack_any_run(
    number: int, chunk: wire.RunChunk, send_memory: Callable[[bytes, list[int]], None]
) -> tuple[bytes, ...]:
    """Encode a chunk as the parts of one message; the memory of large arguments goes before it.

    Args:
        number: The chunk's.
        chunk: What to run.
        send_memory: Sends a packet with descriptors on the control channel, and closes these.
    """
    memory = None if len(chunk.payloads.blob) < SHARED_BYTES else segment_of(chunk.payloads)
    if memory is None:
        return wire.pack_run(number, chunk)
    send_memory(wire.CONTROL.pack(wire.OBJECT, number, 0, 0), [memory])
    return wire.pack_run_shared(number, chunk)


def take_result(
    reader: ControlReader, state: int, number: int, size: int
) -> tuple[int, PayloadColumn]:
    """Take a large result over.

    Returns:
        The state and payload to report: that of a failure, if this process has no descriptor or
        address space left.

    Raises:
        ValueError: it is none that one of our executors would send.
    """
    try:
        return state, reader.take(number, size)
    except OSError as error:
        text = f"the function succeeded, but its worker could not take the result: {error}"
        failure = encode_failure(FailureInfo(ResourceExhausted.code, text))
        return int(TaskState.FAILED), PayloadColumn.of([failure])


def unpack_any_outcome(
    message: tuple[int, bytes, int, int], reader: ControlReader
) -> tuple[int, int, int, int, PayloadColumn]:
    """Decode an outcome, whichever way its payload travels.

    Args:
        message: Kind, bytes, start and stop.
        reader: Has the memory of those that have one.

    Returns:
        Lease, run_us, offset, state, payloads.

    Raises:
        ValueError: it is no outcome that one of our executors would send.
    """
    kind, data, start, stop = message
    if kind == wire.OUTCOME:
        return wire.unpack_outcome(data, start, stop)
    if kind != wire.OUTCOME_SHARED:
        raise ValueError(f"a message of unknown kind {kind}")
    lease, run_us, offset, state, number, size = wire.unpack_outcome_shared(data, start)
    return lease, run_us, offset, *take_result(reader, state, number, size)


def receive_packet(sock: socket.socket) -> tuple[bytes, int | None]:
    """Read one packet of a control channel, and the descriptor with it, if there is one."""
    packet, ancillary, _, _ = sock.recvmsg(wire.CONTROL.size, _ROOM, socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= 4:
            return packet, int.from_bytes(data[:4], "little")
    return packet, None


def are_aligned(chunk: wire.Chunk) -> bool:
    """Whether the arguments of each task begin where arrays may begin."""
    starts = (end + chunk.shift for end in chunk.ends[:-1])
    return all(start % ALIGNMENT == 0 for start in starts)
