"""Events in the journal: a subscriber that comes back after a restart misses none.

A row has the events of consecutive tasks, as they were told. What tasks said (`LeaseNews`) is not
kept. Old rows go when the log in memory drops them.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Final

from rustray.scheduler.commands import ForgetEvents, PersistEvents, PublishEvents
from rustray.task.state import TaskState

SCHEMA: Final = """
CREATE TABLE event (
  revision INTEGER PRIMARY KEY, prefix BLOB NOT NULL, first INTEGER NOT NULL,
  count INTEGER NOT NULL, state INTEGER NOT NULL, attempt INTEGER NOT NULL, worker TEXT NOT NULL,
  function TEXT NOT NULL, at REAL NOT NULL
);
"""
STATEMENTS: Final[dict[type[Any], str]] = {
    PersistEvents: "INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    ForgetEvents: "DELETE FROM event WHERE revision < ?",
}


def row_of(command: PersistEvents | ForgetEvents) -> tuple[Any, ...]:
    """Return what goes into the statement."""
    if isinstance(command, ForgetEvents):
        return (command.revision,)
    events = command.events
    return (
        command.revision, events.prefix, events.first, events.count, int(events.state),
        events.attempt, events.worker_id, events.function, command.time_unix_s,
    )  # fmt: skip


def load(db: sqlite3.Connection) -> list[PersistEvents]:
    """Return what earlier heads have told, in order.

    Raises:
        sqlite3.Error, ValueError, TypeError: a row is damaged.
    """
    return [
        PersistEvents(
            revision, at, PublishEvents(prefix, first, count, TaskState(state), *rest)
        )
        for revision, prefix, first, count, state, *rest, at
        in db.execute("SELECT * FROM event ORDER BY revision")
    ]  # fmt: skip
