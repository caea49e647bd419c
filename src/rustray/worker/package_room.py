"""Packages of runtime environments that leave the worker's disk. Pure.

What the head sends once in a session it does not send again, so what the session's classes name
stays as long as it. Where that is too much, the session ends: the next names only what is needed.
"""

from __future__ import annotations

from rustray.task.runtime_env import RuntimeEnv
from rustray.worker.events import DropPackage
from rustray.worker.kept_packages import needed_packages
from rustray.worker.leases import SIGKILL, kill
from rustray.worker.state import WorkerState


def make_room(state: WorkerState) -> bool:
    """Remove what nothing needs, oldest first, until the rest is within the limit.

    Returns:
        Whether the session is to end, for what only it holds on to is too much.
    """
    limit, total = state.limits.package_bytes, sum(state.packages.values())
    if total <= limit:
        return False
    held = {d for lease in state.leases.values() for d in needed_packages(lease.work)}
    held |= {d for e in state.executors.values() if e.count for d in _of(e.setting.runtime_env)}
    named = {d for work in state.session_classes.values() for d in needed_packages(work)}
    for digest in [d for d in state.packages if d not in held | named]:
        if total <= limit:
            break
        total -= state.packages.pop(digest)
        _end_processes(state, digest)
        state.commands.append(DropPackage(digest))
    return total > limit and bool(named - held)


def _end_processes(state: WorkerState, digest: bytes) -> None:
    """End the executors that have nothing to do and stand in what is about to be removed."""
    for executor in list(state.executors.values()):
        if digest in _of(executor.setting.runtime_env) and not executor.count:
            kill(state, executor, SIGKILL)


def _of(env: RuntimeEnv | None) -> tuple[bytes, ...]:
    return () if env is None else env.packages
