"""Who has made what a task takes, and whether that may be lost without the task.

A result that is not committed yet goes with its head and its worker, if both are lost: then it is
made anew, and may be another one. A task that has taken it is safe from that on the same worker
only: then it is lost too, or that worker says once more what it has made.
"""

from __future__ import annotations

from rustray.common.durability import Durability
from rustray.scheduler.records import Lease
from rustray.scheduler.state import SchedulerState
from rustray.task.inputs import producers_of


def has_foreign_inputs(state: SchedulerState, lease: Lease) -> bool:
    """Whether tasks of a lease are to survive this head, and take what other workers have made."""
    batch = lease.batch
    if batch.inputs is None or batch.durability == Durability.MEMORY:
        return False
    own = ("", lease.worker.worker_id)  # what was put was made by no worker
    for offset in range(lease.low, lease.low + lease.count):
        for prefix, sequence in producers_of(batch.inputs[offset]):
            found = state.find(prefix, sequence)
            if found is None:
                continue
            producer, place = found
            stored = producer.outcomes[producer.lease[place]]
            if stored is not None and stored.worker_id not in own:
                return True
    return False
