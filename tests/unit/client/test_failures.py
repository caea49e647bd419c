"""From encoded failures to exceptions."""

from __future__ import annotations

import concurrent.futures.process
import pickle
import sys
import threading
from dataclasses import dataclass
from typing import Any

import pytest

import rustray
from helpers.fake_head import FakeHead
from rustray.client.failures import error_of, original_exception
from rustray.common.errors import (
    InvariantError,
    PayloadError,
    TaskExecutionFailed,
    TaskOutOfMemory,
    TaskPoisoned,
    TaskTimeout,
    WorkerLost,
)
from rustray.task import pickling
from rustray.task.codec import encode_failure, failure_from_exception
from rustray.task.result import FailureInfo
from rustray.task.spec import Codec

TASK = "ab" * 16


class Custom(Exception):
    """An exception with its own constructor and fields."""

    def __init__(self, code: int, *, hint: str) -> None:
        super().__init__(f"custom {code}")
        self.code = code
        self.hint = hint

    def __reduce__(self) -> Any:
        return _custom, (self.code, self.hint)


def _custom(code: int, hint: str) -> Custom:
    return Custom(code, hint=hint)


def failure(error: BaseException, codec: Codec = Codec.PICKLE) -> bytes:
    """The failure of a task that raised this."""
    try:
        raise error
    except BaseException as raised:
        return encode_failure(failure_from_exception(raised, codec))


def decoded(error: BaseException, codec: Codec = Codec.PICKLE) -> TaskExecutionFailed:
    """What the client raises for a task that raised this."""
    found = error_of(failure(error, codec), TASK, "w-1", 2, codec)
    assert isinstance(found, TaskExecutionFailed)
    return found


def test_an_error_is_both_ours_and_the_users() -> None:
    """`except ValueError` and `except TaskExecutionFailed` both catch it, with all fields."""
    error = decoded(ValueError("bad", 3))
    assert isinstance(error, ValueError)
    assert error.args == ("bad", 3)
    assert (error.task_id, error.worker_id, error.attempt) == (TASK, "w-1", 2)
    assert type(error.cause) is ValueError
    assert error.cause.args == ("bad", 3)
    assert error.error_type == "builtins.ValueError"
    assert "ValueError: ('bad', 3)" in error.remote_traceback
    assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
    assert "Traceback" in str(error.__cause__)
    assert type(error).__name__ == "TaskExecutionFailed(ValueError)"


def test_the_users_fields_are_there() -> None:
    """Attributes of the user's class, and C-level ones of OSError, can be read."""
    error = decoded(Custom(7, hint="why"))
    assert isinstance(error, Custom)
    assert (error.code, error.hint) == (7, "why")
    assert str(error) == "custom 7"
    missing = decoded(FileNotFoundError(2, "No such file", "x.txt"))
    assert isinstance(missing, FileNotFoundError)
    assert (missing.errno, missing.filename) == (2, "x.txt")


def test_the_dual_class_is_made_once() -> None:
    """Two failures of one class share their dual class."""
    assert type(decoded(KeyError("a"))) is type(decoded(KeyError("b")))


def test_a_dual_error_can_be_pickled() -> None:
    """It survives a process pool of the user."""
    copy = pickle.loads(pickle.dumps(decoded(ValueError("x"))))
    assert isinstance(copy, ValueError)
    assert isinstance(copy, TaskExecutionFailed)
    assert copy.task_id == TASK
    assert str(copy) == "x"


@pytest.mark.parametrize("cls", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_tasks_exit_does_not_end_the_program_that_asks(cls: type[BaseException]) -> None:
    """BaseExceptions of a task arrive as plain TaskExecutionFailed with the cause."""
    error = decoded(cls("x"))
    assert type(error) is TaskExecutionFailed
    assert type(error.cause) is cls


class Status(Exception):
    """Passes a text on: what `pickle` makes of that calls the class with too few arguments."""

    def __init__(self, status: int, body: str) -> None:
        super().__init__(f"{status}: {body}")
        self.status, self.body, self.lock = status, body, threading.Lock()


class ByKeyword(Exception):
    """Takes no positional arguments."""

    def __init__(self, *, status: int) -> None:
        super().__init__()
        self.status = status


class WithNew(Exception):
    """Cannot even be made from its arguments."""

    def __new__(cls, first: int, second: int) -> WithNew:
        made = super().__new__(cls)
        made.args = (first + second,)
        return made

    def __init__(self, first: int, second: int) -> None:
        self.status = first


class OfTheDisk(OSError):
    """Has fields that lie outside of ``__dict__``."""

    def __init__(self, status: int) -> None:
        super().__init__(28, "full")
        self.status = status


class OfOurs(rustray.RustRayError):
    """A program's own subclass of one of ours."""

    def __init__(self, status: int, more: str) -> None:
        super().__init__(more)
        self.status = status


class Slotted(Exception):
    """Keeps its fields elsewhere than in ``__dict__``."""

    __slots__ = ("status",)

    def __init__(self, status: int, body: str) -> None:
        super().__init__(body)
        self.status = status


@dataclass(frozen=True)
class Frozen(Exception):
    """Lets nobody set an attribute."""

    status: int
    body: str


class Around(Exception):
    """Has another one that cannot be made again either, and itself."""

    def __init__(self, inner: BaseException, status: int) -> None:
        super().__init__(f"around {inner!r}")
        self.inner, self.status, self.me = inner, status, self


class Worded(Exception):
    """Makes a text of its argument: made again of that text it would say it twice."""

    status = 404

    def __init__(self, name: str) -> None:
        super().__init__(f"no such thing: {name}")


class WithOwnCause(Exception):
    """Means another thing by a name of ours."""

    status = 404

    @property
    def cause(self) -> str:
        """Say why."""
        return "why"


class OfATask(TaskExecutionFailed):
    """Of the very class that it becomes."""


@pytest.mark.parametrize(
    "error",
    [
        Status(404, "gone"), ByKeyword(status=404), WithNew(404, 1), OfTheDisk(404),
        OfOurs(404, "gone"), Slotted(404, "gone"), Frozen(404, "gone"), Worded("x"),
        Around(ByKeyword(status=1), 404), WithOwnCause("x"),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_attributes_come_along_whatever_the_class_is_called_with(error: Any) -> None:
    """Bug: `pickle` cannot make such exceptions again, and all but their text was gone."""
    found: Any = decoded(error)
    for copy in (found, vars(found)["cause"], pickle.loads(pickle.dumps(found))):
        assert isinstance(copy, type(error))
        assert copy.status == 404
        assert copy.args == error.args
    assert isinstance(found, TaskExecutionFailed)
    assert not hasattr(found, "lock")
    assert getattr(found, "errno", 28) == 28
    assert type(found) is type(decoded(error))


def test_exceptions_within_exceptions_come_along() -> None:
    """In attributes and in groups, whatever their classes are called with."""
    around: Any = decoded(Around(ByKeyword(status=7), 404))
    assert type(around.inner) is ByKeyword
    assert around.inner.status == 7
    group = decoded(ExceptionGroup("two", [ByKeyword(status=7), ValueError(3)]))
    assert isinstance(group, ExceptionGroup)
    assert isinstance(group.cause, ExceptionGroup)
    first, second = group.cause.exceptions
    assert (type(first), getattr(first, "status", 0)) == (ByKeyword, 7)
    assert (type(second), second.args) == (ValueError, (3,))


def test_a_file_s_name_is_kept_by_a_class_with_an_init_of_its_own() -> None:
    """It is in no ``__dict__``, and not in the arguments."""

    class OfAFile(OSError):
        def __init__(self, status: int) -> None:
            super().__init__(2, "gone", "f.txt")
            self.status = status

    found = decoded(OfAFile(404))
    assert isinstance(found, OSError)
    assert (found.errno, found.filename) == (2, "f.txt")
    assert str(found.cause) == "[Errno 2] gone: 'f.txt'"


def test_what_nests_without_end_arrives_all_the_same() -> None:
    """A task's error that names itself as its cause does not keep the executor."""
    error = TaskExecutionFailed("round")
    error.cause = error
    assert "round" in str(decoded(error))


def test_a_large_exception_travels_as_text_and_is_pickled_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There may be no room for more."""
    dumps, sizes = pickling.dumps, []

    def noting(value: object) -> bytes:
        data = dumps(value)
        sizes.append(len(data))
        return data

    monkeypatch.setattr(pickling, "dumps", noting)
    found = decoded(ValueError("x" * 2_000_000))
    assert isinstance(found, ValueError)
    assert [size > 1_000_000 for size in sizes] == [True]


def test_what_rustray_raises_in_a_task_is_the_tasks_failure() -> None:
    """A `get` there that took too long is a TimeoutError, and not a timeout of this program's."""
    found = decoded(rustray.GetTimeout("too long"))
    assert isinstance(found, TimeoutError)
    assert not isinstance(found, rustray.GetTimeout)
    assert type(found.cause) is rustray.GetTimeout
    assert type(decoded(rustray.PayloadError("bad"))) is TaskExecutionFailed
    assert isinstance(decoded(OfATask("own")), OfATask)


def test_an_exception_that_cannot_be_pickled_arrives_as_text() -> None:
    """Class name, message and traceback are there, the cause is not."""

    class Local(Exception):
        """Not importable, and no code that could travel."""

        lock = threading.Lock()

    error = decoded(Local("secret reason"))
    assert type(error) is TaskExecutionFailed
    assert error.cause is None
    assert "Local: secret reason" in str(error)


def test_data_tasks_get_builtins_and_classes_that_are_imported_already() -> None:
    """Without a pickle the class is found by name; nothing is imported for it."""
    error = decoded(ZeroDivisionError("by zero"), Codec.MSGPACK)
    assert isinstance(error, ZeroDivisionError)
    assert error.cause is not None
    assert error.cause.args == ("by zero",)
    mine = FailureInfo("TASK_FAILED", "custom 3", f"{Custom.__module__}.Custom", "trace")
    assert isinstance(error_of(encode_failure(mine), TASK, "", 1, Codec.MSGPACK), Custom)


@pytest.mark.parametrize(
    "name",
    [
        "this.Antigravity",
        "os.system",
        "builtins.eval",
        "builtins.SystemExit",
        "builtins",
        "",
        ".",
        "a..b",
        "os.path",
        "\x00",
    ],
)
def test_a_false_class_name_is_only_text(name: str) -> None:
    """Names of modules not imported, functions and exits are not rebuilt."""
    before = set(sys.modules)
    info = FailureInfo("TASK_FAILED", "x", name)
    error = error_of(encode_failure(info), TASK, "", 1, Codec.MSGPACK)
    assert type(error) is TaskExecutionFailed
    assert set(sys.modules) == before


def test_pickles_of_data_tasks_are_not_loaded() -> None:
    """A failure of a data task that carries a pickle is not unpickled."""
    info = FailureInfo("TASK_FAILED", "x", "no.Such", pickled=pickle.dumps(ValueError("y")))
    error = error_of(encode_failure(info), TASK, "", 1, Codec.MSGPACK)
    assert type(error) is TaskExecutionFailed
    assert error.cause is None


def test_other_codes_become_their_classes() -> None:
    """Timeouts, losses and bugs have their own class and fields."""
    timeout = error_of(
        encode_failure(FailureInfo("TASK_TIMEOUT", "late", phase="queue")), TASK, "", 0, Codec.JSON
    )
    assert isinstance(timeout, TaskTimeout)
    assert isinstance(timeout, TimeoutError)
    assert timeout.phase == "queue"
    grown = FailureInfo(
        "TASK_OUT_OF_MEMORY", "grew", memory_peak=1_500_000, memory_limit=512_000_000
    )
    memory = error_of(encode_failure(grown), TASK, "w", 2, Codec.JSON)
    assert isinstance(memory, TaskOutOfMemory)
    assert isinstance(memory, MemoryError)
    assert not isinstance(memory, TaskExecutionFailed)
    assert (memory.peak, memory.limit, memory.attempt) == (1.5, 512, 2)
    for code, cls in (("WORKER_LOST", WorkerLost), ("TASK_POISONED", TaskPoisoned)):
        error = error_of(encode_failure(FailureInfo(code, "m")), TASK, "w", 3, Codec.PICKLE)
        assert type(error) is cls
        assert error.attempt == 3
    assert type(error_of(b"\xff garbage", TASK, "", 1, Codec.PICKLE)) is InvariantError
    assert type(error_of(encode_failure(FailureInfo("NEW", "m")), TASK, "", 1, Codec.JSON)) is (
        InvariantError
    )


def test_the_original_is_what_the_standard_library_would_raise() -> None:
    """For Executor: the very class, with the remote traceback as cause; None for our errors."""
    found = original_exception(failure(ValueError("x")), Codec.PICKLE)
    assert type(found) is ValueError
    assert type(found.__cause__) is concurrent.futures.process._RemoteTraceback
    assert original_exception(encode_failure(FailureInfo("WORKER_LOST", "x")), Codec.JSON) is None


def test_get_raises_the_dual_error(head: FakeHead) -> None:
    """End to end through a session."""

    @rustray.remote
    def divide(a: int, b: int) -> float:
        return a / b

    with pytest.raises(ZeroDivisionError) as caught:
        rustray.get(divide.remote(1, 0))
    assert isinstance(caught.value, rustray.TaskExecutionFailed)
    assert "divide" in caught.value.remote_traceback


def test_a_result_that_cannot_be_decoded_here_is_a_payload_error(head: FakeHead) -> None:
    """The error names the task and what is missing."""

    class Hostile:
        """Unpickles nowhere."""

        def __reduce__(self) -> Any:
            return _missing, ()

    @rustray.remote
    def make() -> object:
        return Hostile()

    with pytest.raises(PayloadError, match="cannot be decoded here: RuntimeError: no"):
        rustray.get(make.remote())


def _missing() -> None:
    raise RuntimeError("no")
