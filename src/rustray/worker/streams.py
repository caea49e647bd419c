"""Streams in the worker's core: items on their way to the head, and how far consumers are."""

from __future__ import annotations

from rustray.task.streams import StreamCredit
from rustray.worker.events import DIRECT_LEASES, CreditTask, ExecutorYielded
from rustray.worker.records import Lease
from rustray.worker.state import WorkerState


def yielded(state: WorkerState, event: ExecutorYielded) -> None:
    """Pass items on; those of no task here are counted and dropped."""
    executor = state.executors.get(event.executor_id)
    for one in event.items:
        if executor is None or not executor.holds(one.lease, one.offset):
            state.counters["stale_items"] += len(one.payloads)
        elif one.lease < DIRECT_LEASES:
            state.outbox.items.add((one.lease, one.offset), one.first, one.payloads)


def credit(state: WorkerState, how_far: StreamCredit) -> None:
    """Note how far a consumer is, and tell the executor that runs the generator."""
    lease = state.leases.get(how_far.lease)
    if lease is None or not 0 <= how_far.offset < len(lease.payloads):
        state.counters["stale_requests"] += 1
        return
    note_credit(lease, how_far)
    for executor in state.executors.values():
        if executor.count and executor.holds(lease.number, how_far.offset):
            consumed = lease.streams[how_far.offset][1]
            state.commands.append(
                CreditTask(executor.executor_id, lease.number, how_far.offset, consumed)
            )
            return


def note_credit(lease: Lease, how_far: StreamCredit) -> None:
    """Note how far a stream has come; it never goes back."""
    have, consumed = lease.streams.get(how_far.offset, (0, 0))
    lease.streams[how_far.offset] = (max(have, how_far.have), max(consumed, how_far.consumed))
