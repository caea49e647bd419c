"""The head's end of a client's stream."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from typing import Final

from rustray.common.counting import count_refused
from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    HeadUnavailable,
    PayloadError,
    ResourceExhausted,
    RustRayError,
    TaskNotFound,
)
from rustray.head.brought import Brought
from rustray.head.driver import HeadDriver
from rustray.head.peer import FRAME_BYTES, FRAME_TASKS, Peer
from rustray.head.refusals import Refusals
from rustray.scheduler.admission import count_refusal
from rustray.scheduler.commands import (
    AcceptTasks,
    DeliverOutcome,
    RejectTasks,
    ReportUnknown,
)
from rustray.scheduler.completion import failure_payloads
from rustray.scheduler.events import (
    CancelRequested,
    ClientLeft,
    FollowRequested,
    ItemsRead,
    OutcomesDelivered,
    ResultsReleased,
    TasksSubmitted,
)
from rustray.scheduler.stream_commands import DeliverItems
from rustray.task.columns import PayloadColumn, StoredColumn
from rustray.task.frames import (
    AcceptedRange,
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    Outcome,
    Rejection,
    Submission,
    TaskRange,
)
from rustray.task.inputs import producers_of
from rustray.task.result import FailureInfo
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.streams import ItemQueue, StreamItems

logger = logging.getLogger("rustray.head")

ACK_FRAMES: Final = 4
"""A client is told at once when so many of its frames have arrived: it waits for that."""
MAX_UNCONFIRMED: Final = 64
"""Frames whose arrival a client has acked before this is noted without waiting for the next ack."""
MAX_OUTBOX_RANGES: Final = 500_000
"""A client that lets more outcomes pile up is cut off; it comes back and asks for them."""


class ClientPeer(Peer):
    """The head's end of a client's stream."""

    def __init__(
        self,
        driver: HeadDriver,
        prefix: bytes,
        may_send_code: bool,
        may_touch: Callable[[bytes], bool],
        principal: str = "",
    ) -> None:
        super().__init__(driver.loop, driver.scheduler.state.counters)
        self.prefix = prefix
        self._driver = driver
        self._may_send_code = may_send_code
        self._may_touch = may_touch
        self._principal = principal
        self._classes: dict[int, ClassDefinition] = {}
        self._bad_classes: dict[int, RustRayError] = {}
        self._brought = Brought()
        self._level = driver.scheduler.state.settings.durability
        self._accepted: list[AcceptedRange] = []
        self._rejected: list[Rejection] = []
        self._outcomes: deque[Outcome] = deque()
        self._stored: deque[Outcome] = deque()
        self._reading: asyncio.Task[None] | None = None
        self._unknown: list[TaskRange] = []
        self._items: ItemQueue[int] = ItemQueue()
        self._unconfirmed: deque[tuple[int, list[TaskRange]]] = deque()
        self._confirmed = 0

    # -- what the driver wants sent -----------------------------------------

    def accept(self, command: AcceptTasks) -> None:
        """Ack tasks; an outcome that comes soon carries it along."""
        last = self._accepted[-1] if self._accepted else None
        level = command.durability
        if last is None or last.first + last.count != command.first or last.durability != level:
            self._accepted.append(AcceptedRange(command.first, command.count, level))
        else:
            self._accepted[-1] = AcceptedRange(last.first, last.count + command.count, level)
        self._owed = max(self._owed, 1)
        self._arm_ack()

    def reject(self, command: RejectTasks) -> None:
        """Refuse tasks."""
        error = command.error
        hint_s, reason = 0.0, ""
        if isinstance(error, ResourceExhausted):
            hint_s, reason = error.retry_after_s, error.reason
        self._rejected.append(
            Rejection(command.first, command.count, error.code, str(error), hint_s, reason)
        )
        self.wake()

    def deliver(self, command: DeliverOutcome) -> None:
        """Send an outcome."""
        is_stored = isinstance(command.outcome.payloads, StoredColumn)
        (self._stored if is_stored else self._outcomes).append(command.outcome)
        if len(self._outcomes) + len(self._stored) > MAX_OUTBOX_RANGES:
            self.shut("the client does not read its outcomes", "slow_reader")
            return
        self._read_next()
        self.wake()

    def deliver_items(self, command: DeliverItems) -> None:
        """Send items of a stream; an outcome never overtakes them."""
        self._items.add(command.sequence, command.first, command.payloads)
        self.wake()

    def unknown(self, command: ReportUnknown) -> None:
        """Say which tasks this head does not know."""
        self._unknown.append(TaskRange(command.first, command.count))
        self.wake()

    def _read_next(self) -> None:
        """Have one large result read, once what was read before is on its way."""
        if self._stored and self._reading is None and not (self._outcomes or self.is_closed):
            self._reading = self._loop.create_task(self._read(self._stored.popleft()))

    async def _read(self, outcome: Outcome) -> None:
        assert isinstance(outcome.payloads, StoredColumn)
        count = len(outcome.payloads)
        try:
            payloads = await self._driver.read_results(outcome.payloads)
            self._outcomes.append(replace(outcome, payloads=payloads))
        except TaskNotFound:
            self._unknown.append(TaskRange(outcome.first, count))
        except HeadUnavailable:
            pass  # the head stops: the client comes back to the next one, and asks
        except RustRayError as error:
            lost = failure_payloads(count, FailureInfo(error.code, str(error)))
            self._outcomes.append(replace(outcome, state=TaskState.FAILED, payloads=lost))
        self._reading = None
        self.wake()

    # -- FramePump ------------------------------------------------------------

    def next_frame(self) -> HeadFrame | None:
        """Return all that waits for this client, bounded in tasks and bytes."""
        others = self._rejected or self._unknown or self._items.runs
        if not (self._outcomes or others or self._is_ack_ripe):
            return None
        frame = HeadFrame()
        tasks = size = 0
        if self._items.runs:
            for sequence, first, items in self._items.take(FRAME_BYTES):
                size += len(items.blob)
                frame.items.append(StreamItems(sequence, first, items))
        while (
            self._outcomes and not self._items.runs and tasks < FRAME_TASKS and size < FRAME_BYTES
        ):
            outcome = self._outcomes.popleft()
            tasks += len(outcome.payloads)
            size += len(outcome.payloads.blob)
            frame.outcomes.append(outcome)
        frame.accepted, self._accepted = self._unsaid(frame.outcomes), []
        frame.rejected, self._rejected = self._rejected, []
        frame.unknown, self._unknown = self._unknown, []
        self._read_next()
        frame.number, frame.ack = self.stamp()
        if frame.outcomes:
            sent = [TaskRange(o.first, len(o.payloads)) for o in frame.outcomes]
            self._unconfirmed.append((frame.number, sent))
        return frame

    def _unsaid(self, outcomes: list[Outcome]) -> list[AcceptedRange]:
        """Return the acks that the outcomes do not imply; a task alone needs none."""
        accepted = self._accepted
        if len(accepted) == 1 and outcomes and accepted[0].durability == self._level:
            only, first = accepted[0], outcomes[0]
            end = first.first + len(first.payloads)
            if first.first <= only.first and only.first + only.count <= end:
                return []
        return accepted

    def on_frame(self, frame: ClientFrame) -> None:
        """Take what a client submits, cancels and asks for.

        Raises:
            CommunicationError: it names a class that was never defined, or acks a frame that was
                never sent; what comes before that in the frame stands.
        """
        if not self.is_fresh(frame.number):
            return
        if frame.has_content:
            self.need_ack()
        for definition in frame.classes:
            self._define(definition)
        # The end of a value that is put goes with the rest: the next task is not to wait for it.
        self._is_corked = len(frame.submissions) > 1
        try:
            for submission in frame.submissions:
                self._submit(submission)
        finally:
            self._is_corked = False
            self.wake()
        for cancel in frame.cancels:
            self._cancel(cancel)
        self._answer(frame)
        if frame.ack > self.sent:
            raise CommunicationError(f"frame {frame.ack} is acked, and was never sent")
        self._confirmed = frame.ack
        if len(self._unconfirmed) > MAX_UNCONFIRMED:
            self._confirm()
        if self._owed >= ACK_FRAMES:
            self._is_ack_ripe = True
            self.wake()

    def _answer(self, frame: ClientFrame) -> None:
        """Take how far consumers are, and what is asked for: items come before outcomes."""
        for read in frame.reads:
            self._driver.handle(ItemsRead(self.prefix, read))
        for done in frame.released:
            self._driver.handle(ResultsReleased(self.prefix, done.first, done.count))
        for asked in frame.follow:
            self._driver.handle(FollowRequested(self.prefix, asked.first, asked.count))

    def _cancel(self, cancel: CancelRequest) -> None:
        prefix = cancel.prefix or self.prefix
        if not self._may_touch(prefix):
            refused = AuthorizationError("the session is another token's")
            count_refused(self._counters, "cancels_refused", refused)
            return
        self._driver.handle(CancelRequested(replace(cancel, prefix=prefix)))

    def _submit(self, submission: Submission) -> None:
        used = self._classes.get(submission.class_number)
        if used is None:
            raise CommunicationError(f"class {submission.class_number} was never defined")
        if self._bad_classes:
            error = self._bad_classes.get(submission.class_number)
            if error is not None:
                self._refuse(submission.first, len(submission.payloads), error)
                return
        if submission.inputs is not None:
            inputs, refusals = submission.inputs, self._driver.refusals
            refused = _forbidden(inputs, self.prefix, self._may_touch)
            refused = refused or _refused_now(inputs, self.prefix, refusals)
            if refused is not None:
                self._refuse(submission.first, len(submission.payloads), refused)
                return
        self._bring_code(used)
        self._driver.handle(self._event_of(submission, used.task_class))

    def _event_of(self, submission: Submission, task_class: TaskClass) -> TasksSubmitted:
        """Return what the scheduler is told of a submission."""
        return TasksSubmitted(
            self.prefix,
            submission.first,
            task_class,
            submission.payloads,
            is_pushed=True,
            deadline_unix_s=submission.deadline_unix_s,
            time_left_s=self._driver.time_left_s(submission.deadline_unix_s),
            principal=self._principal,
            durability=submission.durability,
            inputs=submission.inputs,
        )

    def _ripen(self) -> None:
        self._confirm()
        super()._ripen()

    def _define(self, definition: ClassDefinition) -> None:
        definition = self._completed(definition)
        self._classes[definition.number] = definition
        error = self._class_error(definition)
        if error is not None:
            self._bad_classes[definition.number] = error
        else:
            self._bad_classes.pop(definition.number, None)

    def _completed(self, definition: ClassDefinition) -> ClassDefinition:
        """Return a class with what the client does not say of it."""
        task_class = definition.task_class
        task_class = with_retries(task_class, self._driver.scheduler.state.settings.max_retries)
        if task_class.depth or task_class.inherits_priority:
            task_class = replace(task_class, depth=0, inherits_priority=False)
        return replace(definition, task_class=task_class)

    def _class_error(self, definition: ClassDefinition) -> RustRayError | None:
        """Say why no task of this class can be accepted, or None."""
        task_class = definition.task_class
        if definition.code and sha256(definition.code).digest() != task_class.code_hash:
            return PayloadError(f"the code of {task_class.function} is not what its hash says")
        error = self._brought.take(definition)
        if error is not None:
            return error
        try:
            task_class.validate()
        except ValueError as bad:
            return PayloadError(f"the task is not valid: {bad}")
        if task_class.needs_code and not self._may_send_code:
            return AuthorizationError(
                f"this token may not send code, and {task_class.function} was sent as code, or "
                "with a runtime_env: call a registered function by its name (HeadNode with a "
                "TaskSpec, or rustray submit), or ask for a token made with --allow-code"
            )
        return None

    def _bring_code(self, definition: ClassDefinition) -> None:
        """Hand over a function's code, which the scheduler drops with the function's last task."""
        known = self._driver.scheduler.state.code
        if all(map(known.__contains__, definition.task_class.blobs)):
            return  # nearly always
        for code in self._brought.missing(definition, known):
            self._driver.handle(code)

    def _refuse(self, first: int, count: int, error: RustRayError) -> None:
        count_refusal(self._driver.scheduler.state, error, count)
        command = RejectTasks(self.prefix, first, count, error)
        if isinstance(error, ResourceExhausted):
            self._driver.refusals.note(command)
        self.reject(command)

    def _confirm(self) -> None:
        """Note which outcomes the client has; not urgent, so some frames' together."""
        ranges: list[TaskRange] = []
        while self._unconfirmed and self._unconfirmed[0][0] <= self._confirmed:
            for part in self._unconfirmed.popleft()[1]:
                last = ranges[-1] if ranges else None
                if last is not None and last.first + last.count == part.first:
                    ranges[-1] = TaskRange(last.first, last.count + part.count)
                else:
                    ranges.append(part)
        for part in ranges:
            self._driver.handle(OutcomesDelivered(self.prefix, part.first, part.count))

    def on_closed(self, error: RustRayError | None) -> None:
        """The stream is over; the client may come back for its results."""
        self.mark_closed()
        if self._reading is not None:
            self._reading.cancel()
        if self._driver.clients.get(self.prefix) is self:
            del self._driver.clients[self.prefix]
            self._driver.handle(ClientLeft(self.prefix))
        self._confirm()
        if error is not None and not isinstance(error, CommunicationError):
            logger.info("stream of a client ended: %s", error)


def _forbidden(
    inputs: PayloadColumn, own: bytes, may_touch: Callable[[bytes], bool]
) -> RustRayError | None:
    """Say why tasks may not take what they name, or None; each session is asked for once."""
    prefixes = {prefix for item in inputs for prefix, _ in producers_of(item)}
    if all(map(may_touch, prefixes - {own})):
        return None
    return AuthorizationError("an argument is the result of another token's task")


def _refused_now(inputs: PayloadColumn, own: bytes, refusals: Refusals) -> RustRayError | None:
    """Say why what tasks take is refused for the time being: then so are they. Else None."""
    if own not in refusals:
        return None
    for item in inputs:
        for prefix, sequence in producers_of(item):
            error = refusals.error_of(prefix, sequence) if prefix == own else None
            if error is not None:
                return error
    return None


def with_retries(task_class: TaskClass, default: int) -> TaskClass:
    """Return a class with the head's ``max_retries``, where nobody has named one."""
    if not task_class.inherits_retries:
        return task_class
    own = replace(task_class, max_retries=default, inherits_retries=False)
    return own if own.may_run_again else replace(own, results_stay=False)
