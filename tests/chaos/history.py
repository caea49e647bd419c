"""What happened, written by those to whom it happened: one append-only file a process.

A line is one JSON object with the monotonic time ``t`` (the kernel's, the same for all processes
of this machine), the kind ``k`` and what belongs to it, and it is synced before the writer goes on.
A process may be killed in the middle of a line; `Reader` leaves out such an end, and nothing else.

Kinds, and who writes them:

========== =========== ============================================================================
kind       writer      fields
========== =========== ============================================================================
session    client      prefix: hex of the ids of its remote functions
submit     client      ids, retries, key ("" for none), exclusive, again: after what it raises
ack        client      ids, key: the head has accepted them
refused    client      ids, code
result     client      id, state, hash, attempts: what the head has told
value      client      id, hash: what a reference gave, or the error's class
cancel     client      id, state: the head's answer
away       client      call: one that gave up, for no head answered
events     subscriber  stream, ev: [[revision, id, state, attempt], ...]
reset      subscriber  stream, reason: the next revision need not follow the last one
edges      client      takes: {id: [[id of a producer, index or -1], ...]}, in order of arguments
put        client      id, hash, size: a value that was put
part       client      id, index, hash: what the reference to one of several values gave
cause      client      id, error: class of what it ended with, origin: id that it names, or ""
children   task        id, a, l, ids: it has handed in, in the order of its calls
saw        task        id, a, l, of: [[id of a child, hash], ...]: what it got from its children
start      task        id, a (attempt), l (lease), pid, w (worker process); took: hashes of the
                       values that it was given, where it takes what other tasks return
finish     task        id, a, l, hash; size: bytes, of one whose content follows from its id;
                       parts: hashes of several values; stopped: it noticed that it is cancelled
raised     task        id, a, l: it is about to raise
crash      task        id, a, l, pid, w: it is about to kill its own executor
down       nemesis     w: a process has died; clean: it was told to stop, and had time
window     nemesis     w, end, tail, frozen: it was frozen (with its executors), or cut off, from t
                       to end, and may need ``tail`` more seconds to come back; mild: what it said
                       and heard came late, and no lease may end by that
exec_down  nemesis     w, pid: an executor was killed
exec_gone  watch       w, pid: an executor of a worker that was told to end has ended
final      runner      id, state, hash, attempts; state "" where the head knows no such task, hash
                       None where only the state was asked for
problem    runner,     text: what is wrong by itself (a traceback, an orphan, a strange death; a
           client      generator's item that is missing, twice, or another one)
========== =========== ============================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Final

FOLDER_ENV: Final = "CHAOS_HISTORY"
LABEL_ENV: Final = "CHAOS_LABEL"
SUFFIX: Final = ".jsonl"
HEAD: Final = "head"
REFUSED_EXIT: Final = 75
"""Of a client or subscriber whose token is refused: the clocks differ, and it says so."""

Record = dict[str, Any]


class Writer:
    """One process's file. Not for several threads at a time."""

    def __init__(self, folder: Path | str, label: str) -> None:
        """Open a file of its own: a process id may come again, so the time is in the name."""
        name = f"{label}-{os.getpid()}-{time.monotonic_ns()}{SUFFIX}"
        self.pid = os.getpid()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(Path(folder) / name, flags, 0o600)

    def write(self, kind: str, at: float | None = None, **fields: Any) -> None:
        """Append one record, and return when it is on the disk; ``at``: when it was, if not now."""
        moment = time.monotonic() if at is None else at
        record = {"t": round(moment, 6), "k": kind, **fields}
        os.write(self._fd, json.dumps(record, separators=(",", ":")).encode() + b"\n")
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def own_writer() -> Writer:
    """Return the writer that the environment of this process names.

    Raises:
        KeyError: this process is not part of a chaos run.
    """
    return Writer(os.environ[FOLDER_ENV], os.environ[LABEL_ENV])


def digest(value: object) -> str:
    """Return what a result is known by in a history: of bytes and arrays, their content."""
    try:
        content: Any = memoryview(value)  # type: ignore[arg-type]
    except TypeError:
        content = repr(value).encode()
    return hashlib.sha256(content).hexdigest()[:24]


class Reader:
    """Reads a folder that others still write to, each record once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets: dict[str, int] = {}

    def new(self) -> list[Record]:
        """Return what has come since the last call, in the order of its times.

        Raises:
            ValueError: a line that is not the last of its file is no record.
        """
        found: list[Record] = []
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            with path.open("rb") as file:
                file.seek(self._offsets.get(path.name, 0))
                content = file.read()
            whole = content[: content.rfind(b"\n") + 1]  # what follows was cut off, or is to come
            self._offsets[path.name] = self._offsets.get(path.name, 0) + len(whole)
            found += [_record(path.name, line) for line in whole.splitlines()]
        found.sort(key=lambda record: float(record["t"]))
        return found


def read(folder: Path) -> list[Record]:
    """Return all records of a folder in the order of their times."""
    return Reader(folder).new()


def _record(name: str, line: bytes) -> Record:
    try:
        record: Record = json.loads(line)
    except ValueError:
        raise ValueError(f"{name} has a line that is no record: {line!r:.80}") from None
    return record
