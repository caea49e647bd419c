"""Every task that a journal has, read straight from its rows; also from one that is damaged.

Nothing is changed. Where a page is damaged, the rows before it and those behind it are taken.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rustray.common import ids
from rustray.common.errors import ConfigError
from rustray.head.journal_rows import connect_reader, refuse_foreign, unusable
from rustray.head.journal_store import at_present_schema
from rustray.rpc.convert import decode_task_class
from rustray.task.columns import PayloadColumn
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.task.views import DeadLetter

_CHANGES = (
    "SELECT id, batch, place, count, state, worker, attempts, arrived, base, ends, payloads, "
    "argument_base, argument_ends, arguments FROM outcome",
    "SELECT id, batch, place, count, 0, '', attempts, 0.0, 0, NULL, NULL, base, ends, payloads "
    "FROM retry",
)
_UNKNOWN = TaskClass("(damaged)")


@dataclass(slots=True)
class JournaledTasks:
    """The tasks of a journal; iterate over it.

    Attributes:
        path: Of the journal.
        damage: What could not be read, in words; complete after the iteration.
    """

    path: Path
    damage: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[DeadLetter]:
        """Yield every task in order of acceptance; one without error has no ``failure``.

        A task that has not ended counts as QUEUED: who had it is not journaled.

        Raises:
            ConfigError: there is nothing there that can be read.
        """
        if not self.path.is_file():
            raise ConfigError(f"there is no journal at {self.path}")
        try:
            with contextlib.closing(connect_reader(self.path)) as db:
                if refuse_foreign(db, str(self.path)):
                    with at_present_schema(db) as present:
                        yield from self._read(present)
        except (sqlite3.Error, OSError) as error:
            raise unusable(str(self.path), error) from error

    def _read(self, db: sqlite3.Connection) -> Iterator[DeadLetter]:
        classes: dict[int, TaskClass] = {}
        for number, definition in self._rows(db, "SELECT id, definition FROM class"):
            try:
                classes[number] = decode_task_class(definition)
            except (ValueError, TypeError, KeyError) as error:
                self.damage.append(f"class {number}: {error}")
        changes: dict[int, list[tuple[Any, ...]]] = {}
        for query in _CHANGES:
            for row in self._rows(db, query):
                changes.setdefault(row[1], []).append(row)
        purged = {
            (batch, place + index)
            for _, batch, place, count in self._rows(
                db, "SELECT rowid AS id, batch, place, count FROM purge"
            )
            for index in range(count)
        }
        query = "SELECT id, prefix, first, count, class, accepted, base, ends, payloads FROM batch"
        for number, prefix, first, count, of_class, accepted, base, ends, blob in self._rows(
            db, query
        ):
            task_class = classes.get(of_class, _UNKNOWN)
            arguments = self._column(f"batch {number}", base, ends, blob)
            tasks = [
                DeadLetter(
                    ids.task_id(prefix, first + offset), task_class.function, TaskState.QUEUED,
                    task_class.priority, 0, "", accepted, 0.0, int(task_class.codec), b"",
                    _item(arguments, offset),
                )
                for offset in range(count)
            ]  # fmt: skip
            for change in sorted(changes.get(number, ())):
                self._apply(tasks, change)
            for offset, task in enumerate(tasks):
                if (number, offset) not in purged:
                    yield task

    def _apply(self, tasks: list[DeadLetter], change: tuple[Any, ...]) -> None:
        number, _, place, count, state, worker, attempts, arrived = change[:8]
        results = self._column(f"outcome {number}", *change[8:11])
        arguments = self._column(f"arguments of outcome {number}", *change[11:14])
        now = TaskState(state) if state else TaskState.QUEUED
        is_failure = now.is_terminal and now is not TaskState.SUCCEEDED
        for index in range(min(count, len(tasks) - place)):
            task = tasks[place + index]
            kept = _item(arguments, index)
            tasks[place + index] = replace(
                task,
                state=now,
                attempts=attempts,
                worker_id=worker,
                finished_unix_s=arrived,
                failure=(_item(results, index) or b"") if is_failure else b"",
                arguments=task.arguments if kept is None else kept,
            )

    def _rows(self, db: sqlite3.Connection, query: str) -> Iterator[tuple[Any, ...]]:
        """Yield rows by id; where one is damaged, go on from the other end."""
        last = -1
        try:
            for row in db.execute(f"{query} ORDER BY id"):
                last = row[0]
                yield row
            return
        except sqlite3.DatabaseError as error:
            self.damage.append(f"{query.rsplit(' ', 1)[1]} behind row {last}: {error}")
        try:
            backwards = f"SELECT * FROM ({query}) WHERE id > ? ORDER BY id DESC"  # noqa: S608
            yield from db.execute(backwards, (last,))
        except sqlite3.DatabaseError:
            return  # this is where the damage begins, seen from the other end

    def _column(self, what: str, base: int, ends: Any, blob: Any) -> PayloadColumn | None:
        if ends is None or blob is None:
            return None
        try:
            return PayloadColumn.from_wire(blob, ends, base)
        except (ValueError, TypeError) as error:
            self.damage.append(f"{what}: {error}")
            return None


def _item(column: PayloadColumn | None, index: int) -> bytes | None:
    return column[index] if column is not None and index < len(column) else None
