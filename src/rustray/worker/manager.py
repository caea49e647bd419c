"""WorkerManager: the worker's pure core.

It decides and never does: no I/O, no clock, no randomness, no await. The shell
(`rustray.worker.agent`) tells it what happened and when, carries out the commands in order,
and asks for the next frame whenever the stream can take one. What the head sends may be
late, repeated or false: it is counted and dropped, or ends the session; nothing raises.
"""

from __future__ import annotations

from typing import assert_never

from rustray.common.ids import TaskId
from rustray.task.frames import LeaseCancel, WorkerFrame
from rustray.worker import blocking, checks, exclusive, following, leaving, watch
from rustray.worker.dispatch import dispatch
from rustray.worker.events import (
    DIRECT_LEASES,
    CloseSession,
    Command,
    DirectCancelled,
    DirectSubmitted,
    DrainRequested,
    Event,
    ExecutorExited,
    ExecutorReady,
    ExecutorReported,
    ExecutorReturned,
    ExecutorTold,
    ExecutorYielded,
    FrameReceived,
    HeartbeatAnswered,
    KeepingChanged,
    MemoryExceeded,
    PoolStarted,
    SessionClosed,
    SessionOpened,
    SheafRead,
    SheafWritten,
    StoreChanged,
    TaskBlocked,
    TaskWoke,
    TimePassed,
)
from rustray.worker.executor_views import ExecutorView, views_of
from rustray.worker.holdings import held_ranges, staying
from rustray.worker.leases import ProtocolError, cancel, grant_direct, take_frame
from rustray.worker.memory import exceeded
from rustray.worker.package_room import make_room
from rustray.worker.records import NEVER
from rustray.worker.reports import exited, heal, ready, reported, returned, told
from rustray.worker.state import WorkerLimits, new_state
from rustray.worker.streams import yielded


class WorkerManager:
    """Holds leases, orders them, runs them within the worker's resources, spools results.

    Attributes:
        counters: Name to total of what was odd: duplicate_grants, duplicate_frames,
            stale_requests, stale_outcomes, stale_measurements, tasks_out_of_memory,
            closed_sessions.
        may_wait: See `following.may_wait`.
    """

    def __init__(self, limits: WorkerLimits) -> None:
        self._state = new_state(limits)
        self.counters = self._state.counters
        self._now = 0.0
        self.may_wait = False

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event and say what to do about it.

        Args:
            event: What happened.
            now: Monotonic seconds, never smaller than before.

        Complexity: O(parts of the event + lanes + executors), never O(tasks).
        """
        state = self._state
        self._now, state.urgent = now, 0
        if state.exclusive:
            exclusive.stop_if_due(state, now)  # also if the news come late that all is well
        self._take(event, now)
        if state.exclusive:
            exclusive.stop_if_due(state, now)
        watch.look(state, now)
        if state.loose:
            following.go_on(state)
        if state.must_heal:
            heal(state, now)
        if state.backlog.lanes or state.waking:
            dispatch(state, now)
        if 0 < len(state.idle) < len(state.executors):
            watch.rescue(state, now)
        if state.is_draining:
            leaving.look(state, now)
            following.go_on(state)
        outbox = state.outbox
        if outbox.waiting.must_plan:
            state.commands += outbox.waiting.plan(outbox.session is not None, now)
        commands, state.commands = state.commands, []
        self.may_wait = type(event) is ExecutorReported and following.may_wait(state)
        return commands

    def _take(self, event: Event, now: float) -> None:
        state = self._state
        match event:
            case ExecutorReported():
                reported(state, event, now)
            case FrameReceived():
                self._take_frame(event, now)
            case ExecutorReturned():
                returned(state, event, now)
            case ExecutorTold():
                told(state, event)
            case ExecutorYielded():
                yielded(state, event)
            case ExecutorReady():
                ready(state, event, now)
            case TaskBlocked() | TaskWoke():
                blocking.take(state, event)
            case ExecutorExited():
                exited(state, event, now)
            case TimePassed():
                pass
            case _:
                self._take_rare(event, now)

    def _take_rare(
        self,
        event: PoolStarted
        | SessionOpened
        | HeartbeatAnswered
        | SessionClosed
        | DirectSubmitted
        | DirectCancelled
        | MemoryExceeded
        | SheafWritten
        | SheafRead
        | StoreChanged
        | KeepingChanged
        | DrainRequested,
        now: float,
    ) -> None:
        state = self._state
        match event:
            case SessionOpened():
                self._open_session(event)
            case HeartbeatAnswered():
                if event.session == state.outbox.session:
                    exclusive.note_contact(state, event.asked_at, state.lease_ttl_s)
            case SessionClosed():
                self._lose_session(event)
            case DirectSubmitted():
                grant_direct(state, event)
            case DirectCancelled():
                cancel(state, LeaseCancel(event.lease, 0, 1), now)
            case (
                MemoryExceeded() | SheafWritten() | SheafRead() | StoreChanged() | KeepingChanged()
            ):
                self._take_from_beside(event, now)
            case DrainRequested():
                leaving.start(state, event.timeout_s, now)
            case PoolStarted():
                state.is_pool_started = state.must_heal = True
            case _:
                assert_never(event)

    def _take_from_beside(
        self,
        event: MemoryExceeded | SheafWritten | SheafRead | StoreChanged | KeepingChanged,
        now: float,
    ) -> None:
        state, waiting = self._state, self._state.outbox.waiting
        match event:
            case MemoryExceeded():
                exceeded(state, event)
            case SheafWritten():
                state.commands += waiting.sheaf_written(event.number, event.is_stored, now)
            case SheafRead():
                lost = waiting.sheaf_read(event.number, event.outcomes)
                state.counters["outcomes_damaged"] += lost
            case StoreChanged():
                state.is_store_paused = event.is_paused
            case KeepingChanged():
                state.keeps_values = event.is_keeping
            case _:
                assert_never(event)

    def _open_session(self, event: SessionOpened) -> None:
        state = self._state
        state.session_classes.clear()
        state.received = 0
        state.drained_number = 0
        state.is_leaving_told = False
        state.goodbye_at = NEVER
        state.outbox.open(event.session)
        following.part(state)  # what a new head takes up, it takes for running
        exclusive.note_contact(state, event.asked_at, event.lease_ttl_s)
        watch.tell_starts_again(state)

    def _take_frame(self, event: FrameReceived, now: float) -> None:
        state, frame = self._state, event.frame
        if event.session != state.outbox.session:
            state.counters["stale_frames"] += 1
            return
        if frame.number <= state.received:
            state.counters["duplicate_frames"] += 1
            return
        if frame.number != state.received + 1:
            self._close_session(f"frame {frame.number} came after frame {state.received}")
            return
        if not state.outbox.acked(frame.ack):
            self._close_session(f"frame {frame.ack} is acked, and was never sent")
            return
        state.received = frame.number
        try:
            take_frame(state, frame, now)
            if frame.classes and make_room(state):
                self._close_session("the packages of its runtime_envs take too much room")
        except ProtocolError as error:
            self._close_session(str(error))
        if frame.drain:
            leaving.start(state, None, now)

    def _close_session(self, reason: str) -> None:
        state = self._state
        session = state.outbox.session
        if session is not None:
            state.counters["closed_sessions"] += 1
            state.outbox.close()
            state.commands.append(CloseSession(session, reason))

    def _lose_session(self, event: SessionClosed) -> None:
        state = self._state
        if event.session != state.outbox.session:
            return
        if event.is_orderly and state.drained_number:
            # The head hung up after the goodbye: it has heard all that came before it.
            state.outbox.acked(state.drained_number)
        state.outbox.close()
        state.goodbye_at = NEVER

    def take_frame(self, now: float) -> WorkerFrame | None:
        """Return all that waits for the head as one bounded frame, or None if nothing does.

        Args:
            now: As for `handle`.
        """
        state, outbox = self._state, self._state.outbox
        if not self.has_frame:
            return None
        held = held_ranges(self._state) if outbox.must_greet else None
        frame = outbox.take(state.received, held)
        frame.draining = state.is_leaving_told = state.is_draining
        if leaving.has_nothing_left(state) and outbox.is_empty:
            frame.drained = True
            state.drained_number = frame.number
            outbox.note_sent(frame)
            state.goodbye_at = now + leaving.GOODBYE_S
        return frame

    @property
    def has_frame(self) -> bool:
        """Whether `take_frame` would return a frame."""
        state = self._state
        if state.outbox.session is None:
            return False
        return state.outbox.is_ready or (state.is_draining and leaving.has_news(state))

    def heartbeat(self) -> tuple[int, int, tuple[tuple[int, int], ...], int]:
        """Return what a heartbeat says: (sent, received, held, running).

        ``held`` counts per lease what is unfinished or in no frame yet, so that it can be
        compared with what the head knows once it has taken frame ``sent``.
        """
        state = self._state
        held = {n: lease.open for n, lease in state.leases.items() if n < DIRECT_LEASES}
        for item in state.outbox.waiting_ranges():
            held[item.lease] = held.get(item.lease, 0) + item.count
        return state.outbox.sent, state.received, tuple(sorted(held.items())), self.running

    @property
    def running(self) -> int:
        """Tasks running now."""
        executors = self._state.executors.values()
        return sum(e.count if e.is_shared else min(e.count, 1) for e in executors)

    @property
    def queued(self) -> int:
        """Tasks held that do not run yet."""
        return sum(lease.open for lease in self._state.leases.values()) - self.running

    @property
    def finished(self) -> int:
        """Tasks that have ended here."""
        return self._state.finished

    @property
    def is_full(self) -> bool:
        """Whether no task starts, because there is no room for results."""
        return self._state.outbox.is_full or self._state.is_store_paused

    @property
    def is_settled(self) -> bool:
        """Whether the head has all outcomes and said so."""
        return self._state.outbox.is_settled

    def may_stay(self, lease: int, offset: int) -> tuple[TaskId, int] | None:
        """Return (task id, lease) of a task whose large result may stay here, or None."""
        return staying(self._state, lease, offset)

    @property
    def is_draining(self) -> bool:
        """Whether the worker is on its way out."""
        return self._state.is_draining

    @property
    def slots(self) -> int:
        """Process executors that are kept."""
        return self._state.slots

    @property
    def used(self) -> dict[str, int]:
        """Units of each resource that tasks hold."""
        state = self._state
        return {n: units - state.free[n] for n, units in state.limits.resources.units.items()}

    def executors(self) -> list[ExecutorView]:
        """List the executors, oldest first."""
        return views_of(self._state)

    def next_deadline(self) -> float | None:
        """Return when `TimePassed` is due, or None if only events can change anything."""
        state = self._state
        due = state.watch_at
        if state.is_draining:
            due = min(due, leaving.next_deadline(state))
        if state.outbox.waiting.spool.refused:
            due = min(due, state.outbox.waiting.spool.retry_at)
        if state.exclusive:
            due = min(due, exclusive.next_deadline(state))
        if state.heal_at > self._now:
            due = min(due, state.heal_at)
        return None if due == NEVER else due

    def check(self) -> None:
        """Verify every rule that spans structures; for tests.

        Raises:
            InvariantError: the first rule that is broken.
        """
        checks.check(self._state)
