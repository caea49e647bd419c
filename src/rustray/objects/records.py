"""The words of an object store: limits, places, and what its core tells the shell to do."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Final

from rustray.common.records import record

DEFAULT_TARGET: Final = 0.60
DEFAULT_SPILL: Final = 0.70
DEFAULT_PAUSE: Final = 0.80
DEFAULT_TERMINATE: Final = 0.95


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """How much, and where the lines are.

    Attributes:
        memory_bytes: The whole; the thresholds are parts of it.
        disk_bytes: What may be on disk; 0: there is none to use.
        target: Above it, what was not used for longest goes to disk.
        spill: The same for all that is used on the machine.
        pause: Above it no more tasks start.
        terminate: Above it nothing is taken in.

    Raises:
        ValueError: a number is out of range, or the thresholds are out of order.
    """

    memory_bytes: int
    disk_bytes: int = 0
    target: float = DEFAULT_TARGET
    spill: float = DEFAULT_SPILL
    pause: float = DEFAULT_PAUSE
    terminate: float = DEFAULT_TERMINATE

    def __post_init__(self) -> None:
        if self.memory_bytes <= 0 or self.disk_bytes < 0:
            raise ValueError("the memory of an object store must be above 0, its disk not below")
        if not 0 < self.target <= self.spill <= self.pause <= self.terminate <= 1:
            raise ValueError(
                f"thresholds {self.target}, {self.spill}, {self.pause} and {self.terminate} must "
                "be above 0, at most 1, and none below the one before it"
            )


@record
class Granted:
    """There is room: the object may be written (or taken over)."""

    object_id: str


@record
class Refused:
    """There is no room, and none will come by itself."""

    object_id: str
    text: str


@record
class Ready:
    """One `pin` of it holds from now on: it is in memory."""

    object_id: str


@record
class Lost:
    """What the disk had of it is damaged or gone; the object is forgotten."""

    object_id: str


@record
class Spill:
    """Write it to disk; `ObjectStore.spilled` is the answer."""

    object_id: str


@record
class Restore:
    """Read it from disk; `ObjectStore.restored` is the answer."""

    object_id: str


@record
class DropMemory:
    """Let go of the memory; who has it mapped keeps it."""

    object_id: str


@record
class DropDisk:
    """Remove the file."""

    object_id: str


Command = Granted | Refused | Ready | Lost | Spill | Restore | DropMemory | DropDisk


class Place(enum.Enum):
    """Where an object is."""

    WAITING = "waiting"  # for room to be written
    RESERVED = "reserved"
    MEMORY = "memory"
    WRITING = "writing"  # in memory, and on its way to disk
    DISK = "disk"
    READING = "reading"  # room is taken; on its way back


@dataclass(slots=True)
class StoreCounters:
    """Totals since the start; bytes where the name says so."""

    put: int = 0
    put_bytes: int = 0
    freed: int = 0
    spilled: int = 0
    spilled_bytes: int = 0
    restored: int = 0
    restored_bytes: int = 0
    refused: int = 0
    lost: int = 0
    disk_errors: int = 0
