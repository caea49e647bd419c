"""Tasks that follow others: they wait here for what these make, and begin without the head.

See `rustray.scheduler.following`.
"""

from __future__ import annotations

from rustray.task.columns import PayloadColumn
from rustray.task.frames import LeaseOutcome
from rustray.task.inputs import WHOLE, InputValue, join_call
from rustray.task.state import TaskState
from rustray.worker.leases import reclaim, route_unstarted
from rustray.worker.records import Lease
from rustray.worker.state import WorkerState


def may_wait(state: WorkerState) -> bool:
    """Whether the head need not hear at once of what an executor has reported.

    So it is with links of a chain before the last: the next one has begun here, and is as quick.
    """
    return not (state.urgent or state.outbox.returned or state.is_draining)


def part(state: WorkerState) -> None:
    """Give back all that waits for others; what executors have of it, once they give it back."""
    for lease in [one for leases in state.followers.values() for one in leases]:
        if lease.is_along:
            lease.recalled.append((0, 1))
        elif state.detach(lease):
            state.give_back(lease, 0, 1)
    for executor in state.executors.values():
        if any(segment.lease.is_along for segment in executor.segments):
            reclaim(state, executor)


def go_on(state: WorkerState) -> None:
    """Begin what followed tasks that have succeeded, and give back what followed others."""
    while state.loose:  # what is given back may have followers of its own
        ended, state.loose = state.loose, []
        for lease, outcome in ended:
            if not lease.open:
                continue  # it has ended too: its executor had it along
            if outcome is not None and outcome.state is TaskState.SUCCEEDED:
                _join(lease, outcome)
                if not lease.is_along:
                    route_unstarted(state, lease, 0, 1)
            elif not lease.is_along:  # else its executor gives it back
                state.give_back(lease, 0, 1)


def _join(lease: Lease, outcome: LeaseOutcome) -> None:
    """Put into a task's call what it takes: the result of the task of its class before it."""
    number, offset = lease.follows
    assert number == outcome.lease
    at = offset - outcome.offset
    codec = int(lease.work.task_class.codec)
    value = InputValue(codec, outcome.payloads.slice(at, at + 1), WHOLE)
    lease.payloads = PayloadColumn.of([join_call(lease.payloads[0], [value])])
    lease.follows = (0, 0)
