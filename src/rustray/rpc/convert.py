"""What the codecs share: texts that can travel, numbers that fit, and errors for what does not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, ParamSpec, Protocol, TypeVar, cast

from google.protobuf.message import DecodeError

from rustray.common.durability import DURABILITIES, Durability
from rustray.common.errors import CommunicationError
from rustray.common.resources import MAX_AMOUNT, MAX_NAMES, UNIT, ResourceSet
from rustray.proto.rustray.v1 import common_pb2 as common
from rustray.task.functions import FunctionInfo, Parameter
from rustray.task.needs import Alternative
from rustray.task.retries import RetryOn, exception_names
from rustray.task.runtime_env import RuntimeEnv
from rustray.task.selectors import parse_selector
from rustray.task.spec import DEFAULT_CRASH_LIMIT, MAX_UNIX_S, Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

MAX_RANGE: Final = 1 << 24
"""Tasks that one range on the wire may name."""
MAX_CLASS_NUMBER: Final = (1 << 31) - 1
_MAX_UNITS: Final = int(MAX_AMOUNT) * UNIT
_KEPT_CLASSES: Final = 1024
_KEPT_BYTES: Final = 2048
_STATES: Final = {state + 1: state for state in TaskState}
_MALFORMED: Final = (DecodeError, ValueError, OverflowError, TypeError, KeyError)


class MessageType(Protocol[T_co]):
    """A generated protobuf class."""

    def FromString(self, s: bytes, /) -> T_co:  # noqa: N802 - protobuf's name
        """Parse."""


def parse(kind: MessageType[T], data: bytes, what: str) -> T:
    """Parse a protobuf message.

    Raises:
        CommunicationError: the bytes are not one.
    """
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise CommunicationError(f"malformed {what}: not a protobuf message of its kind") from error


def total(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a decoder raise `CommunicationError` for everything that is malformed."""

    def decorate(decode: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(decode)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return decode(*args, **kwargs)
            except _MALFORMED as error:
                raise CommunicationError(f"malformed {what}: {error}") from error

        return checked

    return decorate


def text(value: str) -> str:
    """Return a text that UTF-8 can carry: lone surrogates become question marks."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return value.encode(errors="replace").decode()
    return value


def clip(value: str, max_bytes: int) -> str:
    """Shorten a text to so many bytes of UTF-8, at a character's border."""
    raw = value.encode(errors="replace")
    if len(raw) <= max_bytes:
        return raw.decode()
    return raw[: max_bytes - 3].decode(errors="ignore") + "…"


def state_to_wire(state: TaskState | None) -> common.TaskState:
    """Number a state for the wire, where 0 means "not said"."""
    return cast("common.TaskState", 0 if state is None else state + 1)


def state_from_wire(number: int) -> TaskState:
    """Return the state of that number.

    Raises:
        ValueError: there is none.
    """
    state = _STATES.get(number)
    if state is None:
        raise ValueError(f"{number} is no task state")
    return state


def codec_from_wire(number: int) -> Codec:
    """Return the codec of that number.

    Raises:
        ValueError: there is none.
    """
    try:
        return Codec(number)
    except ValueError:
        raise ValueError(f"{number} is no codec") from None


def durability_from_wire(number: int) -> Durability:
    """Return the level of that number.

    Raises:
        ValueError: there is none; the message names those that there are.
    """
    try:
        return Durability(number)
    except ValueError:
        names = ", ".join(f"{name} ({Durability[name.upper()]})" for name in DURABILITIES)
        raise ValueError(f"{number} is no level of durability; there are {names}") from None


def durability_to_wire(level: Durability) -> common.Durability:
    """Number a level for the wire."""
    return cast("common.Durability", int(level))


def executor_from_wire(number: int) -> ExecutorKind:
    """Return the executor of that number; 0 is a process.

    Raises:
        ValueError: there is none.
    """
    try:
        return ExecutorKind(number or ExecutorKind.PROCESS)
    except ValueError:
        raise ValueError(f"{number} is no executor") from None


def amounts_from_wire(amounts: Mapping[str, float], what: str) -> dict[str, float]:
    """Copy amounts by name, whole numbers as int.

    Raises:
        ValueError: one is negative or not finite.
    """
    found: dict[str, float] = {}
    for name, amount in amounts.items():
        if not (math.isfinite(amount) and amount >= 0):
            raise ValueError(f"{what} {name!r:.80} must be a finite number of at least 0")
        found[name] = int(amount) if amount.is_integer() else amount
    return found


def count_from_wire(count: int, first: int, limit: int) -> int:
    """Check a range of ``count`` from ``first``, all below ``limit``.

    Raises:
        ValueError: it is empty, too long, or ends beyond the limit.
    """
    if not 0 < count <= MAX_RANGE:
        raise ValueError(f"a range of {count} tasks; 1 to {MAX_RANGE} are allowed")
    if first + count > limit:
        raise ValueError(f"a range that ends at {first + count}, beyond {limit}")
    return count


def seconds_from_wire(name: str, value: float) -> float:
    """Check a duration, 0 meaning none.

    Raises:
        ValueError: it is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name}={value} must be a finite number of seconds of at least 0")
    return value


def moment_from_wire(unix_s: float) -> float:
    """Check a deadline, 0 meaning none.

    Raises:
        ValueError: it is no moment before the year 10,000.
    """
    if not 0 <= unix_s < MAX_UNIX_S:  # which NaN is not either
        raise ValueError(f"deadline_unix_s={unix_s} is not a moment in seconds of Unix time")
    return unix_s


def put_task_class(message: common.TaskClass, task_class: TaskClass) -> None:
    """Write a task class into a message."""
    message.function = text(task_class.function)
    message.code_hash = task_class.code_hash
    message.nargs_plus_one = task_class.nargs + 1
    message.kwarg_names.extend(map(text, task_class.kwarg_names))
    for name, units in task_class.resources:
        message.resource_units[text(name)] = units
    for key, value in task_class.labels:
        message.labels[text(key)] = text(value)
    message.priority = task_class.priority
    message.max_retries = task_class.max_retries
    put_retry_on(message, task_class.retry_exceptions)
    if task_class.retry_delay_s is not None:
        message.retry_delay_s = task_class.retry_delay_s
    message.crash_limit = task_class.crash_limit
    message.timeout_s = task_class.timeout_s
    message.queue_timeout_s = task_class.queue_timeout_s
    message.total_timeout_s = task_class.total_timeout_s
    message.codec = cast("common.Codec", int(task_class.codec))
    message.executor = cast("common.Executor", int(task_class.executor))
    message.wait_for_resources = task_class.wait_for_resources
    message.oom_retries = task_class.oom_retries
    message.exclusive = task_class.exclusive
    message.detached = task_class.is_detached
    message.stream_window = task_class.stream_window
    message.results_stay = task_class.results_stay
    message.needs_function = text(task_class.needs_function)
    _put_texts(message.label_selector, task_class.label_selector)
    _put_texts(message.label_selector_soft, task_class.label_selector_soft)
    for each in task_class.fallback:
        _put_alternative(message.fallback.add(), each)
    message.alternative = task_class.alternative
    message.depth = task_class.depth
    message.inherits_priority = task_class.inherits_priority
    message.inherits_retries = task_class.inherits_retries
    message.has_inputs = task_class.has_inputs
    message.put = task_class.is_put
    if task_class.num_returns != 1:
        message.num_returns = task_class.num_returns
    env = task_class.runtime_env
    if env is not None:
        message.runtime_env.SetInParent()
        _put_texts(message.runtime_env.env_vars, env.env_vars)
        message.runtime_env.working_dir = env.working_dir
        message.runtime_env.py_modules.extend(env.py_modules)


def _put_texts(target: MutableMapping[str, str], pairs: Iterable[tuple[str, str]]) -> None:
    for key, value in pairs:
        target[text(key)] = text(value)


def _put_alternative(message: common.Alternative, each: Alternative) -> None:
    for name, units in each.resources:
        message.resource_units[text(name)] = units
    _put_texts(message.labels, each.labels)
    _put_texts(message.label_selector, each.label_selector)
    _put_texts(message.label_selector_soft, each.label_selector_soft)


def _get_alternative(message: common.Alternative | common.TaskClass) -> Alternative:
    """Read what is needed of a worker, and check it.

    Raises:
        ValueError: an amount, a name or a selector makes no sense.
    """
    units = dict(message.resource_units)
    if len(units) > MAX_NAMES:
        raise ValueError(f"{len(units)} resources named, at most {MAX_NAMES} are allowed")
    for name, amount in units.items():
        if amount > _MAX_UNITS:
            raise ValueError(f"{name!r:.80} is more than any machine has (limit {MAX_AMOUNT:g})")
    ResourceSet.of(dict.fromkeys(units, 0.0))  # judges the names
    return Alternative(
        ResourceSet(units),
        tuple(sorted(message.labels.items())),
        parse_selector("label_selector", message.label_selector),
        parse_selector("label_selector_soft", message.label_selector_soft),
    )


def _get_runtime_env(message: common.TaskClass) -> RuntimeEnv | None:
    if not message.HasField("runtime_env"):
        return None
    env = message.runtime_env
    return RuntimeEnv(tuple(sorted(env.env_vars.items())), env.working_dir, tuple(env.py_modules))


def put_retry_on(message: common.TaskClass, retry_on: RetryOn) -> None:
    """Write which exceptions are retried."""
    if isinstance(retry_on, tuple):
        message.retry_exception_names.extend(retry_on)
    else:
        message.retry_exceptions = retry_on


def get_retry_on(message: common.TaskClass | common.TaskRequest) -> RetryOn:
    """Read which exceptions are retried.

    Raises:
        ValueError: too many, or one is not a name.
    """
    return message.retry_exceptions or exception_names(message.retry_exception_names)


def get_task_class(message: common.TaskClass) -> TaskClass:
    """Read a task class and check every field.

    Raises:
        ValueError: a field is out of range; the message names it.
    """
    data = message.SerializeToString()
    return _kept_class(data) if len(data) <= _KEPT_BYTES else _read_class(message)


@functools.lru_cache(_KEPT_CLASSES)
def _kept_class(data: bytes) -> TaskClass:
    # Unary calls bring the class with each task, and those of a program are few.
    return _read_class(common.TaskClass.FromString(data))


def _read_class(message: common.TaskClass) -> TaskClass:
    own = _get_alternative(message)
    found = TaskClass(
        function=message.function,
        code_hash=message.code_hash,
        nargs=message.nargs_plus_one - 1,
        kwarg_names=tuple(sorted(message.kwarg_names)),
        resources=own.resources,
        labels=own.labels,
        label_selector=own.label_selector,
        label_selector_soft=own.label_selector_soft,
        fallback=tuple(map(_get_alternative, message.fallback)),
        alternative=message.alternative,
        runtime_env=_get_runtime_env(message),
        priority=message.priority,
        max_retries=message.max_retries,
        retry_exceptions=get_retry_on(message),
        retry_delay_s=message.retry_delay_s if message.HasField("retry_delay_s") else None,
        crash_limit=message.crash_limit or DEFAULT_CRASH_LIMIT,
        timeout_s=message.timeout_s,
        queue_timeout_s=message.queue_timeout_s,
        total_timeout_s=message.total_timeout_s,
        codec=codec_from_wire(message.codec),
        executor=executor_from_wire(message.executor),
        wait_for_resources=message.wait_for_resources,
        oom_retries=message.oom_retries,
        depth=message.depth,
        inherits_priority=message.inherits_priority,
        inherits_retries=message.inherits_retries,
        exclusive=message.exclusive,
        is_detached=message.detached,
        has_inputs=message.has_inputs,
        num_returns=message.num_returns or 1,
        is_put=message.put,
        stream_window=message.stream_window,
        results_stay=message.results_stay,
        needs_function=message.needs_function,
    )
    found.validate()
    return found


def encode_task_class(task_class: TaskClass) -> bytes:
    """Encode a class as it is kept: a protobuf message, whatever version reads it."""
    message = common.TaskClass()
    put_task_class(message, task_class)
    return message.SerializeToString()


def decode_task_class(data: bytes) -> TaskClass:
    """Decode what `encode_task_class` has encoded.

    Raises:
        ValueError: it is malformed.
    """
    try:
        return get_task_class(common.TaskClass.FromString(data))
    except DecodeError as error:
        raise ValueError("a malformed task class") from error


def put_function(message: common.Function, info: FunctionInfo) -> None:
    """Write a function's description into a message."""
    message.name = text(info.name)
    for parameter in info.parameters:
        message.parameters.add(
            name=text(parameter.name),
            kind=parameter.kind,
            is_required=parameter.is_required,
            annotation=text(parameter.annotation),
        )
    message.doc = text(info.doc)
    message.signature = text(info.signature)
    message.executor = cast("common.Executor", int(info.executor))
    for name, amount in info.resources.items():
        message.resources[text(name)] = amount


_PARAMETER_KINDS: Final = frozenset({"positional", "either", "args", "keyword", "kwargs"})


def get_function(message: common.Function) -> FunctionInfo:
    """Read a function's description.

    Raises:
        ValueError: a field is out of range.
    """
    for parameter in message.parameters:
        if parameter.kind not in _PARAMETER_KINDS:
            raise ValueError(f"{parameter.kind!r:.80} is no kind of parameter")
    return FunctionInfo(
        message.name,
        tuple(Parameter(p.name, p.kind, p.is_required, p.annotation) for p in message.parameters),
        message.doc,
        message.signature,
        executor_from_wire(message.executor),
        amounts_from_wire(message.resources, "resource"),
    )


def put_amounts(target: Any, amounts: Mapping[str, float]) -> None:
    """Copy amounts by name into a protobuf map."""
    for name, amount in amounts.items():
        target[text(name)] = amount


def put_texts(target: Any, texts: Mapping[str, str]) -> None:
    """Copy texts by name into a protobuf map."""
    for key, value in texts.items():
        target[text(key)] = text(value)
