"""Tasks that must never overlap with another attempt of themselves.

The head gives a worker's tasks to others when it has not heard of it for a lease's TTL. So that an
exclusive task has ended by then, the worker stops it some seconds before, unless the head has
answered meanwhile. Both count on their monotonic clocks, the worker from the moment when it
*asked*, the head from when that arrived, which is later: so the worker is always first. Pure, as
the manager; in case the agent itself stands still, the zygote carries out the same deadline.
"""

from __future__ import annotations

from typing import Final

from rustray.worker.events import GuardExecutor
from rustray.worker.leases import SIGKILL, kill
from rustray.worker.records import NEVER, Executor, Lease
from rustray.worker.state import WorkerState

MARGIN_S: Final = 3.0
"""How long before the end of the lease they are stopped (half of a lease that is shorter)."""
BACKSTOP_S: Final = 0.5
"""How much later the zygote does it, if the agent has not."""


def note_contact(state: WorkerState, asked_at: float, lease_ttl_s: float) -> None:
    """The head has answered what was asked at that time: the leases run anew from then on."""
    until = asked_at + lease_ttl_s - min(MARGIN_S, lease_ttl_s / 2)
    if until <= state.exclusive_until:
        return
    state.lease_ttl_s = lease_ttl_s
    state.exclusive_until = until
    for executor in state.executors.values():
        if executor.is_guarded:
            state.commands.append(GuardExecutor(executor.executor_id, until + BACKSTOP_S))


def guard(state: WorkerState, executor: Executor, lease: Lease) -> None:
    """An executor is about to be given a task of this lease."""
    if lease.number in state.exclusive:
        executor.is_guarded = True
        until = state.exclusive_until + BACKSTOP_S
        state.commands.append(GuardExecutor(executor.executor_id, until))


def stop_if_due(state: WorkerState, now: float) -> None:
    """Kill what runs and give back what waits, if the head has been silent for too long."""
    if now < state.exclusive_until or not state.exclusive:
        return
    # What is not given back is in executors, which are killed.
    leases, state.exclusive = list(state.exclusive.values()), {}
    for lease in leases:
        for low, high in state.backlog.remove(lease, 0, len(lease.payloads)):
            state.counters["exclusive_given_back"] += high - low
            state.give_back(lease, low, high)
    for executor in state.executors.values():
        if executor.is_guarded:
            state.counters["exclusive_stopped"] += 1
            executor.is_cut_off = True
            kill(state, executor, SIGKILL)


def next_deadline(state: WorkerState) -> float:
    """Return when `stop_if_due` has something to do."""
    return state.exclusive_until if state.exclusive else NEVER
