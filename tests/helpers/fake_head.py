"""A head, a worker and an executor in one object: runs tasks inline on the loop's thread.

It speaks `HeadApi` as far as clients use it, over an in-memory link that keeps the contract
of `rustray.rpc.api.Link`. Tests may hold outcomes back, cut the stream, forget tasks, or
refuse what they like.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from rustray.common.errors import PayloadError, RustRayError, TaskNotFound
from rustray.common.ids import split_task_id, task_id
from rustray.rpc.api import (
    CancelVerdict,
    EventFilter,
    RawResult,
    SubmitItem,
    SubmitVerdict,
)
from rustray.task.codec import (
    decode_call,
    encode_failure,
    encode_value,
    failure_from_exception,
)
from rustray.task.columns import PayloadColumn
from rustray.task.frames import AcceptedRange, ClientFrame, HeadFrame, Outcome, Rejection, TaskRange
from rustray.task.functions import registry
from rustray.task.result import FailureInfo, TaskEvent
from rustray.task.spec import Codec, TaskClass
from rustray.task.state import TaskState
from rustray.task.views import ClusterStatus

CANCELLED = encode_failure(FailureInfo("TASK_CANCELLED", "the task was cancelled"))


class FakeLink:
    """The client's end of a stream; one frame is under way at a time."""

    def __init__(self, head: FakeHead, prefix: bytes, pump: Any) -> None:
        self.head = head
        self.prefix = prefix
        self.pump = pump
        self.sent = 0
        self.received = 0
        self.is_open = True
        self.is_writing = False
        self.definitions: dict[int, tuple[TaskClass, bytes]] = {}
        self.loop = asyncio.get_running_loop()

    def wake(self) -> None:
        """Send what the pump has, unless a frame is under way."""
        if self.is_open and not self.is_writing:
            self.is_writing = True
            self.loop.call_soon(self._write)

    wake_now = wake

    def _write(self) -> None:
        self.is_writing = False
        if not self.is_open:
            return
        frame = self.pump.next_frame()
        if frame is None:
            return
        self.wake()
        assert frame.number == self.received + 1
        self.received = frame.number
        self.head.take(self, frame)

    def answer(self, frame: HeadFrame) -> None:
        """Send a frame to the client."""
        if self.is_open:
            self.sent += 1
            frame.number, frame.ack = self.sent, self.received
            self.pump.on_frame(frame)

    def cut(self, error: RustRayError | None = None) -> None:
        """Lose the connection."""
        if self.is_open:
            self.is_open = False
            self.pump.on_closed(error)

    async def close(self) -> None:
        """End the stream."""
        self.cut()


class FakeHead:
    """See the module.

    Attributes:
        hold: Whether outcomes wait for `release`.
        ack: Whether submissions are acked.
        refuse: Called with a task class; returns the error that its tasks get, or None.
        dial_errors: Raised, one after the other, by the next attempts to connect.
        ran: (function, args, kwargs) of everything that ran.
        frames: What clients sent.
    """

    def __init__(self) -> None:
        self.hold = False
        self.ack = True
        self.refuse: Callable[[TaskClass], RustRayError | None] = lambda _class: None
        self.dial_errors: list[RustRayError] = []
        self.ran: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self.frames: list[ClientFrame] = []
        self.links: list[FakeLink] = []
        self.held: list[tuple[FakeLink, Outcome]] = []
        self.known: dict[bytes, dict[int, Outcome]] = {}
        self.functions: dict[bytes, Any] = {}
        self.results: dict[str, RawResult] = {}
        self.events: list[TaskEvent] = []

    # -- the stream -----------------------------------------------------------

    async def status(self) -> ClusterStatus:
        """See `HeadApi.status`."""
        return ClusterStatus("c", "0", "", 1.0, "none", "memory", "RoundRobin", 0, {}, {}, {}, {})

    async def open_client_stream(self, prefix: bytes, pump: Any) -> FakeLink:
        """Connect."""
        if self.dial_errors:
            raise self.dial_errors.pop(0)
        link = FakeLink(self, prefix, pump)
        self.links.append(link)
        return link

    def take(self, link: FakeLink, frame: ClientFrame) -> None:
        """Take a client's frame: run what it submits and answer."""
        self.frames.append(frame)
        reply = HeadFrame()
        for definition in frame.classes:
            link.definitions[definition.number] = (definition.task_class, definition.code)
        for submission in frame.submissions:
            task_class, code = link.definitions[submission.class_number]
            count = len(submission.payloads)
            error = self.refuse(task_class)
            if error is not None:
                reply.rejected.append(Rejection(submission.first, count, error.code, str(error)))
                continue
            if self.ack:
                reply.accepted.append(AcceptedRange(submission.first, count))
            for outcome in self._run(link, submission.first, task_class, code, submission.payloads):
                self._keep(link, outcome, reply)
        self._follow(link, frame.follow, reply)
        for cancel in frame.cancels:
            self._cancel(link, cancel.first, cancel.count, reply)
        if reply.accepted or reply.rejected or reply.outcomes or reply.unknown:
            link.answer(reply)

    def _follow(self, link: FakeLink, ranges: list[TaskRange], reply: HeadFrame) -> None:
        for asked in ranges:
            for sequence in range(asked.first, asked.first + asked.count):
                found = self.known.get(link.prefix, {}).get(sequence)
                if found is None:
                    reply.unknown.append(TaskRange(sequence, 1))
                else:
                    self._keep(link, found, reply)

    def _keep(self, link: FakeLink, outcome: Outcome, reply: HeadFrame) -> None:
        self.known.setdefault(link.prefix, {})[outcome.first] = outcome
        if self.hold:
            self.held.append((link, outcome))
        else:
            reply.outcomes.append(outcome)

    def _cancel(self, link: FakeLink, first: int, count: int, reply: HeadFrame) -> None:
        for held in [h for h in self.held if first <= h[1].first < first + count]:
            self.held.remove(held)
            cancelled = Outcome(
                held[1].first, TaskState.CANCELLED, PayloadColumn.of([CANCELLED]), "", 0
            )
            self.known[link.prefix][cancelled.first] = cancelled
            reply.outcomes.append(cancelled)

    def cancel_one(self, link: FakeLink, sequence: int) -> None:
        """Cancel a task behind its client's back."""
        cancelled = Outcome(sequence, TaskState.CANCELLED, PayloadColumn.of([CANCELLED]), "", 0)
        link.answer(HeadFrame(outcomes=[cancelled]))

    def release(self, count: int | None = None) -> None:
        """Deliver held outcomes, oldest first; on the loop's thread."""
        stop = len(self.held) if count is None else count
        ready, self.held = self.held[:stop], self.held[stop:]
        for _, outcome in ready:
            self.links[-1].answer(HeadFrame(outcomes=[outcome]))

    def _run(
        self,
        link: FakeLink,
        first: int,
        task_class: TaskClass,
        code: bytes,
        payloads: PayloadColumn,
    ) -> list[Outcome]:
        outcomes = []
        for sequence, payload in enumerate(payloads, first):
            known = self.known.get(link.prefix, {}).get(sequence)
            if known is not None:
                outcomes.append(known)
                continue
            state, answer = self.run_one(task_class, code, payload)
            outcomes.append(Outcome(sequence, state, PayloadColumn.of([answer]), "fake-1", 1))
        return outcomes

    def run_one(
        self, task_class: TaskClass, code: bytes, payload: bytes
    ) -> tuple[TaskState, bytes]:
        """Run one task inline."""
        codec = task_class.codec
        try:
            args, kwargs = decode_call(codec, payload)
            if code:
                if task_class.code_hash not in self.functions:
                    self.functions[task_class.code_hash] = pickle.loads(code)
                function = self.functions[task_class.code_hash]
            else:
                function = registry.functions[task_class.function].call
            self.ran.append((task_class.function, args, kwargs))
            return TaskState.SUCCEEDED, encode_value(codec, function(*args, **kwargs))
        except BaseException as error:
            info = failure_from_exception(error, codec, skip_frames=1)
            return TaskState.FAILED, encode_failure(info)

    # -- unary calls ------------------------------------------------------------

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
        """Run the items inline."""
        verdicts = []
        for item in items:
            name = task_id(item.prefix, item.sequence)
            error = self.refuse(item.task_class)
            verdicts.append(SubmitVerdict(name, error, name in self.results))
            if error is None and name not in self.results:
                state, answer = self.run_one(item.task_class, b"", item.payload)
                codec = int(item.task_class.codec)
                self.results[name] = RawResult(name, state, codec, answer, "fake-1", 1)
        return verdicts

    async def get_result(self, task_id: str, timeout_s: float | None) -> RawResult:
        """Answer at once; a held result is still queued."""
        split_task_id(task_id)
        if task_id not in self.results:
            raise TaskNotFound(f"no task {task_id}")
        if self.hold:
            return RawResult(task_id, TaskState.QUEUED, int(Codec.MSGPACK), b"", "", 0)
        return self.results[task_id]

    async def get_items(
        self, task_id: str, first: int, timeout_s: float | None
    ) -> tuple[RawResult, list[bytes]]:
        """No task of it is a generator."""
        raise PayloadError(f"task {task_id} is no generator")

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]:
        """Say what became of each."""
        return [
            CancelVerdict(name, self.results[name].state)
            if name in self.results
            else CancelVerdict(name, None, TaskNotFound(f"no task {name}"))
            for name in task_ids
        ]

    async def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Stream the events after the cursor, one by one, then fail as a lost connection does."""
        for event in list(self.events):
            if event.revision > where.cursor:
                yield [event]
        if self.dial_errors:
            raise self.dial_errors.pop(0)
