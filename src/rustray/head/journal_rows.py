"""The journal's rows, read: what an earlier head has left, as the scheduler understands it."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from rustray.common.durability import Durability
from rustray.common.errors import ConfigError
from rustray.common.ids import PREFIX_BYTES
from rustray.rpc.convert import decode_task_class
from rustray.scheduler.admission import digests as digests_of
from rustray.scheduler.events import (
    RecoveredBatch,
    RecoveredItems,
    RecoveredOutcome,
    RecoveredRetry,
    StateRecovered,
)
from rustray.scheduler.records import DIGEST_BYTES
from rustray.task.columns import NO_PAYLOADS, PayloadColumn, PlacedColumn, StoredColumn
from rustray.task.frames import Outcome
from rustray.task.state import TaskState

APPLICATION_ID: Final = 0x52525931
"""Marks the file as ours: "RRY1"."""
SCHEMA_VERSION: Final = 16


def connect_reader(path: Path) -> sqlite3.Connection:
    """Open a database to look at it; also while a head writes."""
    uri = f"file:{quote(os.path.abspath(path))}?mode=ro"
    return sqlite3.connect(
        uri, uri=True, isolation_level=None, check_same_thread=False, timeout=5.0
    )


def refuse_foreign(db: sqlite3.Connection, path: str) -> bool:
    """Return whether the database has anything in it.

    Raises:
        ConfigError: it is of something else, or of a newer rustray.
    """
    (application,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    (tables,) = db.execute("SELECT count(*) FROM sqlite_master").fetchone()
    if tables and application != APPLICATION_ID:
        raise ConfigError(f"{path} is a database of something else than rustray's head")
    if version > SCHEMA_VERSION:
        raise ConfigError(
            f"{path} was written by a newer rustray (schema {version}, this one knows "
            f"{SCHEMA_VERSION}): start that one, or move the file away to start empty"
        )
    return bool(tables)


def read_state(db: sqlite3.Connection, now: float, grace_s: float, starts: int) -> StateRecovered:
    """Read and decode every row.

    Raises:
        sqlite3.Error, ValueError, KeyError, TypeError: a row is damaged.
    """
    classes = {
        number: decode_task_class(definition)
        for number, definition in db.execute("SELECT id, definition FROM class")
    }
    batches = tuple(
        RecoveredBatch(
            number, prefix, first, count, classes[class_number],
            payloads := _column(blob, ends, base),
            _digests(digests, payloads, bool(pushed) and not classes[class_number].depth),
            bool(pushed), max(now - accepted, 0.0),
            deadline, deadline - now if deadline else None, principal, Durability(durability),
            _column(inputs, input_ends, input_base),
        )
        for number, prefix, first, count, class_number, pushed, accepted, digests, base, ends, blob,
            deadline, principal, durability, input_base, input_ends, inputs
        in db.execute("SELECT * FROM batch ORDER BY id")
    )  # fmt: skip
    firsts = {batch.batch: batch.first for batch in batches}
    large = {number for (number,) in db.execute("SELECT id FROM large")}
    outcomes = tuple(
        RecoveredOutcome(
            number, batch, place, count,
            Outcome(firsts.get(batch, 0) + place, TaskState(state),
                    _results(number if number in large else None, blob, ends, base, placed),
                    worker, attempts),
            ends is None, max(now - arrived, 0.0),
            _column(arguments, argument_ends, argument_base), fence,
        )
        for number, batch, place, count, state, worker, attempts, arrived, base, ends, blob, fence,
        argument_base, argument_ends, arguments, placed
        in db.execute("SELECT * FROM outcome ORDER BY id")
    )  # fmt: skip
    retries = _retries(db, now)
    _verify(batches, outcomes, retries)
    return StateRecovered(
        batches,
        outcomes,
        tuple(db.execute("SELECT batch, place, count, force FROM cancel")),
        tuple(db.execute("SELECT batch, place, attempt, reruns FROM rerun")),
        tuple(db.execute("SELECT batch, place, reruns FROM oom_rerun")),
        tuple(db.execute("SELECT batch, place, text FROM crash ORDER BY id")),
        tuple(db.execute("SELECT batch, place, count, granted FROM granted ORDER BY id")),
        tuple(db.execute("SELECT hash, code FROM code")),
        # (Without batches nobody holds anything of ours.)
        tuple(name for (name,) in db.execute("SELECT id FROM worker ORDER BY id") if batches),
        grace_s,
        starts,
        retries,
        tuple(db.execute("SELECT batch, place, count FROM purge")),
        items=_items(db, batches),
        reads=tuple(db.execute("SELECT batch, place, consumed FROM item_read")),
        expired=_expired(db),
    )


def _sizes_of(batches: Sequence[RecoveredBatch]) -> dict[int, int]:
    """Return how many tasks each batch has, and look whether that fits."""
    counts: dict[int, int] = {}
    for batch in batches:
        are_numbers = isinstance(batch.first, int) and isinstance(batch.count, int)
        if len(batch.prefix) != PREFIX_BYTES or not are_numbers:
            raise ValueError(f"batch {batch.batch} has a false id")
        for column in (batch.payloads, batch.inputs):
            if column is not None and len(column) != batch.count:
                raise ValueError(f"batch {batch.batch} miscounts its tasks")
        counts[batch.batch] = batch.count
    return counts


def _items(db: sqlite3.Connection, batches: Sequence[RecoveredBatch]) -> tuple[RecoveredItems, ...]:
    counts = {batch.batch: batch.count for batch in batches}
    found = []
    rows = db.execute(
        "SELECT batch, place, first, count, base, ends, payloads FROM item ORDER BY id"
    )
    for batch, place, first, count, base, ends, blob in rows:
        payloads = PayloadColumn.from_wire(blob, ends, base)
        if len(payloads) != count or not 0 <= place < counts.get(batch, -1) or first < 0:
            raise ValueError(f"items of batch {batch} miscount themselves, or belong to no task")
        found.append(RecoveredItems(batch, place, first, payloads))
    return tuple(found)


def _retries(db: sqlite3.Connection, now: float) -> tuple[RecoveredRetry, ...]:
    return tuple(
        RecoveredRetry(
            number, batch, place, count, attempts, fence, _column(blob, ends, base),
            max(now - asked, 0.0),
        )
        for number, batch, place, count, attempts, fence, asked, base, ends, blob
        in db.execute("SELECT * FROM retry ORDER BY id")
    )  # fmt: skip


def _expired(db: sqlite3.Connection) -> tuple[tuple[bytes, int, str], ...]:
    expired = tuple(db.execute("SELECT prefix, last, principal FROM expired ORDER BY id"))
    if any(len(prefix) != PREFIX_BYTES or not isinstance(last, int) for prefix, last, _ in expired):
        raise ValueError("what has expired has a false id")
    return expired


def _verify(
    batches: Sequence[RecoveredBatch],
    outcomes: Sequence[RecoveredOutcome],
    retries: Sequence[RecoveredRetry],
) -> None:
    """Look whether the rows fit together.

    Raises:
        ValueError: they do not.
    """
    counts = _sizes_of(batches)
    for one in outcomes:
        if not isinstance(one.outcome.attempts, int) or not one.outcome.state.is_terminal:
            raise ValueError(f"outcome {one.number} says nonsense")
        if not one.is_expired and len(one.outcome.payloads) != one.count:
            raise ValueError(f"outcome {one.number} miscounts its tasks")
    parts: list[RecoveredOutcome | RecoveredRetry] = [*outcomes, *retries]
    for part in parts:
        if not 0 <= part.offset < part.offset + part.count <= counts.get(part.batch, -1):
            raise ValueError(f"outcome or retry {part.number} belongs to no tasks")
        if part.arguments is not None and len(part.arguments) != part.count:
            raise ValueError(f"outcome or retry {part.number} miscounts its arguments")


def make_private(path: Path) -> None:
    """Make the file, if it is absent, so that only its owner can read it.

    SQLite makes its side files with the same permissions.

    Raises:
        OSError: it cannot be made, or it is a symbolic link.
    """
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def unusable(path: str, error: Exception) -> ConfigError:
    """Return the error for a journal that cannot be used as it is; one of ours says it itself."""
    if isinstance(error, ConfigError):
        return ConfigError(str(error))
    if isinstance(error, OSError) and error.errno == errno.ELOOP:
        return ConfigError(f"the journal {path} is a symbolic link; put the file itself there")
    if isinstance(error, OSError | sqlite3.OperationalError):
        return ConfigError(
            f"the journal {path} cannot be used now: {error}. See to the disk, and to "
            "who else uses the file; nothing of it was changed"
        )
    return ConfigError(
        f"the journal {path} cannot be used: {error}. Put a backup in its place with 'rustray "
        "state restore FILE'; or see what 'rustray state export' can still read of it, and move it "
        "away to start empty"
    )


def _results(
    number: int | None, blob: bytes | None, ends: bytes | None, base: int, placed: int
) -> PayloadColumn:
    if number is None or ends is None:
        column = _column(blob, ends, base) or NO_PAYLOADS
        return PlacedColumn.of_column(column) if placed and column else column
    return StoredColumn.found(number, ends, base)


def _column(blob: bytes | None, ends: bytes | None, base: int) -> PayloadColumn | None:
    return None if ends is None else PayloadColumn.from_wire(blob or b"", ends, base)


def _digests(
    known: bytes | None, payloads: PayloadColumn | None, is_pushed: bool
) -> list[bytes] | None:
    if is_pushed:
        return None
    if payloads is not None:
        return digests_of(payloads)
    joined = known or b""
    return [joined[at : at + DIGEST_BYTES] for at in range(0, len(joined), DIGEST_BYTES)]
