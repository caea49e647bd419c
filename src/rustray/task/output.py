"""What tasks print, as it travels from worker over head to whoever asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

from rustray.common.records import record

MAX_PAGE_BYTES: Final = 64 * 1024
"""Printed bytes of one answer; more may be asked for at once."""
MAX_RECORDS: Final = 4_096
"""Records of one answer."""
MAX_ATTEMPTS: Final = 1_000
"""Attempts that one answer names."""
LONGEST_WAIT_S: Final = 30.0
"""How long a worker keeps a question that has no answer yet."""

Stream = Literal["stdout", "stderr"]


@record
class OutputPiece:
    """Bytes that one attempt has printed on one stream, worker to head.

    Attributes:
        prefix: Of its task id.
        sequence: Of its task id.
        attempt: From 1.
        is_stderr: Which stream.
        time_unix_s: When, by the worker's clock.
        data: As printed.
        function: What it runs, as its class names it.
        pid: The executor's process.
    """

    prefix: bytes
    sequence: int
    attempt: int
    is_stderr: bool
    time_unix_s: float
    data: bytes
    function: str = ""
    pid: int = 0


@record
class OutputQuestion:
    """Head to worker: what has this attempt printed, or what do tasks of this session print.

    Attributes:
        number: The head's number for it; the answer carries it.
        prefix: Of the task ids.
        sequence: Of the task.
        attempt: Which attempt of it; 0 for the newest that this worker has.
        cursor: Bytes of its output that are known already.
        wait_s: How long to wait for more; 0 answers at once.
        is_live: All tasks of the session are meant, from what is not told yet; ``sequence``,
            ``attempt`` and ``cursor`` are not looked at, and only output is an answer.
        is_withdrawn: The question of this number is not asked any more.
    """

    number: int
    prefix: bytes
    sequence: int = 0
    attempt: int = 0
    cursor: int = 0
    wait_s: float = 0.0
    is_live: bool = False
    is_withdrawn: bool = False


@dataclass(slots=True)
class OutputAnswer:
    """Worker to head: the answer to a question.

    Attributes:
        number: The question's.
        attempt: Which attempt it is of; 0 if this worker has no output of it.
        pieces: What was printed, in order.
        next: Cursor after the pieces.
        dropped_bytes: What was printed before the first piece, after the cursor, and is not kept;
            live: left out since the last answer.
        attempts: All attempts of the task with output here.
    """

    number: int
    attempt: int = 0
    pieces: list[OutputPiece] = field(default_factory=list)
    next: int = 0
    dropped_bytes: int = 0
    attempts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class LogRecord:
    """Bytes that a task has printed.

    Attributes:
        task_id: 32 hex digits.
        attempt: Number of the attempt, from 1.
        stream: "stdout" or "stderr".
        data: As they were printed; a record may end within a line, or within a character.
        time_unix_s: When they were printed, by the worker's clock.
        worker_id: Where.
        pid: The process that ran the task.
        function: Name of the function.
        dropped_bytes: Above 0: so much of what was printed before this was not kept, or left out.
    """

    task_id: str
    attempt: int
    stream: Stream
    data: bytes
    time_unix_s: float
    worker_id: str = ""
    pid: int = 0
    function: str = ""
    dropped_bytes: int = 0

    @property
    def text(self) -> str:
        """`data` as text; what is no UTF-8 is shown by its number."""
        return self.data.decode("utf-8", "backslashreplace")
