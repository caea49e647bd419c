"""What is noted of the values of a worker that leaves; `hand_over` sees to them."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from rustray.common.records import record
from rustray.scheduler.records import StoredOutcome


@record
class Asked:
    """Who is asked to take a value.

    Attributes:
        taker: A worker; "" for the head.
        size: Of the value.
        name: What it will be called there.
    """

    taker: str
    size: int
    name: str


@dataclass(slots=True)
class Leaving:
    """The values of a worker that leaves.

    Attributes:
        waiting: Nobody is asked to take them yet.
        stuck: Nobody can take them as things are.
        asked: Name of a value to who is asked to take it.
        refused: Likewise to those that could not, see `hand_over`.
        head_bytes: On their way to the head.
    """

    waiting: deque[StoredOutcome]
    stuck: list[StoredOutcome] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)
    refused: dict[str, set[str]] = field(default_factory=dict)
    head_bytes: int = 0
