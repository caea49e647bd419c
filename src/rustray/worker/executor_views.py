"""A worker's executors, for people."""

from __future__ import annotations

from dataclasses import dataclass

from rustray.worker.state import WorkerState


@dataclass(frozen=True, slots=True)
class ExecutorView:
    """One executor, for people.

    Attributes:
        state: "starting", "idle", "busy" or "ending".
        tasks: Tasks given to it and not reported.
    """

    executor_id: int
    kind: str
    pid: int
    state: str
    tasks: int


def views_of(state: WorkerState) -> list[ExecutorView]:
    """List the executors, oldest first."""
    names = ("starting", "idle", "ending", "ending")
    return [
        ExecutorView(
            e.executor_id,
            e.kind.name.lower(),
            e.pid,
            "busy" if e.count and names[e.phase] == "idle" else names[e.phase],
            e.count,
        )
        for e in state.executors.values()
    ]
