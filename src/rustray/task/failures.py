"""`FailureInfo` from an exception, and as bytes.

Nothing that a task raises may break the executor: exceptions whose ``str`` raises, that
refer to themselves, that cannot be pickled or do not survive it all become a bounded text.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Mapping
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, Final, TypeVar

import msgpack

from rustray.common.errors import InvariantError, NestedTooDeep, ObjectLost, TaskExecutionFailed
from rustray.task.inputs import LACKS, InputLost
from rustray.task.result import FailureInfo, qualified_name
from rustray.task.spec import Codec

MAX_MESSAGE: Final = 8 * 1024
"""Characters of an exception's own text that are kept."""
MAX_TRACEBACK: Final = 64 * 1024
"""Characters of a traceback that are kept, first and last ones."""
MAX_CAUSES: Final = 4
MAX_CAUSE_TRACEBACK: Final = 8 * 1024
MAX_PICKLED: Final = 1024 * 1024
"""Bytes of a pickled exception; a bigger one travels as text only."""

TOLD: Final = "told"
"""Phase of the failure of a task that a worker has stopped because a head told it to."""
_TEXT_FIELDS: Final = ("code", "message", "error_type", "traceback", "phase", "origin")
_BYTES_FIELDS: Final = ("cause", "pickled")
_INT_FIELDS: Final = ("exit_code", "signal", "memory_peak", "memory_limit")
MAX_BASES: Final = 16
MAX_DEPTH: Final = 4
"""Exceptions in attributes of exceptions that are taken to their parts."""
MAX_NESTED: Final = 1_000
"""Tasks that have let an exception through."""
_NOTHING: Final = object()
_C_FIELDS: Final = (MemberDescriptorType, GetSetDescriptorType)


def encode_failure(info: FailureInfo) -> bytes:
    """Encode as a msgpack map of the fields that are set; any language can read it."""
    fields: dict[str, Any] = {}
    for name in _TEXT_FIELDS + _BYTES_FIELDS:
        value = getattr(info, name)
        if value:
            fields[name] = value
    for name in _INT_FIELDS:
        value = getattr(info, name)
        if value is not None:
            fields[name] = value
    if info.error_bases:
        fields["error_bases"] = info.error_bases
    packed: bytes = msgpack.packb(fields, use_bin_type=True, unicode_errors="replace")
    return packed


def decode_failure(payload: bytes) -> FailureInfo:
    """Decode; never raises: what is not a failure becomes one with code ``INTERNAL``."""
    try:
        fields = msgpack.unpackb(payload, raw=False, unicode_errors="replace")
        known: dict[str, Any] = {}
        for names, kind in ((_TEXT_FIELDS, str), (_BYTES_FIELDS, bytes), (_INT_FIELDS, int)):
            for name in names:
                if isinstance(fields.get(name), kind):
                    known[name] = fields[name]
        bases = fields.get("error_bases", ())
        known["error_bases"] = tuple(name for name in bases if isinstance(name, str))[:MAX_BASES]
        return FailureInfo(**{"code": InvariantError.code, "message": "", **known})
    except Exception as exc:
        text = f"a failure arrived that cannot be read ({type(exc).__name__})"
        return FailureInfo(InvariantError.code, text)


def failure_from_exception(
    exc: BaseException, codec: Codec, *, skip_frames: int = 0
) -> FailureInfo:
    """Describe what a task raised.

    Args:
        exc: The exception, with its traceback.
        codec: Of the task; only PICKLE tasks carry the pickled exception.
        skip_frames: Outermost traceback frames to leave out (the executor's own).

    What a task lets through of a task that it has handed in itself keeps its class: it is described
    as what was raised there, with the tracebacks of both.
    """
    raised = exc
    for _ in range(MAX_NESTED):
        cause = _DICT(raised).get("cause") if isinstance(raised, TaskExecutionFailed) else None
        if not isinstance(cause, BaseException):
            break
        raised = cause
    is_too_deep = isinstance(raised, NestedTooDeep)
    return FailureInfo(
        NestedTooDeep.code if is_too_deep else TaskExecutionFailed.code,
        _message(raised),
        error_type=qualified_name(type(raised)),
        error_bases=_bases(type(raised)),
        traceback=_traceback_text(exc, skip_frames, True, MAX_TRACEBACK),
        cause=_encoded_cause(exc, MAX_CAUSES),
        pickled=_pickled(raised) if codec == Codec.PICKLE else b"",
    )


def lacked(function: str, lost: InputLost) -> FailureInfo:
    """Describe that a task was not begun, for an input of it could not be had."""
    text = f"{function!r} was not called: {lost}"
    return FailureInfo(ObjectLost.code, text, phase=LACKS + lost.object_id)


def frames_of(exc: BaseException) -> TracebackType | None:
    """Return an exception's traceback, whatever its class makes of attributes."""
    frames: TracebackType | None = _TRACEBACK(exc)
    return frames


# Past what a user's class makes of them:
_ARGS: Final = BaseException.__dict__["args"].__get__
_SET_ARGS: Final = BaseException.__dict__["args"].__set__
_DICT: Final = BaseException.__dict__["__dict__"].__get__
_TRACEBACK: Final = BaseException.__dict__["__traceback__"].__get__
_CAUSE: Final = BaseException.__dict__["__cause__"].__get__


def _bases(cls: type[BaseException]) -> tuple[str, ...]:
    """Name what an ``except`` clause for the class could say instead, `BaseException` left out."""
    bases = [base for base in cls.__mro__[1:] if base not in (BaseException, object)]
    return tuple(map(qualified_name, bases))[:MAX_BASES]


def shorten(text: str, limit: int) -> str:
    """Cut the middle out of a text that is over ``limit`` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    left_out = len(text) - 2 * half
    return f"{text[:half]}\n... {left_out} characters left out ...\n{text[-half:]}"


def safe_text(exc: BaseException) -> str:
    """``str(exc)``, or a remark where that raises."""
    try:
        return str(exc)
    except BaseException as inner:  # user code: it may raise a SystemExit as well
        return f"<the text of this {type(exc).__name__} raised {type(inner).__name__}>"


def _message(exc: BaseException) -> str:
    text = safe_text(exc)
    return _clean(shorten(text, MAX_MESSAGE))


def _clean(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot carry."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _traceback_text(exc: BaseException, skip_frames: int, chain: bool, limit: int) -> str:
    frames = frames_of(exc)
    for _ in range(skip_frames):
        if frames is None:
            break
        frames = frames.tb_next
    try:
        lines = traceback.format_exception(type(exc), exc, frames, chain=chain)
    except BaseException as inner:
        return f"<the traceback could not be written: {type(inner).__name__}>"
    return _clean(shorten("".join(lines), limit))


def _encoded_cause(exc: BaseException, depth: int) -> bytes:
    cause = _CAUSE(exc)
    if cause is None or depth == 0:
        return b""
    return encode_failure(
        FailureInfo(
            TaskExecutionFailed.code,
            _message(cause),
            error_type=qualified_name(type(cause)),
            traceback=_traceback_text(cause, 0, False, MAX_CAUSE_TRACEBACK),
            cause=_encoded_cause(cause, depth - 1),
        )
    )


def _pickled(exc: BaseException) -> bytes:
    """Pickle the exception if a copy of the same class comes out again."""
    return portable(exc)[1]


def portable(exc: BaseException, depth: int = 0) -> tuple[object, bytes]:
    """Return what has a pickle that comes back as such an exception, and that; b"": nothing has."""
    data = _dumped(exc)
    if len(data) > MAX_PICKLED:
        return None, b""
    copy = _loaded(data)
    is_alike = type(copy) is type(exc)
    if is_alike and _has_args_of(copy, exc):
        return exc, data
    if depth < MAX_DEPTH:
        parts = _Parts(exc, depth)
        whole = _dumped(parts)
        if len(whole) <= MAX_PICKLED and type(_loaded(whole)) is type(exc):
            return parts, whole
    return (exc, data) if is_alike else (None, b"")


def _has_args_of(copy: Any, exc: BaseException) -> bool:
    """Whether the copy was made with what the exception has; True where nobody can tell."""
    try:
        return bool(copy.args == exc.args)
    except Exception:  # user code, or arrays
        return True


class _Parts:
    """Stands for an exception whose pickle does not come back: its class, arguments, attributes.

    Pickle calls the class with ``args``, which are not what a class was called with that has an
    ``__init__`` of its own and passes a text on. What cannot travel is left out.
    """

    def __init__(self, exc: BaseException, depth: int) -> None:
        text = safe_text(exc)
        self._cls = type(exc)
        self._args = tuple(_movable(each, depth, text) for each in _ARGS(exc))
        known = attributes_of(exc).items()
        moved = {name: _movable(each, depth, _NOTHING) for name, each in known}
        self._fields = {name: each for name, each in moved.items() if each is not _NOTHING}

    def __reduce__(self) -> tuple[Any, ...]:
        return assembled, (self._cls, self._args, self._fields)


def _movable(value: object, depth: int, otherwise: object) -> object:
    """Return what has a pickle that comes back as this value; exceptions in it by their parts."""
    if isinstance(value, BaseException):
        form, data = portable(value, depth + 1)
        return form if data else otherwise
    if type(value) in (list, tuple) and any(isinstance(each, BaseException) for each in value):  # type: ignore[attr-defined]
        return [_movable(each, depth, str(otherwise)) for each in value]  # type: ignore[attr-defined]
    data = _dumped(value)
    is_whole = 0 < len(data) <= MAX_PICKLED and _loaded(data, _NOTHING) is not _NOTHING
    return value if is_whole else otherwise


def assembled(
    cls: type[BaseException], args: tuple[Any, ...], fields: dict[str, Any]
) -> BaseException:
    """Make an exception of its parts."""
    made = blank(cls, args)
    put_back(made, fields)
    return made


_E = TypeVar("_E", bound=BaseException)


def blank(cls: type[_E], args: tuple[Any, ...]) -> _E:
    """Make an exception without its ``__init__``, and where it must be without its ``__new__``."""
    made: _E
    builtin: Any = next(base for base in cls.__mro__ if base.__module__ == "builtins")
    try:
        made = cls.__new__(cls, *args)
    except Exception:
        made = builtin.__new__(cls, *args)
    with contextlib.suppress(Exception):
        builtin.__init__(made, *args)  # sets what is not in ``__dict__``, such as errno
    _SET_ARGS(made, args)
    return made


def attributes_of(exc: BaseException) -> dict[str, Any]:
    """Return what it has beside ``args``: also slots, errno, a UnicodeError's positions."""
    found = dict(_DICT(exc))
    for name, field in _fields_of(type(exc)).items():
        with contextlib.suppress(Exception):
            value = field.__get__(exc)
            if value is not None:
                found[name] = value
    return found


def put_back(exc: BaseException, fields: Mapping[str, Any]) -> None:
    """Set attributes, whatever the class makes of that."""
    outside = _fields_of(type(exc))
    _DICT(exc).update({name: each for name, each in fields.items() if name not in outside})
    for name in fields.keys() & outside.keys():
        with contextlib.suppress(AttributeError, TypeError):  # read-only
            outside[name].__set__(exc, fields[name])


def _fields_of(cls: type[BaseException]) -> dict[str, Any]:
    return {
        name: field
        for base in reversed(cls.__mro__)
        if base not in (Exception, BaseException, object)
        for name, field in vars(base).items()
        if isinstance(field, _C_FIELDS) and not name.startswith("__")
    }


def _dumped(value: object) -> bytes:
    """Pickle; b"" for what cannot be."""
    from rustray.task import pickling

    try:
        return pickling.dumps(value)
    except BaseException:  # user code, which may raise anything
        return b""


def _loaded(data: bytes, otherwise: object = None) -> object:
    from rustray.task import pickling

    try:
        found: object = pickling.loads(data)
    except BaseException:
        return otherwise
    return found
