"""Packages of runtime environments that come to the worker's disk. Pure; see `package_room` too."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

from rustray.worker.events import KeepPackage
from rustray.worker.records import WorkClass
from rustray.worker.state import WorkerState


def needed_packages(work: WorkClass) -> tuple[bytes, ...]:
    """Return the hashes of the packages that tasks of a class need."""
    env = work.task_class.runtime_env
    return () if env is None else env.packages


def keep_packages(state: WorkerState, contents: Iterable[bytes]) -> None:
    """Put on disk what is not there."""
    for content in contents:
        digest = sha256(content).digest()
        if digest not in state.packages:
            state.packages[digest] = len(content)
            state.commands.append(KeepPackage(digest, content))
