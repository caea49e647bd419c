"""`@rustray.remote`: a function whose calls run somewhere in the cluster."""

from __future__ import annotations

import functools
import inspect
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from types import FunctionType
from typing import Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from rustray.client import context
from rustray.client.derived import parts_of
from rustray.client.generators import RefGenerator
from rustray.client.keeping import put_large
from rustray.client.options import (
    check_options,
    function_name,
    imply_streaming,
    pickle_function,
    task_class,
)
from rustray.client.refs import ClassEntry, TaskRef
from rustray.client.session import ClientSession
from rustray.client.taking import encode_taking, takes_any
from rustray.common.durability import parse_durability
from rustray.task.codec import encode_call
from rustray.task.flat import FlatValue
from rustray.task.pickling import ATOMS, PROTOCOL, dumps_call_parts
from rustray.task.spec import Codec, deadline_unix_s
from rustray.task.streams import STREAMING

P = ParamSpec("P")
T = TypeVar("T")

_encode = dumps_call_parts
_dumps = pickle.dumps
_NO_ARGUMENTS: Final = pickle.dumps(((), {}), PROTOCOL)

LARGE_CALL_BYTES: Final = 256 << 10
"""Large arguments of a call above this size may go to a worker of this machine."""


class RemoteFunction(Generic[P, T]):
    """A function that runs as tasks: ``f.remote(...)`` hands one in and returns its reference.

    It is cloudpickled once, at its first use in a session; what its global names refer to
    at that moment goes with it.
    """

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, function)
        self._function = function
        self._options = options
        self._entry: ClassEntry | None = None
        self._taking: ClassEntry | None = None
        returns = options.get("num_returns", 1)
        self._returns: int = 1 if returns == STREAMING else returns

    # (Any, for each argument may as well be a reference to what the function wants.)
    def remote(self, /, *args: Any, **kwargs: Any) -> TaskRef[T]:
        """Hand in one task and return at once.

        A reference among the arguments stands for its value: the task starts when that is there,
        and fails as the other one does. References inside of lists, dicts and the like stay what
        they are. With ``num_returns=n`` a list of n references comes back.

        Raises:
            PayloadError: an argument cannot travel; names it and the place in it.
            RustRayError: the session is closed.
        """
        # Measured: a benchmark of 100,000 small tasks spends a third of its time in here.
        entry = self._entry
        if entry is None or entry.owner is not context.current_session:
            entry = self._bind()
        if not args and not kwargs:
            payload: bytes | FlatValue = _NO_ARGUMENTS
        elif len(args) == 1 and not kwargs and type(args[0]) in ATOMS:
            payload = _dumps((args, kwargs), PROTOCOL)
        elif takes_any(args, kwargs):
            return self._remote_taking(entry, args, kwargs)  # type: ignore[no-any-return]
        else:
            try:
                payload = _encode(args, kwargs)
            except Exception:
                payload = encode_call(Codec.PICKLE, args, kwargs)
        if len(payload) > LARGE_CALL_BYTES:
            placed = put_large(entry, args, kwargs, len(payload))
            if placed is not None:
                return self._remote_taking(entry, *placed)  # type: ignore[no-any-return]
        if self._returns != 1:
            return parts_of(entry.submit(entry, payload), self._returns)  # type: ignore[return-value]
        return entry.submit(entry, payload)

    def _remote_taking(
        self, entry: ClassEntry, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        payload, taken = encode_taking(args, kwargs)
        if taken and len(payload) > LARGE_CALL_BYTES:
            placed = put_large(entry, args, kwargs, len(payload), takes_any=True)
            if placed is not None:
                payload, taken = encode_taking(*placed)
        session = entry.owner
        assert isinstance(session, ClientSession)
        if not taken:
            ref = entry.submit(entry, payload)
        else:
            taking = self._taking
            if taking is None or taking.owner is not session:
                taking = self._taking = session.define(
                    replace(entry.task_class, has_inputs=True),
                    entry.code,
                    entry.deadline_unix_s,
                    entry.durability,
                )
            ref = session.submit_taking(taking, payload, taken)
        return ref if self._returns == 1 else parts_of(ref, self._returns)

    def options(self, **overrides: Any) -> RemoteFunction[P, T]:
        """Return the same function with other options; see `rustray.remote`.

        Raises:
            ValueError: an unknown option, or a value out of range.
        """
        check_options(overrides)
        return make_remote(self._function, {**self._options, **overrides})

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Refuse: the call would run here and not in the cluster."""
        name = _shown(self._function).rpartition(".")[2]
        raise TypeError(
            f"{name}() runs as a task: call {name}.remote(...) and rustray.get() its reference; "
            f"to run it here, call {name}.__wrapped__(...)"
        )

    def __reduce__(self) -> Any:
        # Without the session's entry: a task may refer to its own function by its global name.
        return _rebuild, (self._function, self._options)

    def __repr__(self) -> str:
        return f"<remote function {_shown(self._function)}>"

    def _bind(self) -> ClassEntry:
        session = context.ensure_session()
        known = self._entry
        if known is not None and known.owner is session:
            return known
        code, code_hash = pickle_function(self._function)
        entry = session.define(
            task_class(self._function, code_hash, self._options),
            code,
            deadline_unix_s(self._options.get("deadline")),
            parse_durability(self._options.get("durability")),
            self._options.get("runtime_env"),
            may_stay=True,
        )
        self._entry = entry
        return entry


class RemoteGenerator(RemoteFunction[P, T]):
    """A generator function that runs as tasks: ``f.remote(...)`` returns a `RefGenerator`."""

    def remote(self, /, *args: P.args, **kwargs: P.kwargs) -> RefGenerator[T]:  # type: ignore[override]
        """Hand in one task and return its items to come, at once.

        Raises:
            PayloadError: an argument cannot travel; names it and the place in it.
            RustRayError: the session is closed.
        """
        return RefGenerator(super().remote(*args, **kwargs))

    def options(self, **overrides: Any) -> RemoteGenerator[P, T]:
        """See `RemoteFunction.options`; with another ``num_returns`` it is no stream any more."""
        return cast("RemoteGenerator[P, T]", super().options(**overrides))


def make_remote(function: Callable[..., Any], options: dict[str, Any]) -> RemoteFunction[Any, Any]:
    """Return the remote function of checked options; generators are streams.

    Raises:
        ValueError: ``num_returns=1`` for a generator, or a generator elsewhere than in a process.
    """
    options = imply_streaming(function, options)
    kind = RemoteGenerator if options.get("num_returns") == STREAMING else RemoteFunction
    return kind(function, options)


def _shown(function: Callable[..., Any]) -> str:
    """Return a name for messages; of an object that can be called, its class's."""
    name: str = getattr(function, "__qualname__", type(function).__qualname__)
    return name.removesuffix(".__call__")


def _rebuild(function: Callable[..., Any], options: dict[str, Any]) -> RemoteFunction[Any, Any]:
    return make_remote(function, options)


class Decorator(Protocol):
    """What `remote` returns when it is given options only."""

    @overload
    def __call__(self, function: Callable[P, Iterator[T]], /) -> RemoteGenerator[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, AsyncIterator[T]], /) -> RemoteGenerator[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[T]], /) -> RemoteFunction[P, T]: ...
    @overload
    def __call__(self, function: Callable[P, T], /) -> RemoteFunction[P, T]: ...
    def __call__(self, function: Any, /) -> Any:
        """Decorate a function."""


@overload
def remote(function: Callable[P, Iterator[T]], /) -> RemoteGenerator[P, T]: ...
@overload
def remote(function: Callable[P, AsyncIterator[T]], /) -> RemoteGenerator[P, T]: ...
@overload
def remote(function: Callable[P, Awaitable[T]], /) -> RemoteFunction[P, T]: ...
@overload
def remote(function: Callable[P, T], /) -> RemoteFunction[P, T]: ...
@overload
def remote(**options: Any) -> Decorator: ...
def remote(function: Any = None, /, **options: Any) -> Any:
    """Make a function run as tasks: ``@remote`` or ``@remote(num_cpus=2, ...)``.

    Args:
        function: What to decorate: a function, or what else can be called and is no class, such as
            a `functools.partial`; its state travels as it is at the first call.
        **options: num_cpus (cores, default 1, fractions allowed), memory_mb, num_gpus,
            resources (name to amount), labels (what a worker must carry), runtime_env (env_vars,
            working_dir, py_modules, excludes: what its process is to be like), label_selector and
            label_selector_soft (what its labels must be, and had better be: "a", "!a", "in(a,b)",
            "!in(a,b)"), fallback_strategy (other requests, the first that fits wins; a list of
            mappings of these names), priority (int32, higher first), max_retries (re-runs after
            a lost worker, default 3, -1 without limit), retry_exceptions (True, or the classes
            or names of exceptions after which it is re-run too), retry_delay_s (pause before
            that; without it one that doubles from 1 s to 600 s, with full jitter), crash_limit
            (executors that it may kill, default 3), oom_retries (re-runs after it outgrew its
            memory_mb, default 0), timeout_s (of one run), queue_timeout_s, total_timeout_s,
            deadline (Unix time, or a datetime with a time zone, at which it is ended wherever
            it is), executor ("process", "thread" or "async"), wait_for_resources, name,
            exclusive (its attempts never overlap: a worker without the head stops it before the
            head gives it away; in a process), lifetime ("detached": the head keeps its result
            for its full time also after you have it), num_returns (how many values it returns
            that get references of their own, default 1; "streaming": it returns an iterator, as
            generator functions do by themselves), generator_backpressure_num_objects (how many
            items may be yielded and not consumed before the generator waits, default 128),
            durability ("full", "process" or "memory": what it survives once accepted; without it
            the head's level).

    Raises:
        ValueError: an unknown option, or a value out of range.
        TypeError: a class, or what cannot be called.
    """
    check_options(options)

    def decorate(target: Any) -> RemoteFunction[Any, Any]:
        if inspect.isclass(target):
            raise TypeError(
                f"@rustray.remote on the class {target.__name__}: actors are not part of this "
                "version; decorate functions"
            )
        if isinstance(target, RemoteFunction):
            raise TypeError("the function is a remote function already; use .options(...)")
        if not callable(target):
            raise TypeError(f"@rustray.remote decorates a function, not {target!r:.80}")
        if not hasattr(target, "__name__") and isinstance(type(target).__call__, FunctionType):
            # By its method, which says whether it is a coroutine function or a generator.
            named = {"name": function_name(target), **options}
            return make_remote(target.__call__, named)
        return make_remote(target, options)

    return decorate if function is None else decorate(function)
