"""Sees when a draining worker's executors end: it may end one itself, long before it has left."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from chaos.history import Writer
from helpers.cluster import Node

_LOOK_S: Final = 0.25


@dataclass(slots=True)
class _Followed:
    """A worker, and descriptors of its processes; one is readable when its process has ended.

    Attributes:
        fd: Of the worker.
        executors: By process id, of those whose end was not seen yet.
        seen: All process ids that were ever found: one that has ended may be listed for a while.
    """

    label: str
    node: Node
    fd: int
    executors: dict[int, int] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)

    def look(self) -> None:
        """Find executors that are new."""
        for pid in self.node.executor_pids():
            if pid in self.seen:
                continue
            self.seen.add(pid)
            with contextlib.suppress(ProcessLookupError):  # ended meanwhile, nobody knows when
                self.executors[pid] = os.pidfd_open(pid)

    def close(self) -> None:
        """Close the descriptors."""
        for fd in [self.fd, *self.executors.values()]:
            os.close(fd)


class Watch:
    """Writes down (``exec_gone``) when executors of the workers that it follows end.

    By descriptors of the processes, so that no number that is used again can mislead it. A moment
    that is told is never before the end, and rarely more than a quarter second after it.
    """

    def __init__(self, folder: Path) -> None:
        """Start to look.

        Args:
            folder: Of the history.
        """
        self._history = Writer(folder, "watch")
        self._lock = threading.Lock()
        self._new: list[_Followed] = []
        self._is_closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def follow(self, label: str, node: Node) -> None:
        """Follow a worker's executors until it has ended."""
        try:
            fd = os.pidfd_open(node.pid)
        except ProcessLookupError:
            return
        worker = _Followed(label, node, fd)
        worker.look()
        with self._lock:
            self._new.append(worker)

    def close(self) -> None:
        """Stop."""
        self._is_closed.set()
        self._thread.join()
        self._history.close()

    def _run(self) -> None:
        followed: list[_Followed] = []
        while not self._is_closed.is_set():
            with self._lock:
                followed += self._new
                self._new.clear()
            followed = [worker for worker in followed if self._look_at(worker)]
            _ended([fd for worker in followed for fd in worker.executors.values()], _LOOK_S)
        for worker in [*followed, *self._new]:
            worker.close()

    def _look_at(self, worker: _Followed) -> bool:
        """Note what has ended; False if the worker itself has."""
        worker.look()
        ended = _ended(worker.executors.values())
        for pid in [pid for pid, fd in worker.executors.items() if fd in ended]:
            self._history.write("exec_gone", w=worker.label, pid=pid)
            os.close(worker.executors.pop(pid))
        if _ended([worker.fd]):
            worker.close()
            return False
        return True


def _ended(fds: Iterable[int], within_s: float = 0.0) -> set[int]:
    """Wait until one of these processes has ended; return those that have."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    return {fd for fd, _ in poll.poll(1000 * within_s)}
