"""From an encoded failure to the exception that the user catches.

What a task's own code raised becomes an error that is both `TaskExecutionFailed` and the
user's class, so that ``except ValueError`` and ``except rustray.TaskExecutionFailed``
both catch it. Nothing is ever imported for the sake of an error: a class that is not already
here is not rebuilt.
"""

from __future__ import annotations

import builtins
import contextlib
import pickle
import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

from rustray.common import errors
from rustray.common.errors import (
    ExecutorDeath,
    InvariantError,
    PayloadError,
    ResourceExhausted,
    RustRayError,
    TaskError,
    TaskExecutionFailed,
    TaskOutOfMemory,
    TaskTimeout,
)
from rustray.task.codec import decode_failure
from rustray.task.failures import attributes_of, blank, portable, put_back
from rustray.task.frames import Rejection
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec

_TRACEBACK_ATTRIBUTE_LIMIT = 1_000_000
_MB = 1_000_000
_OWN_FIELDS = (
    "_message", "task_id", "worker_id", "attempt", "error_type", "remote_traceback", "__notes__",
)  # fmt: skip
_CLASSES = errors.all_error_classes()

_duals: weakref.WeakKeyDictionary[type[BaseException], type[TaskExecutionFailed] | None] = (
    weakref.WeakKeyDictionary()
)


def error_of(
    payload: bytes, task_id: str, worker_id: str, attempt: int, codec: Codec
) -> RustRayError:
    """Decode a failure into the typed error of its task.

    Args:
        payload: Encoded `FailureInfo`; garbage gives an InvariantError.
        task_id: 32 hex digits.
        worker_id: Where the last attempt ran, or "".
        attempt: Its number, from 1; 0 if none started.
        codec: Of the task: only the failures of PICKLE tasks are unpickled.
    """
    info = decode_failure(payload)
    error = _error_of(info, task_id, worker_id, attempt, codec)
    if info.origin and info.origin != task_id:
        error.add_note(
            f"task {task_id} did not run: it takes the result of task {info.origin}, and that is "
            "the one that failed"
        )
    return error


def _error_of(
    info: FailureInfo, task_id: str, worker_id: str, attempt: int, codec: Codec
) -> RustRayError:
    cls = _CLASSES.get(info.code, InvariantError)
    if issubclass(cls, TaskExecutionFailed):
        return _execution_failed(info, task_id, worker_id, attempt, codec)
    message = info.message or info.code
    error: RustRayError
    if issubclass(cls, TaskTimeout):
        phase = info.phase or "run"
        error = cls(message, task_id=task_id, worker_id=worker_id, attempt=attempt, phase=phase)
    elif issubclass(cls, TaskOutOfMemory):
        error = cls(
            message,
            task_id=task_id,
            worker_id=worker_id,
            attempt=attempt,
            peak=(info.memory_peak or 0) / _MB,
            limit=(info.memory_limit or 0) / _MB,
        )
    elif issubclass(cls, TaskError):
        error = cls(message, task_id=task_id, worker_id=worker_id, attempt=attempt)
        if isinstance(error, ExecutorDeath):
            error.exit_code, error.signal = info.exit_code, info.signal
    else:
        error = cls(message)
    if info.traceback:
        error.__cause__ = remote_traceback(info.traceback)
    return error


def original_exception(payload: bytes, codec: Codec) -> BaseException | None:
    """Return what the user's code raised, as `concurrent.futures` would hand it over.

    Returns:
        The exception with the remote traceback as its ``__cause__``; None if it was not
        user code that failed, or the exception cannot be rebuilt here.
    """
    info = decode_failure(payload)
    if not issubclass(_CLASSES.get(info.code, RustRayError), TaskExecutionFailed):
        return None
    cause = _rebuild_cause(info, codec)
    if cause is not None and info.traceback:
        cause.__cause__ = remote_traceback(info.traceback)
    return cause


def error_of_rejection(refused: Rejection) -> RustRayError:
    """Build the error that the head refused tasks with."""
    cls = _CLASSES.get(refused.code, RustRayError)
    if issubclass(cls, ResourceExhausted):
        return cls(refused.message, retry_after_s=refused.retry_after_s, reason=refused.reason)
    return cls(refused.message or refused.code)


def undecodable(task_id: str, error: BaseException) -> PayloadError:
    """Say that a value arrived and cannot be decoded in this process."""
    return PayloadError(
        f"the result of task {task_id} cannot be decoded here: {type(error).__name__}: {error}; "
        "is the class of the value importable in this program?"
    )


def remote_traceback(text: str) -> BaseException:
    """Wrap a remote traceback in the very class that the standard library uses for it."""
    # Imported late: it loads multiprocessing, which only a failure is worth.
    from concurrent.futures import process

    make: Callable[[str], BaseException] = process.__dict__["_RemoteTraceback"]
    return make(f'\n"""\n{text.strip()}\n"""')


def _execution_failed(
    info: FailureInfo, task_id: str, worker_id: str, attempt: int, codec: Codec
) -> TaskExecutionFailed:
    cause = _rebuild_cause(info, codec)
    message = info.message or "(no message)"
    error = _dual_error(cause) if cause is not None else None
    if error is None:
        name = info.error_type.removeprefix("builtins.")
        error = TaskExecutionFailed(f"{name}: {message}" if name else message)
    error.__dict__.update(
        _message=message,
        task_id=task_id,
        worker_id=worker_id,
        attempt=attempt,
        cause=cause,
        error_type=info.error_type,
        remote_traceback=info.traceback[:_TRACEBACK_ATTRIBUTE_LIMIT],
    )
    if info.traceback:
        error.__cause__ = remote_traceback(info.traceback)
    return error


def is_interrupt(error: BaseException) -> bool:
    """Whether this is a Ctrl-C of the person in front of the program.

    User code that runs while a value is decoded may raise anything, also a SystemExit: only what
    the person did may end the program.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return isinstance(error, KeyboardInterrupt) and is_main


def _rebuild_cause(info: FailureInfo, codec: Codec) -> BaseException | None:
    """Rebuild the user's exception, from its pickle or by the name of its class."""
    if codec is Codec.PICKLE and info.pickled:
        # Whatever a user's __reduce__ does wrong, the failure itself must still arrive.
        try:
            cause = pickle.loads(info.pickled)  # noqa: S301 - answer to code that we sent
            if isinstance(cause, BaseException):
                return cause
        except BaseException as error:
            if is_interrupt(error):
                raise
    cls = _known_class(info.error_type)
    if cls is None:
        return None
    with contextlib.suppress(Exception):
        return blank(cls, (info.message,) if info.message else ())
    return None


def _known_class(name: str) -> type[BaseException] | None:
    """Find an exception class by qualified name among what is imported already."""
    parts = name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:cut]))
        if module is None:
            continue
        found: Any = module
        for part in parts[cut:]:
            # Through __dict__: a module's __getattr__ could import something.
            found = getattr(found, "__dict__", {}).get(part)
        return found if isinstance(found, type) and issubclass(found, Exception) else None
    found = getattr(builtins, name, None) if name.isidentifier() else None
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _dual_error(cause: BaseException) -> TaskExecutionFailed | None:
    """Make an error that is also an instance of the cause's class, or None if it cannot be."""
    cls = type(cause)
    dual = _duals.get(cls)
    if dual is None and cls not in _duals:
        dual = _duals[cls] = _make_dual(cls)
    if dual is None:
        return None
    try:
        error = blank(dual, cause.args)
        put_back(error, attributes_of(cause))
    except BaseException as broken:
        if is_interrupt(broken):
            raise
        return None
    return error


def _make_dual(cls: type[BaseException]) -> type[TaskExecutionFailed] | None:
    # A SystemExit or KeyboardInterrupt of a task must not end the program that asks for it.
    if not issubclass(cls, Exception) or issubclass(cls, StopIteration):
        return None
    if issubclass(cls, RustRayError) and cls.__module__.partition(".")[0] == "rustray":
        # Of what rustray itself says of a task it is not to be told from: a `get` in the task that
        # took too long is no `get` of this program that did. It is a TimeoutError all the same.
        found = (base for base in cls.__mro__ if base.__module__ == "builtins")
        cls = next(found, Exception)
        if cls is Exception:
            return None

    def init(self: TaskExecutionFailed, *args: Any) -> None:
        """Do nothing: `_dual_error` fills the fields."""

    def text(self: TaskExecutionFailed) -> str:
        return str(self.__dict__.get("_message", ""))

    def reduce(self: TaskExecutionFailed) -> Any:
        cause = self.__dict__.get("cause")  # what the user's class has, it has too
        form = portable(cause)[0] if isinstance(cause, BaseException) else None
        fields = {name: self.__dict__[name] for name in _OWN_FIELDS if name in self.__dict__}
        return _restore, (form, fields, str(self))

    try:
        dual: type[TaskExecutionFailed] = type(
            f"TaskExecutionFailed({cls.__name__})",
            (cls,) if issubclass(cls, TaskExecutionFailed) else (TaskExecutionFailed, cls),
            {
                "__doc__": f"A {cls.__qualname__} that a task raised; see `.cause`.",
                "__init__": init,
                "__module__": "rustray",
                "__reduce__": reduce,
                "__str__": text,
            },
        )
    except BaseException as broken:
        if is_interrupt(broken):
            raise
        return None
    return dual


def _restore(
    cause: BaseException | None, fields: dict[str, Any], message: str
) -> TaskExecutionFailed:
    """Unpickle a dual error."""
    error = _dual_error(cause) if cause is not None else None
    if error is None:
        error = TaskExecutionFailed(message)
    error.__dict__.update(fields, cause=cause)
    return error
