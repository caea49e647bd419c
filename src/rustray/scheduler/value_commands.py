"""What the scheduler tells the shell to do about values that stay with workers; see `commands`."""

from __future__ import annotations

from rustray.common.records import record


@record
class FreeObject:
    """Have a worker let go of a value that nobody needs any more."""

    worker_id: str
    object_id: str


@record
class SurrenderObject:
    """Have a worker send a value here that it keeps."""

    worker_id: str
    object_id: str
