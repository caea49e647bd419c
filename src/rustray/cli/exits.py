"""Exit codes, and which error leads to which.

0 ok, 1 the task failed or was refused, 2 usage, 3 unavailable, 4 authentication or authorization,
5 not found, 124 the wait timed out, 130 Ctrl-C.
"""

from __future__ import annotations

from typing import Final

from rustray.common import errors

OK: Final = 0
TASK_FAILED: Final = 1
USAGE: Final = 2
UNAVAILABLE: Final = 3
AUTH: Final = 4
NOT_FOUND: Final = 5
TIMED_OUT: Final = 124
INTERRUPTED: Final = 130
BROKEN_PIPE: Final = 141
"""What a shell reports for a program that SIGPIPE ended."""

_TABLE: Final[tuple[tuple[type[errors.RustRayError], int], ...]] = (
    (errors.FunctionNotFound, NOT_FOUND),
    (errors.TaskNotFound, NOT_FOUND),
    (errors.WorkerNotFound, NOT_FOUND),
    (errors.AuthenticationError, AUTH),
    (errors.AuthorizationError, AUTH),
    (errors.CommunicationError, UNAVAILABLE),
    (errors.ResourceExhausted, UNAVAILABLE),
    (errors.UsageProblem, USAGE),
    (errors.ConfigError, USAGE),
    (errors.PayloadError, USAGE),
    (errors.DurabilityNotAvailable, USAGE),
    (errors.GetTimeout, TIMED_OUT),
)


def exit_code_of(error: errors.RustRayError) -> int:
    """Return the exit code for an error that ended a command."""
    for cls, code in _TABLE:
        if isinstance(error, cls):
            return code
    return TASK_FAILED
