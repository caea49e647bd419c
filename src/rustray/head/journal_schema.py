"""The journal's tables, how older ones become these, and what each command writes into them."""

from __future__ import annotations

from typing import Any, Final

from rustray.head import event_rows
from rustray.scheduler import commands as c
from rustray.scheduler import stream_commands as sc
from rustray.scheduler import tombstone_commands as tc

_CRASHES: Final = """
CREATE TABLE crash (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, text TEXT NOT NULL
);
CREATE INDEX crash_batch ON crash (batch);
"""
_OOM_RERUNS: Final = """
CREATE TABLE oom_rerun (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, reruns INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
"""
_DEADLINE: Final = "ALTER TABLE batch ADD COLUMN deadline REAL NOT NULL DEFAULT 0;"
_LARGE: Final = """
CREATE TABLE large (id INTEGER PRIMARY KEY, digest BLOB NOT NULL);
"""
_LETTERS: Final = """
ALTER TABLE outcome ADD COLUMN fence INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outcome ADD COLUMN argument_base INTEGER NOT NULL DEFAULT 0;
ALTER TABLE outcome ADD COLUMN argument_ends BLOB;
ALTER TABLE outcome ADD COLUMN arguments BLOB;
CREATE TABLE retry (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL,
  attempts INTEGER NOT NULL, fence INTEGER NOT NULL, asked REAL NOT NULL,
  base INTEGER NOT NULL, ends BLOB, payloads BLOB
);
CREATE INDEX retry_batch ON retry (batch);
CREATE TABLE purge (batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE INDEX purge_batch ON purge (batch);
"""
_FORCE: Final = "ALTER TABLE cancel ADD COLUMN force INTEGER NOT NULL DEFAULT 0;"
_PRINCIPAL: Final = "ALTER TABLE batch ADD COLUMN principal TEXT NOT NULL DEFAULT '';"
_TOKENS: Final = """
CREATE TABLE token (
  id TEXT PRIMARY KEY, subject TEXT NOT NULL, role TEXT NOT NULL, scopes TEXT NOT NULL,
  audience TEXT NOT NULL, issued REAL NOT NULL, expires REAL NOT NULL, renewable REAL NOT NULL,
  created_by TEXT NOT NULL
);
"""
_SHARED: Final = """
CREATE TABLE shared (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
"""
_DURABILITY: Final = "ALTER TABLE batch ADD COLUMN durability INTEGER NOT NULL DEFAULT 0;"
_INPUTS: Final = """
ALTER TABLE batch ADD COLUMN input_base INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batch ADD COLUMN input_ends BLOB;
ALTER TABLE batch ADD COLUMN inputs BLOB;
"""
_STREAMS: Final = """
CREATE TABLE item (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, first INTEGER NOT NULL,
  count INTEGER NOT NULL, base INTEGER NOT NULL, ends BLOB NOT NULL, payloads BLOB NOT NULL
);
CREATE INDEX item_batch ON item (batch, place, first);
CREATE TABLE item_read (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, consumed INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
"""
_PLACED: Final = "ALTER TABLE outcome ADD COLUMN placed INTEGER NOT NULL DEFAULT 0;"
_EXPIRED: Final = """
CREATE TABLE expired (
  id INTEGER PRIMARY KEY, prefix BLOB NOT NULL UNIQUE, last INTEGER NOT NULL,
  principal TEXT NOT NULL
);
"""
MIGRATIONS: Final = {
    1: _CRASHES,
    2: _OOM_RERUNS,
    3: _DEADLINE,
    4: _LARGE,
    5: event_rows.SCHEMA,
    6: _LETTERS,
    7: _FORCE,
    8: _PRINCIPAL,
    9: _TOKENS,
    10: _DURABILITY,
    11: _INPUTS,
    12: _SHARED,
    13: _STREAMS,
    14: _PLACED,
    15: _EXPIRED,
}
"""Schema version to what makes the next one of it."""
SCHEMA: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE code (hash BLOB PRIMARY KEY, code BLOB NOT NULL);
CREATE TABLE class (id INTEGER PRIMARY KEY, definition BLOB NOT NULL UNIQUE);
CREATE TABLE worker (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE batch (
  id INTEGER PRIMARY KEY, prefix BLOB NOT NULL, first INTEGER NOT NULL, count INTEGER NOT NULL,
  class INTEGER NOT NULL, pushed INTEGER NOT NULL, accepted REAL NOT NULL,
  digests BLOB, base INTEGER NOT NULL, ends BLOB, payloads BLOB
);
{_DEADLINE}
{_PRINCIPAL}
{_DURABILITY}{_INPUTS}
CREATE TABLE outcome (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL,
  state INTEGER NOT NULL, worker TEXT NOT NULL, attempts INTEGER NOT NULL, arrived REAL NOT NULL,
  base INTEGER NOT NULL, ends BLOB, payloads BLOB
);
CREATE INDEX outcome_batch ON outcome (batch);
CREATE TABLE cancel (batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL);
{_FORCE}
CREATE INDEX cancel_batch ON cancel (batch);
CREATE TABLE granted (
  id INTEGER PRIMARY KEY, batch INTEGER NOT NULL, place INTEGER NOT NULL, count INTEGER NOT NULL,
  granted INTEGER NOT NULL
);
CREATE INDEX granted_batch ON granted (batch);
{_CRASHES}{_OOM_RERUNS}{_LARGE}{event_rows.SCHEMA}CREATE TABLE rerun (
  batch INTEGER NOT NULL, place INTEGER NOT NULL, attempt INTEGER NOT NULL, reruns INTEGER NOT NULL,
  PRIMARY KEY (batch, place)
) WITHOUT ROWID;
{_LETTERS}{_TOKENS}{_SHARED}{_STREAMS}{_PLACED}{_EXPIRED}"""
_BATCH: Final = "INSERT INTO batch VALUES (?, ?, ?, ?, ?, ?, ?, NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_OUTCOME: Final = "INSERT INTO outcome VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
STATEMENTS: Final[dict[type[Any], str]] = {
    c.PersistBatch: _BATCH,
    c.PersistDurability: "UPDATE batch SET durability = :p2 WHERE id = :p1",
    c.PersistOutcome: _OUTCOME,
    c.PersistRetry: "INSERT INTO retry VALUES (:p1, :p2, :p3, :p4, :p5, :p6, :p7, :p8, :p9, :p10)",
    c.PersistPurge: "INSERT INTO purge VALUES (?, ?, ?)",
    c.ReplaceOutcome: (
        "UPDATE outcome SET base = :p2, ends = :p3, payloads = :p4, argument_base = :p5, "
        "argument_ends = :p6, arguments = :p7, placed = :p8 WHERE id = :p1"
    ),
    c.PersistCancel: "INSERT INTO cancel VALUES (?, ?, ?, ?)",
    c.PersistRerun: "INSERT OR REPLACE INTO rerun VALUES (?, ?, ?, ?)",
    c.PersistOomRerun: "INSERT OR REPLACE INTO oom_rerun VALUES (?, ?, ?)",
    c.PersistCrash: "INSERT INTO crash (batch, place, text) VALUES (?, ?, ?)",
    c.PersistGrant: "INSERT INTO granted (batch, place, count, granted) VALUES (?, ?, ?, ?)",
    c.PersistCode: "INSERT OR IGNORE INTO code VALUES (?, ?)",
    c.PersistWorker: "INSERT OR IGNORE INTO worker VALUES (?)",
    c.ForgetResults: (
        "UPDATE outcome SET ends = NULL, payloads = NULL, argument_ends = NULL, arguments = NULL "
        "WHERE id = ?"
    ),
    c.ForgetArguments: (
        "UPDATE batch SET digests = :p2, ends = NULL, payloads = NULL WHERE id = :p1"
    ),
    c.ForgetBatch: "DELETE FROM batch WHERE id = ?",
    c.ForgetCode: "DELETE FROM code WHERE hash = ?",
    c.ForgetWorker: "DELETE FROM worker WHERE id = ?",
    c.PersistToken: "INSERT OR REPLACE INTO token VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
    c.ForgetTokens: "DELETE FROM token WHERE max(expires, renewable) < ?",
    c.PersistShared: "INSERT OR REPLACE INTO shared VALUES (?, ?)",
    c.ForgetShared: "DELETE FROM shared WHERE key = ?",
    sc.PersistItems: (
        "INSERT INTO item (batch, place, first, count, base, ends, payloads) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)"
    ),
    sc.ForgetItems: "INSERT OR REPLACE INTO item_read VALUES (?, ?, ?)",
    tc.PersistExpired: (
        "INSERT OR REPLACE INTO expired (prefix, last, principal) VALUES (?, ?, ?)"
    ),
    tc.ForgetExpired: "DELETE FROM expired WHERE prefix = ?",
    **event_rows.STATEMENTS,
}
_TABLES_OF_BATCHES: Final = (
    "outcome", "cancel", "rerun", "oom_rerun", "crash", "granted", "retry", "purge", "item",
    "item_read",
)  # fmt: skip
FOLLOWED_BY: Final[dict[type[Any] | None, tuple[str, ...]]] = {
    c.ForgetBatch: tuple(
        f"DELETE FROM {table} WHERE batch = ?"  # noqa: S608
        for table in _TABLES_OF_BATCHES
    ),
    sc.ForgetItems: (
        "DELETE FROM item WHERE batch = :p1 AND place = :p2 AND first + count <= :p3",
    ),
    c.ForgetArguments: (
        "UPDATE retry SET ends = NULL, payloads = NULL WHERE batch = :p1",
        "DELETE FROM crash WHERE batch = :p1",
    ),
    # What a task's earlier life has used up, and that it was to be cancelled, is past.
    c.PersistRetry: (
        *(
            f"DELETE FROM {table} "  # noqa: S608
            "WHERE batch = :p2 AND place >= :p3 AND place < :p3 + :p4"
            for table in ("rerun", "oom_rerun", "crash")
        ),
        "INSERT INTO cancel SELECT batch, place, :p3 - place, force FROM cancel "
        "WHERE batch = :p2 AND place < :p3 AND place + count > :p3",
        "INSERT INTO cancel SELECT batch, :p3 + :p4, place + count - :p3 - :p4, force FROM cancel "
        "WHERE batch = :p2 AND place < :p3 + :p4 AND place + count > :p3 + :p4",
        "DELETE FROM cancel WHERE batch = :p2 AND place < :p3 + :p4 AND place + count > :p3",
    ),
}
"""What else a command does, with the same row: ``:p1`` is its first value."""
ADDING: Final = frozenset(
    kind
    for kind, statement in STATEMENTS.items()
    if statement.startswith("INSERT INTO") and kind not in FOLLOWED_BY
)
"""Commands that leave no page of the file without use."""
COLUMNS: Final[dict[type[Any], tuple[str, ...]]] = {
    c.PersistDurability: ("batch", "durability"),
    c.PersistCancel: ("batch", "offset", "count", "force"),
    c.PersistPurge: ("batch", "offset", "count"),
    c.PersistRerun: ("batch", "offset", "attempt", "reruns"),
    c.PersistOomRerun: ("batch", "offset", "reruns"),
    c.PersistCrash: ("batch", "offset", "text"),
    c.PersistGrant: ("batch", "offset", "count", "is_granted"),
    c.PersistCode: ("code_hash", "code"),
    c.PersistWorker: ("worker_id",),
    c.ForgetResults: ("number",),
    c.ForgetArguments: ("batch", "digests"),
    c.ForgetBatch: ("batch",),
    c.ForgetCode: ("code_hash",),
    c.ForgetWorker: ("worker_id",),
    c.ForgetTokens: ("ended_unix_s",),
    c.PersistShared: ("key", "value"),
    c.ForgetShared: ("key",),
    sc.ForgetItems: ("batch", "offset", "consumed"),
    tc.PersistExpired: ("prefix", "last", "principal"),
    tc.ForgetExpired: ("prefix",),
}
"""What of a command goes into its statement, in order, where that is a value as it is."""
