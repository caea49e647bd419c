"""Identifiers, and the layout of a task id.

A task id is 128 bits, shown as 32 lowercase hex digits. The first 80 bits
(the *prefix*) name the client session that minted it, the last 48 bits (the
*sequence*) count the tasks of that session. So ten thousand tasks submitted in
one batch are named by one prefix, one first sequence and a count, and nobody
has to carry ten thousand ids. A UUID that a program of another language mints
is a legal task id as well: it is merely a prefix with a single task in it.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import NewType

TaskId = NewType("TaskId", str)
"""32 lowercase hex digits."""
WorkerId = NewType("WorkerId", str)
"""``<name>-<8 hex digits>``, minted by the worker at its start."""
SessionPrefix = NewType("SessionPrefix", bytes)
"""The 10 bytes that all task ids of one client session share."""

PREFIX_BYTES = 10
SEQUENCE_BITS = 48
MAX_SEQUENCE = (1 << SEQUENCE_BITS) - 1

_TASK_ID = re.compile(
    r"[0-9a-f]{32}|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    re.IGNORECASE | re.ASCII,
)


def task_id(prefix: bytes, sequence: int) -> TaskId:
    """Compose the id of the task with this number in this session.

    Args:
        prefix: The session's 10 bytes.
        sequence: 0 to 2**48 - 1.
    """
    return TaskId(f"{prefix.hex()}{sequence:012x}")


def child_prefix(prefix: bytes, sequence: int) -> SessionPrefix:
    """Return the session prefix of the tasks that a task hands in, the same in all its attempts.

    Args:
        prefix: Of the task's own id.
        sequence: Likewise.
    """
    name = b"children" + prefix + sequence.to_bytes(SEQUENCE_BITS // 8, "big")
    return SessionPrefix(blake2b(name, digest_size=PREFIX_BYTES).digest())


def split_task_id(text: str) -> tuple[SessionPrefix, int]:
    """Take a task id apart into (session prefix, sequence).

    Dashes at UUID's places and capital letters are accepted.

    Raises:
        ValueError: the text is not a task id; the message says what one is.
    """
    if not isinstance(text, str) or _TASK_ID.fullmatch(text) is None:
        shown = repr(text if not isinstance(text, str) else text[:80])
        raise ValueError(
            f"{shown} is not a task id: expected 32 hexadecimal digits (a UUID, dashes optional)"
        )
    digits = text.replace("-", "").lower()
    return SessionPrefix(bytes.fromhex(digits[:20])), int(digits[20:], 16)
