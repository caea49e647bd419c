"""The sessions of workers and clients: open, resumed, lost, drained.

A peer is the head's end of one frame stream. It numbers frames, drops duplicates, ends a
session in which a frame is missing, and collects what waits until the link asks for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable

from rustray.common.errors import (
    AuthorizationError,
    CommunicationError,
    PayloadError,
    RustRayError,
)
from rustray.head.driver import HeadDriver
from rustray.rpc.api import Link
from rustray.scheduler.commands import (
    AcceptTasks,
    CancelLease,
    DeliverOutcome,
    GrantLease,
    RecallLease,
    RejectTasks,
    ReportUnknown,
)
from rustray.scheduler.events import (
    CancelRequested,
    CodeReceived,
    FollowRequested,
    OutcomesDelivered,
    TasksSubmitted,
    WorkerDisconnected,
    WorkerReported,
)
from rustray.task.frames import (
    AssignFrame,
    CancelRequest,
    ClassDefinition,
    ClientFrame,
    HeadFrame,
    LeaseCancel,
    LeaseGrant,
    LeaseRange,
    Outcome,
    Rejection,
    TaskRange,
    WorkerFrame,
)
from rustray.task.spec import Codec, TaskClass

logger = logging.getLogger("rustray.head")

FRAME_TASKS = 4_096
FRAME_BYTES = 1 << 20
ACK_DELAY_S = 0.02
"""An ack that nothing carries goes alone after this time; data never waits."""
MAX_STALLED_BEATS = 5
"""Heartbeats without any progress of frames that are under way, before a session ends."""
MAX_UNCONFIRMED = 64
"""Frames whose arrival a client has acked before this is noted without waiting for the next ack."""
MAX_OUTBOX_RANGES = 500_000
"""A client that lets more outcomes pile up is cut off; it comes back and asks for them."""


class Peer:
    """What both kinds of peers share: numbers, acks, and the link.

    Attributes:
        sent: Number of the last frame given to the link.
        received: Number of the last frame taken from it.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.sent = 0
        self.received = 0
        self.is_closed = False
        self._loop = loop
        self._link: Link | None = None
        self._acked = 0
        self._ack_timer: asyncio.TimerHandle | None = None
        self._is_ack_ripe = False
        self._closing: asyncio.Task[None] | None = None

    def attach(self, link: Link) -> None:
        """Learn the link under this peer."""
        self._link = link
        link.wake()

    def wake(self) -> None:
        """Have the link ask for a frame."""
        if self._link is not None and not self.is_closed:
            self._link.wake()

    def is_fresh(self, number: int) -> bool:
        """Judge a frame by its number: the next one is fresh, an old one a duplicate.

        A gap ends the session: what is missing is found out when the peer comes back.
        """
        if number == self.received + 1:
            self.received = number
            return True
        if number > self.received:
            self.shut(f"frame {number} came after frame {self.received}")
        return False

    def need_ack(self) -> None:
        """Send an ack soon, unless data carries it before."""
        if self._ack_timer is None and not self.is_closed:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._ripen)

    def _ripen(self) -> None:
        self._ack_timer = None
        if self._acked < self.received:
            self._is_ack_ripe = True
            self.wake()

    def stamp(self) -> tuple[int, int]:
        """Return the next frame's (number, ack)."""
        self.sent += 1
        self._acked = self.received
        self._is_ack_ripe = False
        return self.sent, self.received

    def shut(self, reason: str) -> None:
        """Close the link; the other side will come back."""
        if self.is_closed or self._link is None:
            return
        logger.info("closing a stream: %s", reason)
        self._closing = self._loop.create_task(self._link.close())

    def mark_closed(self) -> None:
        """Forget the link."""
        self.is_closed = True
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None


class WorkerPeer(Peer):
    """The head's end of a worker's stream, for one session.

    Attributes:
        when_closed: Called with the worker's id after its stream has ended.
    """

    def __init__(self, driver: HeadDriver, worker_id: str, session: int) -> None:
        super().__init__(driver.loop)
        self.worker_id = worker_id
        self.session = session
        self.when_closed: Callable[[str], None] | None = None
        self._driver = driver
        self._grants: deque[GrantLease] = deque()
        self._cancels: list[LeaseCancel] = []
        self._recalls: list[LeaseRange] = []
        self._is_draining = False
        self._has_sent_drain = False
        self._stalled_beats = 0
        self._last_numbers = (0, 0)
        self._numbers: dict[TaskClass, int] = {}
        self._code_sent: set[bytes] = set()

    # -- what the driver wants sent -----------------------------------------

    def grant(self, command: GrantLease) -> None:
        """Send a lease."""
        self._grants.append(command)
        self.wake()

    def cancel(self, command: CancelLease) -> None:
        """Send a cancel; it never overtakes the grant that it concerns."""
        self._cancels.append(
            LeaseCancel(command.lease, command.offset, command.count, command.force)
        )
        self.wake()

    def recall(self, command: RecallLease) -> None:
        """Ask for unstarted work."""
        self._recalls.append(LeaseRange(command.lease, command.offset, command.count))
        self.wake()

    def drain(self) -> None:
        """Tell the worker to leave in order."""
        self._is_draining = True
        self.wake()

    def close(self, session: int, reason: str) -> None:
        """End this session."""
        if session == self.session:
            self.shut(reason)

    # -- FramePump ------------------------------------------------------------

    def next_frame(self) -> AssignFrame | None:
        """Return all that waits for this worker, bounded in tasks and bytes."""
        waits = self._grants or self._cancels or self._recalls or self._is_ack_ripe
        if not waits and (self._has_sent_drain or not self._is_draining):
            return None
        frame = AssignFrame(drain=self._is_draining)
        self._has_sent_drain = self._is_draining
        tasks = size = 0
        while self._grants and tasks < FRAME_TASKS and size < FRAME_BYTES:
            grant = self._grants.popleft()
            tasks += len(grant.payloads)
            size += len(grant.payloads.blob)
            frame.leases.append(
                LeaseGrant(
                    grant.lease,
                    self._class_number(grant.task_class, frame),
                    grant.attempt,
                    grant.prefix,
                    grant.first,
                    grant.payloads,
                )
            )
        if not self._grants:
            frame.cancels, self._cancels = self._cancels, []
            frame.recall, self._recalls = self._recalls, []
        frame.number, frame.ack = self.stamp()
        return frame

    def _class_number(self, task_class: TaskClass, frame: AssignFrame) -> int:
        number = self._numbers.get(task_class)
        if number is None:
            number = self._numbers[task_class] = len(self._numbers) + 1
            code = b""
            code_hash = task_class.code_hash
            if code_hash and code_hash not in self._code_sent:
                self._code_sent.add(code_hash)
                code = self._driver.scheduler.state.code.get(code_hash, b"")
            frame.classes.append(ClassDefinition(number, task_class, code))
        return number

    def on_frame(self, frame: WorkerFrame) -> None:
        """Take a report of the worker."""
        if not self.is_fresh(frame.number):
            return
        self._driver.handle(
            WorkerReported(
                self.worker_id,
                self.session,
                None if frame.held is None else tuple(frame.held),
                tuple(frame.outcomes),
                tuple(frame.returned),
                tuple(frame.started),
                frame.draining,
                frame.drained,
            )
        )
        self.need_ack()

    def on_closed(self, error: RustRayError | None) -> None:
        """The stream is over; the worker's leases run on."""
        self.mark_closed()
        if self._driver.workers.get(self.worker_id) is self:
            del self._driver.workers[self.worker_id]
        if error is not None:
            logger.info("stream of worker %s ended: %s", self.worker_id, error)
        self._driver.handle(WorkerDisconnected(self.worker_id, self.session))
        if self.when_closed is not None:
            self.when_closed(self.worker_id)

    def compare(self, sent: int, received: int) -> bool:
        """Compare frame numbers with those that a heartbeat carries.

        A frame that got lost with none after it shows only here: the same frames are missing
        beat after beat. Then the session ends, and both sides start over from what they hold.

        Args:
            sent: Last frame that the worker sent.
            received: Last frame that it received.

        Returns:
            Whether nothing is under way, so that both sides' books can be compared.
        """
        is_behind = sent > self.received or received < self.sent
        numbers = (self.received, received)
        if not is_behind or numbers != self._last_numbers:
            self._stalled_beats = 0
        self._last_numbers = numbers
        if is_behind:
            self._stalled_beats += 1
            if self._stalled_beats > MAX_STALLED_BEATS:
                self.shut(f"frames are missing (of {sent} sent, {self.received} arrived)")
        return not is_behind and not self._grants


class ClientPeer(Peer):
    """The head's end of a client's stream."""

    def __init__(self, driver: HeadDriver, prefix: bytes, may_send_code: bool) -> None:
        super().__init__(driver.loop)
        self.prefix = prefix
        self._driver = driver
        self._may_send_code = may_send_code
        self._classes: dict[int, ClassDefinition] = {}
        self._bad_classes: dict[int, RustRayError] = {}
        self._accepted: list[TaskRange] = []
        self._rejected: list[Rejection] = []
        self._outcomes: deque[Outcome] = deque()
        self._unknown: list[TaskRange] = []
        self._unconfirmed: deque[tuple[int, list[TaskRange]]] = deque()
        self._confirmed = 0

    # -- what the driver wants sent -----------------------------------------

    def accept(self, command: AcceptTasks) -> None:
        """Ack tasks; an outcome that comes soon carries it along."""
        last = self._accepted[-1] if self._accepted else None
        if last is not None and last.first + last.count == command.first:
            self._accepted[-1] = TaskRange(last.first, last.count + command.count)
        else:
            self._accepted.append(TaskRange(command.first, command.count))
        self.need_ack()

    def reject(self, command: RejectTasks) -> None:
        """Refuse tasks."""
        error = command.error
        self._rejected.append(Rejection(command.first, command.count, error.code, str(error)))
        self.wake()

    def deliver(self, command: DeliverOutcome) -> None:
        """Send an outcome."""
        self._outcomes.append(command.outcome)
        if len(self._outcomes) > MAX_OUTBOX_RANGES:
            self.shut("the client does not read its outcomes")
            return
        self.wake()

    def unknown(self, command: ReportUnknown) -> None:
        """Say which tasks this head does not know."""
        self._unknown.append(TaskRange(command.first, command.count))
        self.wake()

    # -- FramePump ------------------------------------------------------------

    def next_frame(self) -> HeadFrame | None:
        """Return all that waits for this client, bounded in tasks and bytes."""
        if not (self._outcomes or self._rejected or self._unknown or self._is_ack_ripe):
            return None
        frame = HeadFrame()
        tasks = size = 0
        while self._outcomes and tasks < FRAME_TASKS and size < FRAME_BYTES:
            outcome = self._outcomes.popleft()
            tasks += len(outcome.payloads)
            size += len(outcome.payloads.blob)
            frame.outcomes.append(outcome)
        frame.accepted, self._accepted = self._accepted, []
        frame.rejected, self._rejected = self._rejected, []
        frame.unknown, self._unknown = self._unknown, []
        frame.number, frame.ack = self.stamp()
        if frame.outcomes:
            sent = [TaskRange(o.first, len(o.payloads)) for o in frame.outcomes]
            self._unconfirmed.append((frame.number, sent))
        return frame

    def on_frame(self, frame: ClientFrame) -> None:
        """Take what a client submits, cancels and asks for."""
        if not self.is_fresh(frame.number):
            return
        for definition in frame.classes:
            self._define(definition)
        for submission in frame.submissions:
            used = self._classes.get(submission.class_number)
            if used is None:
                self.shut(f"class {submission.class_number} was never defined")
                return
            if self._bad_classes:
                error = self._bad_classes.get(submission.class_number)
                if error is not None:
                    self._refuse(submission.first, len(submission.payloads), error)
                    continue
            self._bring_code(used)
            self._driver.handle(
                TasksSubmitted(
                    self.prefix,
                    submission.first,
                    used.task_class,
                    submission.payloads,
                    is_pushed=True,
                )
            )
        for cancel in frame.cancels:
            prefix = cancel.prefix or self.prefix
            request = CancelRequest(prefix, cancel.first, cancel.count, cancel.force)
            self._driver.handle(CancelRequested(request))
        for asked in frame.follow:
            self._driver.handle(FollowRequested(self.prefix, asked.first, asked.count))
        self._confirmed = frame.ack
        if len(self._unconfirmed) > MAX_UNCONFIRMED:
            self._confirm()
        self.need_ack()

    def _ripen(self) -> None:
        self._confirm()
        super()._ripen()

    def _define(self, definition: ClassDefinition) -> None:
        self._classes[definition.number] = definition
        error = self._class_error(definition.task_class)
        if error is not None:
            self._bad_classes[definition.number] = error
        else:
            self._bad_classes.pop(definition.number, None)

    def _class_error(self, task_class: TaskClass) -> RustRayError | None:
        """Say why no task of this class can be accepted, or None."""
        try:
            task_class.validate()
        except ValueError as error:
            return PayloadError(f"the task is not valid: {error}")
        needs_code = task_class.code_hash or task_class.codec is Codec.PICKLE
        if needs_code and not self._may_send_code:
            return AuthorizationError(
                f"this token may not send code, and {task_class.function} is not a registered "
                "function; call registered functions, or ask for a token with --allow-code"
            )
        return None

    def _bring_code(self, definition: ClassDefinition) -> None:
        """Hand over a function's code, which the scheduler drops with the function's last task."""
        code_hash = definition.task_class.code_hash
        if code_hash and definition.code and code_hash not in self._driver.scheduler.state.code:
            self._driver.handle(CodeReceived(code_hash, definition.code))

    def _refuse(self, first: int, count: int, error: RustRayError) -> None:
        self._driver.scheduler.state.counters["tasks_rejected"] += count
        self.reject(RejectTasks(self.prefix, first, count, error))

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
        if self._driver.clients.get(self.prefix) is self:
            del self._driver.clients[self.prefix]
        self._confirm()
        if error is not None and not isinstance(error, CommunicationError):
            logger.info("stream of a client ended: %s", error)


class ConnectionManager:
    """Opens peers, and lets a newer session take the place of an older one."""

    def __init__(self, driver: HeadDriver) -> None:
        self._driver = driver

    def open_worker(self, worker_id: str, session: int) -> WorkerPeer:
        """Open the stream of a registered worker.

        Raises:
            CommunicationError: the session is not the present one; register again.
        """
        if not self._driver.scheduler.knows_session(worker_id, session):
            raise CommunicationError(
                f"session {session} of worker {worker_id} is not known; register again"
            )
        old = self._driver.workers.get(worker_id)
        peer = WorkerPeer(self._driver, worker_id, session)
        self._driver.workers[worker_id] = peer
        if isinstance(old, WorkerPeer):
            old.shut("a newer session of this worker took its place")
        return peer

    def open_client(self, prefix: bytes, may_send_code: bool) -> ClientPeer:
        """Open a client's stream, new or resumed."""
        old = self._driver.clients.get(prefix)
        peer = ClientPeer(self._driver, prefix, may_send_code)
        self._driver.clients[prefix] = peer
        if isinstance(old, ClientPeer):
            old.shut("a newer stream of this session took its place")
        return peer
