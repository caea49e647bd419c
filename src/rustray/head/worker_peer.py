"""The head's end of a worker's stream."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from rustray.common.errors import (
    RustRayError,
)
from rustray.head.driver import HeadDriver
from rustray.head.peer import FRAME_BYTES, FRAME_TASKS, Peer
from rustray.scheduler.commands import (
    CancelLease,
    GrantLease,
    RecallLease,
)
from rustray.scheduler.events import (
    ValuesSurrendered,
    WorkerDisconnected,
    WorkerReported,
)
from rustray.scheduler.stream_commands import CreditStream
from rustray.scheduler.value_commands import AdoptObject, FreeObject, SurrenderObject
from rustray.task.frames import (
    Adoption,
    AssignFrame,
    ClassDefinition,
    LeaseCancel,
    LeaseGrant,
    LeaseRange,
    WorkerFrame,
)
from rustray.task.output import OutputQuestion
from rustray.task.spec import TaskClass
from rustray.task.streams import StreamCredit

logger = logging.getLogger("rustray.head")

MAX_STALLED_BEATS: Final = 5
"""Heartbeats without any progress of frames that are under way, before a session ends."""


_LEAST_S: Final = 0.001
"""Time left of a limit that is passing just now."""


class WorkerPeer(Peer):
    """The head's end of a worker's stream, for one session.

    Attributes:
        when_closed: Called with the worker's id after its stream has ended.
    """

    def __init__(self, driver: HeadDriver, worker_id: str, session: int) -> None:
        super().__init__(driver.loop, driver.scheduler.state.counters)
        self.worker_id = worker_id
        self.session = session
        self.when_closed: Callable[[str], None] | None = None
        self._driver = driver
        self._grants: deque[GrantLease] = deque()
        self._cancels: list[LeaseCancel] = []
        self._recalls: list[LeaseRange] = []
        self._questions: deque[OutputQuestion] = deque()
        self._credits: dict[tuple[int, int], StreamCredit] = {}
        self._free: list[str] = []
        self._surrender: list[str] = []
        self._adopt: list[AdoptObject] = []
        self._is_draining = False
        self._has_sent_drain = False
        self._stalled_beats = 0
        self._last_numbers = (0, 0)
        self._unsafe: deque[tuple[int, int, int]] = deque()
        self._in_hand = 0
        self._numbers: dict[TaskClass, int] = {}
        self._code_sent: set[bytes] = set()

    # -- what the driver wants sent -----------------------------------------

    def grant(self, command: GrantLease) -> None:
        """Send a lease."""
        self._grants.append(command)
        self._driver.grants.rouse(self)

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

    def ask(self, question: OutputQuestion) -> None:
        """Ask what tasks have printed."""
        self._questions.append(question)
        self.wake()

    def credit(self, command: CreditStream) -> None:
        """Say how far a stream has come; of what waits only the latest counts."""
        self._credits[command.credit.lease, command.credit.offset] = command.credit
        self.wake()

    def tell_of_value(self, command: FreeObject | SurrenderObject | AdoptObject) -> None:
        """Have it let go of a value that it keeps, send it here, or take one over."""
        match command:
            case FreeObject():
                self._free.append(command.object_id)
            case SurrenderObject():
                self._surrender.append(command.object_id)
            case AdoptObject():
                self._adopt.append(command)
        self.wake()

    def drain(self) -> None:
        """Tell the worker to leave in order."""
        self._is_draining = True
        self.wake()

    def close(self, session: int, reason: str) -> None:
        """End this session."""
        if session == self.session:
            self.shut(reason, "by_scheduler")

    # -- FramePump ------------------------------------------------------------

    def next_frame(self) -> AssignFrame | None:
        """Return all that waits for this worker, bounded in tasks and bytes."""
        waits = self._grants or self._cancels or self._recalls or self._credits
        has_values = self._free or self._surrender or self._adopt
        waits_too = self._questions or self._is_ack_ripe or has_values
        if not (waits or waits_too) and (self._has_sent_drain or not self._is_draining):
            return None
        frame = AssignFrame(drain=self._is_draining)
        self._has_sent_drain = self._is_draining
        tasks = size = 0
        while self._grants and tasks < FRAME_TASKS and size < FRAME_BYTES:
            grant = self._grants[0]
            number, fresh = self._numbers.get(grant.task_class, 0), 0
            if not number:
                number, fresh = self._introduce(grant.task_class, frame)
                if not number or fresh > FRAME_BYTES:
                    break  # big packages travel alone, the lease follows
            self._grants.popleft()
            tasks += len(grant.payloads)
            size += len(grant.payloads.blob) + fresh
            frame.leases.append(
                LeaseGrant(
                    grant.lease,
                    number,
                    grant.attempt,
                    grant.prefix,
                    grant.first,
                    grant.payloads,
                    self._time_left_s(grant.due_s),
                    grant.streams,
                    grant.follows,
                )
            )
        if not self._grants:
            frame.cancels, self._cancels = self._cancels, []
            frame.recall, self._recalls = self._recalls, []
            frame.credits = list(self._credits.values())
            self._credits.clear()
        if has_values:
            self._put_values(frame)
        if self._questions:
            asked = range(min(len(self._questions), FRAME_TASKS))
            frame.output = [self._questions.popleft() for _ in asked]
        frame.number, frame.ack = self.stamp()
        return frame

    def _put_values(self, frame: AssignFrame) -> None:
        """Put into a frame what is to become of values."""
        frame.free, self._free = self._free[:FRAME_TASKS], self._free[FRAME_TASKS:]
        frame.surrender, self._surrender = self._surrender, []
        adopt, self._adopt = self._adopt[:FRAME_TASKS], self._adopt[FRAME_TASKS:]
        token_of = self._driver.object_token
        frame.adopt = [
            Adoption(one.name, one.place.pack(), token_of(one.place, f"worker:{self.worker_id}"))
            for one in adopt
        ]

    def _time_left_s(self, due_s: float | None) -> float:
        return 0.0 if due_s is None else max(due_s - self._driver.loop.time(), _LEAST_S)

    def _introduce(self, task_class: TaskClass, frame: AssignFrame) -> tuple[int, int]:
        """Define a class that the worker does not know.

        Returns:
            Its number (0: code and packages are too many bytes for a frame with content), and how
            many bytes go along.
        """
        known = self._driver.scheduler.state.code
        fresh = [digest for digest in task_class.blobs if digest not in self._code_sent]
        number = len(self._numbers) + 1
        code_hash = task_class.code_hash
        definition = ClassDefinition(
            number,
            task_class,
            known.get(code_hash, b"") if code_hash in fresh else b"",
            tuple(known.get(digest, b"") for digest in fresh if digest != code_hash),
        )
        if definition.size > FRAME_BYTES and (frame.leases or frame.classes):
            return 0, 0
        self._numbers[task_class] = number
        self._code_sent.update(fresh)
        frame.classes.append(definition)
        return number, definition.size

    def on_frame(self, frame: WorkerFrame) -> None:
        """Take a report of the worker."""
        if frame.output or frame.printing:
            unasked = self._driver.output.received(self.worker_id, frame)
            if unasked:
                self._counters["stale_output"] += unasked
            if not frame.number:
                return
        if frame.surrendered:
            self._take_surrendered(frame)
            return
        if not self.is_fresh(frame.number):
            return
        if not self._driver.scheduler.knows_session(self.worker_id, self.session):
            # The scheduler would drop the report, and the worker forgets what is acked.
            self.received = frame.number - 1
            self.shut("the worker has registered again", "old_session")
            return
        # What the report leads to may send a frame at once: it must not ack the report.
        self._in_hand = frame.number
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
                tuple(frame.news),
                tuple(frame.blocked),
                tuple(frame.resumed),
                tuple(frame.items),
            )
        )
        journal = self._driver.journal
        if not self._driver.is_safe:
            self._unsafe.append((frame.number, journal.appended, journal.to_sync))
        self._in_hand = 0
        self.need_ack()

    def _take_surrendered(self, frame: WorkerFrame) -> None:
        """Take values that the worker was asked for; they come in frames without a number."""
        values = tuple(frame.surrendered)
        self._driver.handle(ValuesSurrendered(self.worker_id, self.session, values))

    def _safe_received(self) -> int:
        """Return the last frame that may be acked: a worker forgets what is acked."""
        journal, unsafe = self._driver.journal, self._unsafe
        while unsafe and unsafe[0][1] <= journal.committed and unsafe[0][2] <= journal.synced:
            unsafe.popleft()
        if self._unsafe:
            return self._unsafe[0][0] - 1
        return self._in_hand - 1 if self._in_hand else self.received

    def on_closed(self, error: RustRayError | None) -> None:
        """The stream is over; the worker's leases run on."""
        self.mark_closed()
        if self._driver.workers.get(self.worker_id) is self:
            del self._driver.workers[self.worker_id]
            self._driver.output.closed(self.worker_id)
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
        # Each way by itself: what goes on one way must not hide that the other stands still.
        came, went = self._last_numbers
        stands_still = (sent > self.received == came) or (received < self.sent and received == went)
        self._last_numbers = (self.received, received)
        if not stands_still:
            self._stalled_beats = 0
        if is_behind:
            self._stalled_beats += 1
            if self._stalled_beats > MAX_STALLED_BEATS:
                self.shut(
                    f"frames are missing (of {sent} sent, {self.received} arrived)", "frame_lost"
                )
        return not (is_behind or self._grants or self._driver.grants.held)
