"""Which tasks were refused for the time being: the scheduler keeps nothing of what it refuses.

Their sessions hand them in again and again, and whoever asks meanwhile is told what keeps them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from rustray.common.errors import RustRayError
from rustray.common.ids import task_id
from rustray.scheduler.commands import AcceptTasks, RejectTasks
from rustray.task.state import TaskState
from rustray.task.views import Explanation

MAX_SESSIONS: Final = 1_000
MAX_RANGES: Final = 64


@dataclass(slots=True)
class _Refused:
    """Of one session.

    Attributes:
        error: Why the last of them were refused.
        ranges: The tasks, as disjoint (first, end); those that were refused last are last.
    """

    error: RustRayError
    ranges: list[tuple[int, int]] = field(default_factory=list)

    def add(self, low: int, high: int) -> None:
        """Add tasks; of too many ranges the oldest are forgotten."""
        self.remove(low, high)
        if self.ranges and self.ranges[-1][1] == low:
            low = self.ranges.pop()[0]
        self.ranges.append((low, high))
        del self.ranges[:-MAX_RANGES]

    def remove(self, low: int, high: int) -> None:
        """Take tasks out."""
        pieces = [
            piece
            for first, end in self.ranges
            for piece in ((first, min(end, low)), (max(first, high), end))
        ]
        self.ranges = [(first, end) for first, end in pieces if first < end]


class Refusals:
    """The tasks of the last sessions that had some refused, until the head answers otherwise."""

    def __init__(self) -> None:
        self._sessions: dict[bytes, _Refused] = {}

    def __contains__(self, prefix: bytes) -> bool:
        return prefix in self._sessions

    def note(self, command: RejectTasks) -> None:
        """Keep a refusal for the time being."""
        prefix = command.prefix
        refused = self._sessions.pop(prefix, None) or _Refused(command.error)
        self._sessions[prefix] = refused
        refused.error = command.error
        refused.add(command.first, command.first + command.count)
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def settle(self, command: AcceptTasks | RejectTasks) -> None:
        """Forget tasks that were accepted, or refused for good. O(1) where there are none."""
        refused = self._sessions.get(command.prefix) if self._sessions else None
        if refused is None:
            return
        refused.remove(command.first, command.first + command.count)
        if not refused.ranges:
            del self._sessions[command.prefix]

    def error_of(self, prefix: bytes, sequence: int) -> RustRayError | None:
        """Return what keeps a task out, or None if it was not refused last."""
        refused = self._sessions.get(prefix)
        if refused is None or not any(low <= sequence < high for low, high in refused.ranges):
            return None
        return refused.error

    def explain(self, prefix: bytes, sequence: int) -> Explanation | None:
        """Say what keeps a task out, or None if it was not refused last."""
        error = self.error_of(prefix, sequence)
        if error is None:
            return None
        return Explanation(
            task_id(prefix, sequence),
            TaskState.QUEUED,
            f"it is not accepted yet: {error}.",
            advice="its session hands it in again by itself; what a call hands in is not.",
        )
