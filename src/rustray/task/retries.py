"""Which exceptions of user code are tried again, and after which pause."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from rustray.common.errors import TaskExecutionFailed
from rustray.task.result import FailureInfo, qualified_name

FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 600.0
MAX_EXCEPTIONS: Final = 64
_MAX_DOUBLINGS: Final = 16
_MAX_NAME: Final = 256

RetryOn = bool | tuple[str, ...]
"""All exceptions, none, or those of these names: ``module.Class``, or ``Class`` of any module."""


def exception_names(value: object) -> RetryOn:
    """Turn what a user wrote for ``retry_exceptions`` into names.

    Args:
        value: A bool, an exception class or its name, or several of these.

    Raises:
        ValueError: it is something else; the message names it.
    """
    if isinstance(value, bool):
        return value
    if isinstance(value, str | type):
        value = (value,)
    if not isinstance(value, Iterable):
        raise _not_exceptions(value)
    names = tuple(dict.fromkeys(map(_name_of, value)))
    if len(names) > MAX_EXCEPTIONS:
        raise ValueError(f"retry_exceptions has {len(names)} names, at most {MAX_EXCEPTIONS}")
    return names or False


def _name_of(one: object) -> str:
    if isinstance(one, type) and issubclass(one, BaseException):
        return qualified_name(one)
    if isinstance(one, str):
        check_exception_name(one)
        return one
    raise _not_exceptions(one)


def _not_exceptions(value: object) -> ValueError:
    return ValueError(
        "retry_exceptions must be True, False, or exception classes or their names, "
        f"not {value!r:.80}"
    )


def check_exception_name(name: str) -> None:
    """Refuse what cannot be the name of a class.

    Raises:
        ValueError: as said.
    """
    parts = name.split(".")
    if len(name) > _MAX_NAME or not all(p.isidentifier() or p == "<locals>" for p in parts):
        raise ValueError(f"retry_exceptions: {ascii(name)[:80]} is not the name of an exception")


def is_wanted(retry_on: RetryOn, info: FailureInfo) -> bool:
    """Whether a failure is an exception of user code that is to be tried again.

    A name matches the class of the exception and its bases, as in an ``except`` clause.
    """
    if retry_on is False or info.code != TaskExecutionFailed.code:
        return False
    if retry_on is True:
        return True
    names = (info.error_type, *info.error_bases)
    return any(
        name == wanted or name.rpartition(".")[2] == wanted for name in names for wanted in retry_on
    )


def pause_s(retry_delay_s: float | None, reruns: int, lot: float) -> float:
    """Return how long to wait before a re-run.

    The pause doubles from one second up to ten minutes, with full jitter, so that what failed
    together does not come back together ("Exponential Backoff And Jitter", AWS, 2015).

    Args:
        retry_delay_s: What the user asked for instead: always this long. None: he did not.
        reruns: Number of this re-run, from 1.
        lot: Drawn evenly from [0, 1).
    """
    if retry_delay_s is not None:
        return retry_delay_s
    cap = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(reruns - 1, _MAX_DOUBLINGS))
    return cap * lot
