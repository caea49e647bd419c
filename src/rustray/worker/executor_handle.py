"""The agent's end of one executor process: channels, chunks that are out, what it prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

from rustray.task.frames import LeaseNews, LeaseOutcome, LeaseRange
from rustray.task.spec import ExecutorKind
from rustray.task.state import TaskState
from rustray.task.streams import LeaseItems
from rustray.worker import wire
from rustray.worker.calls_port import CallPorts
from rustray.worker.cell import Cell
from rustray.worker.chunks_out import ChunksOut
from rustray.worker.events import ExecutorReturned
from rustray.worker.given import NOTHING, Ancillary, Look, give, nowhere
from rustray.worker.output_reader import Attempt, OutputReader, OutputSink, Place
from rustray.worker.relay_end import RelayPort
from rustray.worker.sharing import ControlReader, pack_any_run, unpack_any_outcome
from rustray.worker.taking_back import TakingBack

FLUSH_FIRST_S: Final = 0.01
FLUSH_MAX_S: Final = 1.0
_READ_BYTES: Final = 256 * 1024
_MAX_MESSAGE_BYTES: Final = 1 << 33

_buffer: Final = memoryview(bytearray(_READ_BYTES))
"""What all readers of the process read into; its content is copied out at once."""

_STATES: Final = {
    int(state): state
    for state in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.LEASED)
}
"""How an executor may say that a task has ended; LEASED: it could not have what the task takes."""

_SAID: Final = (wire.NEWS, wire.ITEMS, wire.UNRUN)
"""Kinds of messages that say nothing of a task's end."""


def open_pipes() -> list[tuple[int, int]]:
    """Open a pipe for stdout and one for stderr; their read ends do not block."""
    pipes = [os.pipe2(os.O_CLOEXEC)]
    try:
        pipes.append(os.pipe2(os.O_CLOEXEC))
    except OSError:
        close_fds(list(pipes[0]))
        raise
    for readable, _ in pipes:
        os.set_blocking(readable, False)
    return pipes


class PacketWriter:
    """Sends packets in order on a non-blocking packet socket, with descriptors beside them."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock = sock
        self._waiting: deque[tuple[bytes, list[int]]] = deque()

    def send(self, packet: bytes, fds: list[int] | None = None) -> None:
        """Send now, or when there is room; ``fds`` are closed after that."""
        self._waiting.append((packet, fds or []))
        if len(self._waiting) == 1:
            self._on_writable()

    def _on_writable(self) -> None:
        while self._waiting:
            packet, fds = self._waiting[0]
            try:
                if fds:
                    socket.send_fds(self._sock, [packet], fds)
                else:
                    self._sock.send(packet)
            except BlockingIOError:
                self._loop.add_writer(self._sock, self._on_writable)
                return
            except OSError:  # the other side is gone, which its reader finds out
                self.close()
                return
            close_fds(fds)
            self._waiting.popleft()
        self._loop.remove_writer(self._sock)

    def close(self) -> None:
        """Forget what was not sent."""
        for _, fds in self._waiting:
            close_fds(fds)
        self._waiting.clear()
        self._loop.remove_writer(self._sock)


def close_fds(fds: list[int]) -> None:
    """Close descriptors that we own."""
    for fd in fds:
        os.close(fd)


class Listener(Protocol):
    """Whom a handle tells; see `rustray.worker.executor.PoolListener`."""

    def executor_reported(self, executor_id: int, outcomes: list[LeaseOutcome]) -> None:
        """Tasks ended."""

    def executor_returned(self, event: ExecutorReturned) -> None:
        """These never start."""

    def executor_told(self, executor_id: int, news: list[LeaseNews], dropped: int) -> None:
        """Tasks said something."""

    def executor_yielded(self, executor_id: int, items: list[LeaseItems]) -> None:
        """Generators yielded items."""


class ExecutorHandle:
    """One executor, from before its process exists until after it is gone.

    Attributes:
        executor_id: The agent's number for it.
        pid: Its process id, 0 before the process exists.
        cell: Says what runs in it.
        relay, calls: Of its tasks that hand in tasks; that ask the agent for something.
        look: Finds what goes along with a task that takes it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        executor_id: int,
        kind: ExecutorKind,
        listener: Listener,
        on_violation: Callable[[int, str], None],
        output: OutputSink,
    ) -> None:
        self.executor_id, self.pid = executor_id, 0
        self._heard = 0.0  # when it last sent something, or was given work while idle
        self._flush_pause_s = FLUSH_FIRST_S
        self._loop = loop
        self._listener, self._on_violation, self._sink = listener, on_violation, output
        self._is_alone = kind is ExecutorKind.PROCESS
        self.relay = RelayPort(loop, executor_id, on_violation)
        self.look: Look = nowhere
        self._names: dict[int, str] = {}
        self._takers: set[int] = set()  # classes whose tasks take inputs, where these may go along
        self._out = ChunksOut()
        self.calls = CallPorts(loop, lambda *task: self._out.find(*task) is not None)
        self._unsent: deque[memoryview] = deque()
        self._splitter = wire.MessageSplitter()
        self._open_channels()

    def _open_channels(self) -> None:
        with contextlib.ExitStack() as undo:
            self.cell, cell_fd = Cell.create(f"rustray-cell-{self.executor_id}")
            undo.callback(self.cell.close)
            undo.callback(os.close, cell_fd)
            self._data, data = socket.socketpair()
            undo.callback(data.close)
            undo.callback(self._data.close)
            self._control, control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(control.close)
            undo.callback(self._control.close)
            pipes = open_pipes()
            undo.pop_all()
        self._child_fds = [data.detach(), control.detach(), cell_fd, *(pipe[1] for pipe in pipes)]
        self._data.setblocking(False)
        self._control.setblocking(False)
        self._packets = PacketWriter(self._loop, self._control)
        self._taking_back = TakingBack(
            self._loop, self.cell, self._out, self._packets.send, self._read_all, self._on_taken,
            is_alone=self._is_alone,
        )  # fmt: skip
        self._orders = ControlReader(self._control, self.calls.open)
        self._loop.add_reader(self._data, self._on_data)
        self._loop.add_reader(self._control, self._on_control)
        self._output = OutputReader(
            self._loop, [each for each, _ in pipes], self.cell, self._is_alone,
            self._whose, self._sink, self.executor_id,
        )  # fmt: skip
        self._output.listen(self._on_output)

    def take_child_fds(self) -> list[int]:
        """Hand over the executor's ends, once; the taker closes them."""
        fds, self._child_fds = self._child_fds, []
        return fds

    # ── To the executor ───────────────────────────────────────────────────────────────────

    def tell(self, message: bytes) -> None:
        """Send a definition or a setup, which holds for the chunks that follow."""
        self._send((message,))

    def define(self, class_number: int, definition: wire.Definition) -> None:
        """Introduce a task class."""
        self._names[class_number] = definition.function
        if definition.has_inputs and self._is_alone:
            self._takers.add(class_number)
        self.tell(wire.pack_definition(class_number, definition))

    def run(self, chunk: wire.RunChunk) -> None:
        """Send a chunk."""
        if not self._out:
            self._heard = self._loop.time()
            self._flush_pause_s = FLUSH_FIRST_S
        number = self._out.add(chunk, self._names.get(chunk.class_number, ""))
        parts, beside = pack_any_run(number, chunk, self._packets.send), NOTHING
        if chunk.class_number in self._takers and not self._unsent:
            given, beside = give(number, chunk.payloads, self.look)
            parts = (given, *parts)
        self._send(parts, beside)

    def reclaim(self) -> None:
        """Ask for everything back that has not started; without an answer it is taken."""
        self._taking_back.ask()

    def _read_all(self) -> None:
        while self._on_data() or self._on_control():
            pass

    def _on_taken(
        self, ranges: list[LeaseRange], running: LeaseRange | None, is_asked: bool
    ) -> None:
        self._listener.executor_returned(
            ExecutorReturned(self.executor_id, ranges, is_asked, running)
        )

    def interrupt(self, lease: int, offset: int, is_notice: bool) -> None:
        """Cancel a task; one that is not out (any more) is left alone."""
        self._order(wire.INTERRUPT, lease, offset, is_notice)

    def credit(self, lease: int, offset: int, consumed: int) -> None:
        """Say how many items of a generator are consumed; one that is not out is left alone."""
        self._order(wire.CREDIT, lease, offset, consumed)

    def _order(self, kind: int, lease: int, offset: int, more: int) -> None:
        found = self._out.find(lease, offset)
        if found is not None:
            self._packets.send(wire.CONTROL.pack(kind, *found, more))

    @property
    def has_bundles(self) -> bool:
        """Whether a chunk of more than one task is out."""
        return self._out.bundles > 0

    def ask_flush(self, now: float) -> None:
        """Have it send results that it holds back while a long task of their chunk runs.

        Asked again and again while it is silent, after 10, 20, 40 ms ... up to every second:
        it may not have held any yet when it was asked before.
        """
        if self._out.bundles and now - self._heard >= self._flush_pause_s:
            self._flush_pause_s = min(now - self._heard + FLUSH_MAX_S, 2 * self._flush_pause_s)
            self._packets.send(wire.CONTROL.pack(wire.FLUSH, 0, 0, 0))

    def end_input(self) -> None:
        """Give up what has not started and let the executor end after what runs."""
        self.reclaim()
        self._unsent.clear()
        self._loop.remove_writer(self._data)
        with contextlib.suppress(OSError):
            self._data.shutdown(socket.SHUT_WR)

    def _send(self, parts: tuple[bytes, ...], beside: Ancillary = NOTHING) -> None:
        sent = 0
        if not self._unsent:
            try:
                sent = self._data.sendmsg(parts, beside)
            except BlockingIOError:
                sent = 0
            except OSError:  # it is dead, which the zygote reports; or too many are under way
                if beside:
                    self._send(parts)
                return
        for part in parts:
            size = len(part)
            if sent >= size:
                sent -= size
                continue
            if not self._unsent:
                self._loop.add_writer(self._data, self._on_writable)
            self._unsent.append(memoryview(part)[sent:])
            sent = 0

    def _on_writable(self) -> None:
        unsent = self._unsent
        try:
            while unsent:
                sent = self._data.send(unsent[0])
                if sent < len(unsent[0]):
                    unsent[0] = unsent[0][sent:]
                else:
                    unsent.popleft()
        except BlockingIOError:
            return
        except OSError:  # it is dead; the zygote reports that
            unsent.clear()
        self._loop.remove_writer(self._data)

    # ── From the executor ─────────────────────────────────────────────────────────────────

    def _on_data(self) -> bool:
        """Take what it sent; False if there was nothing."""
        try:
            count = self._data.recv_into(_buffer)
        except BlockingIOError:
            return False
        except OSError:
            count = 0
        if not count:
            self._loop.remove_reader(self._data)
            return False
        self._heard = self._loop.time()
        self._flush_pause_s = FLUSH_FIRST_S
        try:
            outcomes, unrun = self._take(bytes(_buffer[:count]))
        except (ValueError, KeyError, IndexError) as exc:
            # Only user code that wrote to our descriptor can cause this.
            self._loop.remove_reader(self._data)
            self._on_violation(self.executor_id, str(exc))
            return False
        if outcomes:
            self._listener.executor_reported(self.executor_id, outcomes)
        if unrun:  # after the end of what they follow
            self._listener.executor_returned(
                ExecutorReturned(self.executor_id, unrun, is_asked=False)
            )
        while self._orders.packets:
            self._on_control()
        return True

    def _take(self, data: bytes) -> tuple[list[LeaseOutcome], list[LeaseRange]]:
        """Pass on what tasks say and yield; return what has ended, and what is not run."""
        messages = self._splitter.feed(data)
        if messages and self._output.has_some:
            # While the chunks are known; what was printed before an outcome is there with it, and
            # what is raw and not marked as older is of what runs now.
            self._output.take(wire.last_ended(messages))
        outcomes = [self._settle(*each) for each in messages if each[0] not in _SAID]
        unrun: list[LeaseRange] = []
        if len(outcomes) != len(messages):
            # What is said and yielded is never of a task whose outcome was sent before.
            _tell(self._listener, self.executor_id, messages)
            unrun = [self._out.drop(each[1]) for each in messages if each[0] == wire.UNRUN]
        if self._splitter.missing > _MAX_MESSAGE_BYTES:
            raise ValueError("a message of absurd size")
        return outcomes, unrun

    def _settle(self, kind: int, number: int, data: bytes, start: int, stop: int) -> LeaseOutcome:
        message = (kind, data, start, stop)
        lease, run_us, offset, state, payloads = unpack_any_outcome(message, self._orders)
        count = len(payloads)
        self._out.settle(number, count)
        if self._output.has_tail:
            self._output.settle(lease, offset, offset + count)
        return LeaseOutcome(lease, offset, _STATES[state], payloads, run_us)

    def _on_control(self) -> bool:
        """Take one packet; False if there was none."""
        packet = self._orders.read()
        if packet is None:
            return False
        if len(packet) != wire.CONTROL.size:
            self._loop.remove_reader(self._control)
            return False
        kind, upto, found, begun = wire.CONTROL.unpack(packet)
        if kind == wire.RELAY:
            self.relay.open(self._orders.take_relay())
        elif kind == wire.RECLAIMED:
            self._taking_back.answered(upto, found, begun)
        return True

    def _on_output(self) -> None:
        """Take what it printed: after the outcomes that are here, for those were sent before."""
        self._on_data()
        self._output.rest(self._output.take())

    def _whose(self, place: Place) -> Attempt | None:
        """Return whose output it is; None for a task that is not out (any more)."""
        return self._out.whose(place, self.pid)

    def add_to_tail(self, data: bytes) -> None:
        """Note something among the last that it printed."""
        self._output.add_note(data)

    # ── The end ───────────────────────────────────────────────────────────────────────────

    def drain(self) -> str:
        """Take all that a dead executor had sent; return the tail of its output."""
        self._taking_back.close()
        while self._on_data():
            pass
        while self._on_control():
            pass
        self._output.drain()
        return self._output.tail()

    def unfinished_running(self) -> tuple[int, int] | None:
        """Return (lease, offset) of the task that it runs, unless its outcome is here already."""
        running = self.cell.read()
        if running is None:
            return None
        return running if self._out.is_open(*running) else None

    def close(self) -> None:
        """Let go of everything."""
        close_fds(self.take_child_fds())
        for part in (self._taking_back, self.calls, self._packets, self._orders):
            part.close()
        self._loop.remove_writer(self._data)
        for each in (self._data, self._control):
            self._loop.remove_reader(each)
            each.close()
        self._output.close()
        self.relay.close()
        self.cell.close()


def _tell(
    listener: Listener, executor_id: int, messages: list[tuple[int, int, bytes, int, int]]
) -> None:
    """Pass on what tasks say and yield while they run."""
    items = []
    for kind, _, data, start, stop in messages:
        if kind == wire.NEWS:
            listener.executor_told(executor_id, *wire.unpack_news(data, start, stop))
        elif kind == wire.ITEMS:
            items.append(LeaseItems(*wire.unpack_items(data, start, stop)))
    if items:
        listener.executor_yielded(executor_id, items)


def spawn_request(executor_id: int, kind: ExecutorKind, concurrency: int) -> bytes:
    """Encode the order to fork an executor."""
    return wire.to_json(
        {"do": "spawn", "id": executor_id, "kind": int(kind), "concurrency": concurrency}
    )
