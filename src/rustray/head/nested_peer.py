"""The head's end of the sessions of tasks that hand in tasks themselves.

Such a session acts for the principal of its task, and only as long as the worker that speaks for it
holds that very attempt: its lease is the proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rustray.common.errors import (
    AuthorizationError,
    HeadUnavailable,
    NestedTooDeep,
    RustRayError,
    TaskCancelled,
)
from rustray.common.ids import SessionPrefix, child_prefix, task_id
from rustray.head.client_peer import ClientPeer, with_retries
from rustray.scheduler.events import TasksSubmitted
from rustray.task.frames import ClassDefinition, ClientFrame, Submission
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState

if TYPE_CHECKING:
    from rustray.head.driver import HeadDriver
    from rustray.scheduler.records import Batch, Lease


@dataclass(frozen=True, slots=True)
class Parent:
    """An attempt of a task that a worker holds.

    Attributes:
        lease: Under which it does.
        offset: The task's position in that.
    """

    lease: Lease
    offset: int

    @classmethod
    def find(
        cls, driver: HeadDriver, worker_id: str, session: int, number: int, offset: int
    ) -> Parent:
        """Find what a worker says that it holds.

        Raises:
            HeadUnavailable: that is not known yet: the worker is just coming back.
            AuthorizationError: the worker does not hold it (any more).
        """
        worker = driver.scheduler.state.workers.get(worker_id)
        if worker is None or worker.session != session or worker.state == "joining":
            raise HeadUnavailable("the worker has not told this head yet what it holds")
        lease = worker.leases.get(number)
        if lease is None or not 0 <= offset < lease.count:
            raise _not_held()
        parent = cls(lease, offset)
        parent.check(driver)
        return parent

    @property
    def batch(self) -> Batch:
        """Its batch."""
        return self.lease.batch

    @property
    def task_class(self) -> TaskClass:
        """What it is."""
        return self.batch.queue.task_class

    @property
    def sequence(self) -> int:
        """The last part of its id."""
        return self.batch.first + self.lease.low + self.offset

    @property
    def children(self) -> SessionPrefix:
        """The first part of the ids of what it hands in."""
        return child_prefix(self.batch.prefix, self.sequence)

    def check(self, driver: HeadDriver) -> TaskState:
        """Return the task's state.

        Raises:
            AuthorizationError: the worker does not hold it any more.
        """
        place = self.lease.low + self.offset
        state = TaskState(self.batch.state[place])
        is_held = driver.scheduler.state.leases.get(self.lease.number) is self.lease
        if not is_held or self.batch.lease[place] != self.lease.number or state.is_terminal:
            raise _not_held()
        return state


def _not_held() -> AuthorizationError:
    return AuthorizationError(
        "the worker does not hold this attempt of the task (any more), so it may not act for it: "
        "the task has ended, or another attempt of it has begun"
    )


class NestedPeer(ClientPeer):
    """The head's end of one such session."""

    def __init__(
        self,
        driver: HeadDriver,
        parent: Parent,
        may_send_code: bool,
        may_touch: Callable[[bytes], bool],
    ) -> None:
        principal = parent.batch.principal
        super().__init__(driver, parent.children, may_send_code, may_touch, principal)
        self._parent = parent
        self._is_cancelled = False

    def on_frame(self, frame: ClientFrame) -> None:
        """See `ClientPeer`; of an attempt that is given up nothing is taken.

        Raises:
            AuthorizationError: the worker does not hold the task any more.
        """
        if frame.has_content:
            self._is_cancelled = self._parent.check(self._driver) is TaskState.CANCELLING
        super().on_frame(frame)
        if frame.released:  # the report of the task may wait for that
            self._is_ack_ripe = True
            self.wake()

    def _submit(self, submission: Submission) -> None:
        if self._is_cancelled:
            error = TaskCancelled("the task that hands this one in is being cancelled")
            self._refuse(submission.first, len(submission.payloads), error)
            return
        super()._submit(submission)

    def _event_of(self, submission: Submission, task_class: TaskClass) -> TasksSubmitted:
        parent = self._parent
        event = super()._event_of(submission, task_class)
        event = replace(event, near=parent.lease.worker.worker_id)
        # Of the first attempt there is nothing that an earlier one could have left.
        horizon = parent.lease.horizon if parent.lease.attempt > 1 else 0
        place = parent.lease.low + parent.offset
        due_s = parent.batch.due_of(place, place + 1)
        if submission.deadline_unix_s or due_s is None:
            return replace(event, horizon=horizon)
        left_s = due_s - self._driver.now()
        due_unix_s = self._driver.wall_clock() + left_s
        return replace(event, horizon=horizon, deadline_unix_s=due_unix_s, time_left_s=left_s)

    def _completed(self, definition: ClassDefinition) -> ClassDefinition:
        task_class, parent = definition.task_class, self._parent.task_class
        priority = parent.priority if task_class.inherits_priority else task_class.priority
        own = replace(
            with_retries(task_class, self._driver.scheduler.state.settings.max_retries),
            priority=priority,
            depth=parent.depth + 1,
            inherits_priority=False,
            runtime_env=task_class.runtime_env or parent.runtime_env,
        )
        return replace(definition, task_class=own)

    def _class_error(self, definition: ClassDefinition) -> RustRayError | None:
        depth, parent = definition.task_class.depth, self._parent
        limit = self._driver.scheduler.state.settings.max_task_depth
        if depth > limit:
            return NestedTooDeep(
                f"task {task_id(parent.batch.prefix, parent.sequence)} of "
                f"{parent.task_class.function} stands {depth - 1} tasks deep, and may hand in "
                f"none: scheduler.max_task_depth is {limit}. Is this a recursion without end? If "
                "not, raise the limit on the head"
            )
        return super()._class_error(definition)
