"""What a history tells of tasks and their attempts, and of what was done to the cluster."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from chaos.history import HEAD

SUCCEEDED: Final = "SUCCEEDED"
CANCELLED: Final = "CANCELLED"
LOST: Final = "ObjectLost"
LARGE_BYTES: Final = 99 << 10
"""Results from this size on may be with their worker alone: of 100 KiB, with what encodes them."""
TERMINAL: Final = frozenset({"SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT", "POISONED"})
FOR_EVER: Final = float("inf")


@dataclass(frozen=True, slots=True)
class Rules:
    """What the cluster of the history was set to.

    Attributes:
        lease_ttl_s: Lease of a worker.
        heartbeat_s: Time between two heartbeats: a lease may be that old when trouble begins.
        slack_s: How late a record may be, for a process that was busy.
        exclusive_s: No exclusive task takes longer, unless its executor is frozen.
        cancel_s: How long a cancel may need to reach its worker, where nothing is in the way.
        only_pauses: The head was never away for long: no call may give up.
        heads_before: Heads that had died before this history begins; their events may be kept.
        is_later_round: Tasks were handed in before it begins, too.
    """

    lease_ttl_s: float
    heartbeat_s: float
    slack_s: float = 1.0
    exclusive_s: float = 1.5
    cancel_s: float = 5.0
    only_pauses: bool = False
    heads_before: int = 0
    is_later_round: bool = False


@dataclass(slots=True)
class Run:
    """One attempt, as its own records tell it; ``end`` is infinite where none was written.

    Attributes:
        took: Hashes of what it was given of other tasks.
        size: Bytes of its result, where that follows from the task's id.
        parts: Hashes of its values, where it returned several.
        is_stopped: It noticed that it is cancelled, and ended early.
    """

    start: float
    attempt: int
    lease: int
    pid: int
    worker: str
    end: float = FOR_EVER
    hash: str = ""
    is_crash: bool = False
    has_raised: bool = False
    took: Sequence[str] = ()
    size: int = 0
    parts: Sequence[str] = ()
    is_stopped: bool = False

    def value(self, index: int) -> str:
        """Return the hash of one of the values, or of all for -1; "" where there is none."""
        if index < 0:
            return self.hash
        return self.parts[index] if index < len(self.parts) else ""


@dataclass(slots=True)
class Task:
    """All that is known of one task.

    Attributes:
        put: Hash of a value that was put, and that nothing runs for.
        put_size: Its bytes.
    """

    retries: int = 3
    is_exclusive: bool = False
    is_refused: bool = False
    is_again: bool = False
    submitted: float | None = None
    acked: float | None = None
    runs: dict[tuple[int, int], Run] = field(default_factory=dict)
    seen: list[tuple[float, str, str, int, str]] = field(default_factory=list)
    final: tuple[str, str, int] | None = None
    cancels: list[tuple[float, str]] = field(default_factory=list)
    listed: str = ""
    values: set[str] = field(default_factory=set)
    ends: dict[int, str] = field(default_factory=dict)
    put: str | None = None
    put_size: int = 0

    @property
    def state(self) -> str | None:
        """What the head says in the end; "" if it knows no such task, None if nobody asked."""
        return self.final[0] if self.final else None

    @property
    def recorded(self) -> str:
        """Hash of the result that the head has in the end; "" if nobody asked for it."""
        return self.final[1] if self.final else ""

    @property
    def is_without_value(self) -> bool:
        """Whether it has ended, and has nothing that could be taken."""
        return bool(self.final) and self.state in TERMINAL and self.state != SUCCEEDED

    @property
    def is_let_go(self) -> bool:
        """Whether it is gone as a large value may: its end was told, and nobody needs it more."""
        size = max([self.put_size, *(run.size for run in self.runs.values())])
        is_told = any(state == SUCCEEDED for _, state, _, _, _ in self.seen)
        return self.state == "" and size >= LARGE_BYTES and is_told and bool(self.values)

    def recorded_run(self) -> Run | None:
        """Return the attempt whose result is recorded; None if that may be any of several."""
        made = [run for run in self.runs.values() if run.hash and run.hash == self.recorded]
        return made[0] if len(made) == 1 else None

    def in_order(self) -> list[Run]:
        """Return the attempts in the order in which the head granted them."""
        return sorted(self.runs.values(), key=lambda run: run.lease)


@dataclass(slots=True)
class Troubles:
    """What the nemesis did, by whom it hit.

    Attributes:
        executors: When it killed an executor (or a task its own), by worker and process.
        gone: When an executor of a draining worker ended, whoever ended it; no reason by itself.
    """

    deaths: dict[str, list[tuple[float, bool]]] = field(default_factory=lambda: defaultdict(list))
    executors: dict[tuple[str, int], float] = field(default_factory=dict)
    gone: dict[tuple[str, int], float] = field(default_factory=dict)
    windows: dict[str, list[tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    frozen: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    mild: dict[str, list[tuple[float, float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def is_any(self, low: float, high: float) -> bool:
        """Whether anything at all went on between two times."""
        return any(low <= at <= high for deaths in self.deaths.values() for at, _ in deaths) or any(
            begin <= high and end + tail >= low
            for windows in self.windows.values()
            for begin, end, tail in windows
        )

    def is_hit(self, label: str, low: float, high: float) -> bool:
        """Whether anything at all was done to a process between two times."""
        windows = [*self.windows.get(label, ()), *self.mild.get(label, ())]
        return any(low <= at <= high for at, _ in self.deaths.get(label, ())) or any(
            begin <= high and end + tail >= low for begin, end, tail in windows
        )

    def is_killed(self, label: str) -> bool:
        """Whether a process was killed, and not told to end."""
        return any(not is_clean for _, is_clean in self.deaths.get(label, ()))

    def head_died_between(self, low: float, high: float) -> bool:
        """Whether the head was lost between two times."""
        return any(low <= at <= high for at, _ in self.deaths[HEAD])


def shown(run: Run) -> str:
    """Name an attempt."""
    return f"attempt {run.attempt} (lease {run.lease}, {run.worker}/{run.pid}, at {run.start:.3f})"
