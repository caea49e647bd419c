"""The simulated client: it hands in tasks until they are accepted, and asks until they end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from typing import Final

from rustray.client.failures import error_of_rejection
from rustray.scheduler.events import CancelRequested
from rustray.task.columns import PayloadColumn, PlacedColumn
from rustray.task.frames import (
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    Outcome,
    Submission,
    TaskRange,
)
from rustray.task.inputs import InputId, pack_inputs
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import StreamItems, StreamRead
from rustray.testing.clock import ProcessLoop, VirtualClock
from rustray.testing.head import HEAD, SimHead
from rustray.testing.history import History, TaskRecord
from rustray.testing.network import Network
from rustray.testing.placing import PREFIX
from rustray.testing.reading import CLIENT, ValueReader
from rustray.testing.stream import End, Stream
from rustray.testing.values import SimNodes
from rustray.worker.reconnect import ReconnectManager

OPEN_LIMIT_S: Final = 2.0
MAX_FRAME_TASKS: Final = 256


class ClientPump:
    """The client's end of one stream."""

    def __init__(self, client: SimClient) -> None:
        self._client = client
        self._numbers: dict[TaskClass, int] = {}
        self._sent = self._received = 0
        self._owes_ack = False
        self.is_open = False

    def next_frame(self) -> ClientFrame | None:
        """See `FramePump`."""
        frame = ClientFrame()
        if self.is_open:
            for submission, task_class in self._client.unsent():
                number = self._numbers.get(task_class)
                if number is None:
                    number = self._numbers[task_class] = len(self._numbers) + 1
                    code = self._client.codes[task_class.code_hash]
                    frame.classes.append(ClassDefinition(number, task_class, code))
                frame.submissions.append(replace(submission, class_number=number))
            frame.follow, self._client.follow = self._client.follow, []
            frame.reads, self._client.reads = self._client.reads, []
            frame.released = self._client.unreleased()
        if not (frame.has_content or self._owes_ack):
            return None
        self._owes_ack = False
        self._sent += 1
        frame.number, frame.ack = self._sent, self._received
        return frame

    def on_frame(self, frame: HeadFrame) -> None:
        """See `FramePump`."""
        if frame.number != self._received + 1:
            if frame.number > self._received:
                self._client.hang_up(self)
            return
        self._received = frame.number
        self._owes_ack = frame.has_content
        self._client.take(frame)

    def on_closed(self, error: object) -> None:
        """See `FramePump`."""
        self._client.lose(self)


class SimClient:
    """A client's process; it never dies, for it is who was promised something.

    Attributes:
        follow: Accepted tasks to ask for, after a reconnect.
        reads: How far consumers of generators are.
        codes: Hash to code of every function.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: Network,
        head: SimHead,
        nodes: SimNodes,
        history: History,
    ) -> None:
        self.loop = network.loops[CLIENT] = ProcessLoop(clock)
        self.follow: list[TaskRange] = []
        self.reads: list[StreamRead] = []
        self.codes: dict[bytes, bytes] = {}
        self._network, self._head, self._history = network, head, history
        self._reconnect = ReconnectManager(CLIENT)
        self._values = ValueReader(self.loop, network, head, nodes, history)
        self._released: list[int] = []
        self._told_released: list[int] = []
        self._unsent: list[TaskRecord] = []
        self._pump: ClientPump | None = None
        self._end: End | None = None
        self._calls = count(1)
        self._answered: set[int] = set()
        self.loop.call_soon(self._connect)

    @property
    def is_connected(self) -> bool:
        """Whether its stream is open, as far as it knows."""
        return self._pump is not None and self._pump.is_open

    # -- the stream ------------------------------------------------------------------------

    def _connect(self) -> None:
        pump = self._pump = ClientPump(self)
        stream = Stream(self._network, CLIENT, HEAD, breaks=True)
        self._end = stream.join(CLIENT, self.loop, pump)
        self._network.carry(CLIENT, HEAD, self._open_at_head, stream, pump)
        self.loop.call_later(OPEN_LIMIT_S, self._give_up, pump)

    def _open_at_head(self, stream: Stream, pump: ClientPump) -> None:
        if HEAD not in stream.ends:
            self._head.open_client(PREFIX, stream)
        self._network.carry(HEAD, CLIENT, self._opened, pump)

    def _opened(self, pump: ClientPump) -> None:
        if pump is not self._pump or pump.is_open:
            return
        pump.is_open = True
        self._reconnect.session_opened(self.loop.time())
        tasks = self._history.tasks
        self._unsent = [t for t in tasks if not t.is_accepted and t.error is None]
        for task in self._unsent:
            task.is_sent_again = True
        self.follow = [TaskRange(t.number, 1) for t in tasks if t.is_accepted and not t.is_told]
        self._released = self._told_released + self._released
        self._told_released = []
        self.reads = []
        for task in tasks:
            if task.task_class.stream_window and not task.has_ended:
                task.held = None
                have = -1 if task.has_left else len(task.items)
                self.reads.append(StreamRead(task.number, task.consumed, have, task.has_left))
        self._wake()

    def _give_up(self, pump: ClientPump) -> None:
        if not pump.is_open:
            self.hang_up(pump)

    def hang_up(self, pump: ClientPump) -> None:
        """End the stream from this side."""
        if pump is self._pump and self._end is not None:
            self._end.hang_up()

    def lose(self, pump: ClientPump) -> None:
        """The stream is over: open another one after a pause."""
        if pump is self._pump:
            self._pump = self._end = None
            pause_s = self._reconnect.pause_after_failure(self.loop.time())
            self.loop.call_later(pause_s, self._connect)

    def _wake(self) -> None:
        if self._end is not None:
            self._end.wake()

    # -- tasks -----------------------------------------------------------------------------

    def submit(self, task: TaskRecord) -> None:
        """Hand in a task, in order of its number."""
        self._unsent.append(task)
        self._wake()

    def unsent(self) -> Iterator[tuple[Submission, TaskClass]]:
        """Take what waits, as consecutive tasks of one class each."""
        batch: list[TaskRecord] = []
        waiting, self._unsent = self._unsent[:MAX_FRAME_TASKS], self._unsent[MAX_FRAME_TASKS:]
        for task in waiting:
            if batch and not _goes_with(task, batch[-1]):
                yield _submission(batch)
                batch = []
            batch.append(task)
        if batch:
            yield _submission(batch)

    def take(self, frame: HeadFrame) -> None:
        """Learn what became of tasks."""
        history = self._history
        for part in frame.accepted:
            for number in range(part.first, part.first + part.count):
                history.accepted(number)
        for refused in frame.rejected:
            for number in range(refused.first, refused.first + refused.count):
                history.rejected(number, error_of_rejection(refused))
        for items in frame.items:
            self._take_items(items)
        self._take_outcomes(frame.outcomes)
        for lost in frame.unknown:
            for number in range(lost.first, lost.first + lost.count):
                history.unknown(number)
        if frame.has_content:
            self._wake()

    def _take_outcomes(self, outcomes: list[Outcome]) -> None:
        for outcome in outcomes:
            if type(outcome.payloads) is PlacedColumn:
                self._take_place(outcome)
                continue
            for index in range(len(outcome.payloads)):
                item = outcome.payloads.slice(index, index + 1)
                number = outcome.first + index
                self._history.ended(number, replace(outcome, first=number, payloads=item))

    # -- values that stay with workers -----------------------------------------------------

    def _take_place(self, outcome: Outcome) -> None:
        was_told = self._history.tasks[outcome.first].place is not None
        self._values.take(outcome)
        task = self._history.tasks[outcome.first]
        if task.freed_before is not None and not was_told:
            self._release(task.number)

    def free(self, task: TaskRecord) -> None:
        """Let go of a result, now or when it is there."""
        was_freed = task.freed_before is not None
        self._history.freed(task.number)
        if task.place is not None and not was_freed:
            self._release(task.number)

    def _release(self, number: int) -> None:
        self._released.append(number)
        self._wake()

    def unreleased(self) -> list[TaskRange]:
        """Take what the head is to be told of; never before tasks that may take it."""
        if self._unsent:
            return []
        numbers, self._released = sorted(self._released), []
        self._told_released += numbers
        return [TaskRange(number, 1) for number in numbers]

    # -- generators ------------------------------------------------------------------------

    def _take_items(self, items: StreamItems) -> None:
        task = self._history.tasks[items.sequence]
        before = len(task.items)
        self._history.received(items.sequence, items.first, list(items.payloads))
        if before == task.consumed < len(task.items):
            self._read_next(task)
        held = task.held
        if held is not None and len(task.items) >= held.items:
            task.held = None
            self._history.ended(held.first, held)

    def _read_next(self, task: TaskRecord) -> None:
        """Have the consumer take the next item when it gets to it."""
        if task.read_every_s <= 0.0:
            task.consumed = len(task.items)
            self._tell_read(task)
        elif task.read_every_s < float("inf"):
            self.loop.call_later(task.read_every_s, self._read_one, task)

    def _read_one(self, task: TaskRecord) -> None:
        if task.has_left:
            return
        task.consumed += 1
        self._tell_read(task)
        if task.consumed < len(task.items):
            self._read_next(task)

    def _tell_read(self, task: TaskRecord) -> None:
        if self.is_connected:
            self.reads.append(StreamRead(task.number, task.consumed, -1, task.has_left))
            self._wake()

    def leave(self, task: TaskRecord) -> None:
        """Have the consumer of a generator want no more."""
        task.has_left = task.is_cancel_asked = True
        self._tell_read(task)

    # -- cancelling ------------------------------------------------------------------------

    def cancel(self, task: TaskRecord, *, force: bool) -> None:
        """Ask the head to cancel, again and again until it has confirmed."""
        task.is_cancel_asked = True
        self._ask_to_cancel(next(self._calls), task, force)

    def _ask_to_cancel(self, call: int, task: TaskRecord, force: bool) -> None:
        if call in self._answered or task.is_told:
            return
        if task.is_accepted:
            self._network.carry(CLIENT, HEAD, self._cancel_at_head, call, task, force)
        self.loop.call_later(OPEN_LIMIT_S, self._ask_to_cancel, call, task, force)

    def _cancel_at_head(self, call: int, task: TaskRecord, force: bool) -> None:
        self._head.loop.create_task(self._cancel_and_confirm(call, task, force))

    async def _cancel_and_confirm(self, call: int, task: TaskRecord, force: bool) -> None:
        request = CancelRequest(PREFIX, task.number, 1, force)
        driver = self._head.driver
        found = driver.scheduler.task(PREFIX, task.number)
        # What has succeeded stays so; and may run again only if its value stayed, and is lost.
        has_value = found is not None and found.state is TaskState.SUCCEEDED
        life = self._history.values.lives(task.number) - has_value
        driver.handle(CancelRequested(request))
        await driver.safe()
        self._network.carry(HEAD, CLIENT, self._cancelled, call, task, life)

    def _cancelled(self, call: int, task: TaskRecord, life: int) -> None:
        if call not in self._answered:
            self._answered.add(call)
            self._history.cancelled_safely(task, life)


def _goes_with(task: TaskRecord, last: TaskRecord) -> bool:
    return (task.number, task.task_class, task.deadline_unix_s) == (
        last.number + 1,
        last.task_class,
        last.deadline_unix_s,
    )


def _submission(batch: list[TaskRecord]) -> tuple[Submission, TaskClass]:
    first = batch[0]
    payloads = PayloadColumn.of([task.payload for task in batch])
    inputs = None
    if first.task_class.has_inputs:
        inputs = PayloadColumn.of(
            [pack_inputs(InputId(PREFIX, number) for number in task.takes) for task in batch]
        )
    submission = Submission(0, first.number, payloads, first.deadline_unix_s, inputs=inputs)
    return submission, first.task_class
