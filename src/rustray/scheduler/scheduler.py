"""The pure core of the head: `handle(event, now)` decides, the shell acts."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import assert_never

from rustray.scheduler import (
    admission,
    cancellation,
    deadlines,
    dooming,
    following,
    hand_over,
    letters,
    membership,
    placement,
    recovery,
    remaking,
    results,
    retrying,
    streams,
)
from rustray.scheduler.commands import Command
from rustray.scheduler.events import (
    CancelRequested,
    ClientLeft,
    CodeReceived,
    DrainRequested,
    Event,
    FollowRequested,
    HeartbeatReceived,
    ItemsRead,
    OutcomesDelivered,
    PurgeRequested,
    ResultsReleased,
    ResultsStored,
    RetryRequested,
    StateRecovered,
    StorageChanged,
    TasksSubmitted,
    TimePassed,
    ValuesSurrendered,
    ValueWanted,
    WorkerDied,
    WorkerDisconnected,
    WorkerJoined,
    WorkerReported,
)
from rustray.scheduler.explain import explain
from rustray.scheduler.records import Batch, Lease, WorkerRecord
from rustray.scheduler.state import SchedulerSettings, SchedulerState
from rustray.scheduler.tombstones import has_expired
from rustray.scheduler.view import TaskSnapshot, snapshot
from rustray.task.views import Explanation


class Scheduler:
    """Accepts, queues, places, retries and completes tasks.

    Total: whatever a peer sent, an event yields commands and counters, never an exception
    (except `WorkerNotFound` for an operator's mistake). `InvariantError` would be our bug.

    Attributes:
        state: Its data, for read-only views and for `invariants.check`.
    """

    def __init__(self, settings: SchedulerSettings | None = None) -> None:
        self.state = SchedulerState(settings or SchedulerSettings())

    def handle(self, event: Event, now: float) -> list[Command]:
        """Take one event and return what to do, in order.

        Args:
            event: What happened.
            now: Monotonic seconds, never smaller than in an earlier call.

        Raises:
            WorkerNotFound: a `DrainRequested` for a worker that does not exist.
        """
        state = self.state
        state.now = now
        state.commands = []
        self._apply(event)
        if len(state.timers) > state.compact_timers_at:
            deadlines.drop_idle_timers(state)
        if state.leaving:
            hand_over.run(state)
        if state.to_remake:
            remaking.run(state)
        while state.doomed or state.orphans:
            following.take_back(state)
            dooming.end_doomed(state)
        if not state.storage.is_stalled:
            # What is given out comes back as outcomes that wait for the disk too.
            placement.dispatch(state)
            if state.fresh:
                following.run(state)
        commands = state.commands
        state.commands = []
        return commands

    def _apply(self, event: Event) -> None:
        state = self.state
        match event:
            case WorkerReported():
                membership.on_reported(state, event)
            case TasksSubmitted():
                admission.on_submitted(state, event)
            case OutcomesDelivered() | ResultsReleased():
                results.on_done_with(state, event)
            case HeartbeatReceived():
                membership.on_heartbeat(state, event)
            case TimePassed():
                self._run_timers()
            case CodeReceived():
                admission.on_code(state, event)
            case CancelRequested():
                cancellation.on_cancel(state, event.request)
            case FollowRequested():
                admission.on_follow(state, event)
            case ItemsRead() | ClientLeft():
                streams.on_consumer(state, event)
            case _:
                self._apply_rarer(event)

    def _apply_rarer(
        self,
        event: WorkerJoined
        | WorkerDisconnected
        | WorkerDied
        | DrainRequested
        | ResultsStored
        | StorageChanged
        | StateRecovered
        | RetryRequested
        | PurgeRequested
        | ValueWanted
        | ValuesSurrendered,
    ) -> None:
        match event:
            case WorkerJoined():
                membership.on_joined(self.state, event)
            case WorkerDisconnected():
                membership.on_disconnected(self.state, event)
            case WorkerDied():
                membership.on_died(self.state, event)
            case DrainRequested():
                membership.on_drain(self.state, event)
            case StorageChanged():
                self.state.storage = event
            case ResultsStored():
                results.on_stored(self.state, event)
            case RetryRequested() | PurgeRequested():
                letters.on_request(self.state, event)
            case ValueWanted() | ValuesSurrendered():
                remaking.on_values(self.state, event)
            case StateRecovered():
                recovery.on_recovered(self.state, event)
            case _:
                assert_never(event)

    def _run_timers(self) -> None:
        state = self.state
        timers = state.timers
        while timers and timers[0][0] <= state.now:
            _, _, kind, subject = heapq.heappop(timers)
            match kind, subject:
                case "expiry", WorkerRecord():
                    membership.on_expiry(state, subject)
                case "recall", WorkerRecord():
                    placement.think_of_again(state, subject)
                case "queue", Batch():
                    deadlines.on_queue_limit(state, subject)
                case "total", Batch():
                    deadlines.on_total_limit(state, subject)
                case "deadline", Batch():
                    deadlines.on_deadline(state, subject)
                case "run", (Lease() as lease, int(low), int(high)):
                    deadlines.on_run_limit(state, lease, low, high)
                case "consumer", Batch():
                    streams.on_consumer_due(state, subject)
                case "retry", (Batch() as batch, int(offset)):
                    retrying.on_retry_due(state, batch, offset)
        results.expire(state)

    def next_deadline(self) -> float | None:
        """Return the monotonic time at which to send `TimePassed`, or None."""
        return deadlines.next_deadline(self.state)

    def forget(self) -> None:
        """Let go of all tasks and workers, at the end: views may keep the state for longer."""
        vars(self.state).update(vars(SchedulerState(self.state.settings)))

    def knows_session(self, worker_id: str, session: int) -> bool:
        """Return whether a worker's session is the present one."""
        worker = self.state.workers.get(worker_id)
        return worker is not None and worker.session == session

    def task(self, prefix: bytes, sequence: int) -> TaskSnapshot | None:
        """Return one task as it stands, or None if it is not known."""
        found = self.state.find(prefix, sequence)
        return snapshot(self.state, *found) if found else None

    def has_expired(self, prefix: bytes, sequence: int) -> bool:
        """Whether a task that is not known is one that was; see `tombstones.has_expired`."""
        return has_expired(self.state, prefix, sequence)

    def explain(self, prefix: bytes, sequence: int, now: float) -> Explanation | None:
        """Say why a task is where it is, or None if it is not known."""
        found = self.state.find(prefix, sequence)
        if found is None:
            return None
        return replace(explain(self.state, *found, now), durability=found[0].durability)
