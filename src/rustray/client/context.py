"""The program's one session: `init`, `shutdown`, and the calls that take references."""

from __future__ import annotations

import asyncio
import atexit
import importlib
import os
import sys
import threading
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, overload

from rustray.client import waiting
from rustray.client.addresses import check_address
from rustray.client.channels import Channel
from rustray.client.derived import Borrowed
from rustray.client.generators import RefGenerator
from rustray.client.refs import FAILED, SUCCEEDED, TaskRef
from rustray.client.runtime_envs import Packer
from rustray.client.session import ClientSession
from rustray.client.values import Placed
from rustray.common.errors import ObjectLost
from rustray.task import relay
from rustray.task.codec import encode_value, parts_encoder
from rustray.task.spec import Codec, TaskClass
from rustray.task.views import Explanation

T = TypeVar("T")

PUT: Final = TaskClass("rustray.put", is_put=True, codec=Codec.PICKLE, wait_for_resources=True)

current_session: ClientSession | None = None
"""The session of `init`; read on the hot path, written under ``_lock``."""

_runtime: Runtime | None = None
_lock = threading.RLock()
_was_forked = False

# By name: both stand above this module, the embedded cluster on head, worker and client.
_RUNTIME_MODULE = "rustray.runtime"
_MAPPING_MODULE = "rustray.client.mapping"
_NESTED_MODULE = "rustray.client.nested"


class Runtime(Protocol):
    """What stands behind a session: an embedded cluster, or a connection to a head.

    Attributes:
        session: Where tasks go.
        address: ``rustray://host:port``, or "" for an embedded cluster.
        slots: Tasks of one core that can run at once, as far as known.
        channel: How its locks, semaphores, events and queues reach the head.
    """

    session: ClientSession
    address: str
    slots: int
    channel: Channel

    def count_slots(self) -> int:
        """Ask how many tasks of one core can run at once."""

    def explain(self, task_id: str, timeout_s: float) -> Explanation:
        """Ask why a task is where it is; raises `TimeoutError`, and what the head answers."""

    def refresh_slots(self) -> None:
        """Ask again, without waiting: ``slots`` changes when the answer comes."""

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run a plain function on the session's thread; takes no lock: finalisers may call it."""

    def close(self) -> None:
        """Stop everything; idempotent, bounded in time, from any thread but the loop's."""


class Context:
    """What `init` returns: ``with rustray.init(): ...`` ends in a `shutdown`.

    Attributes:
        address: ``rustray://host:port``, or "" for an embedded cluster.
    """

    def __init__(self, runtime: Runtime | None) -> None:
        """Stand for a runtime; None: in a task, for the cluster that runs it."""
        self._runtime = runtime
        self.address = runtime.address if runtime is not None else ""

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.shutdown()

    async def __aenter__(self) -> Context:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await asyncio.to_thread(self.shutdown)

    def map(
        self,
        fn: Any,
        iterable: Iterable[Any],
        *more_iterables: Iterable[Any],
        **settings: Any,
    ) -> Any:
        """`rustray.map`, in this cluster; returns its `MapIterator`."""
        mapping = importlib.import_module(_MAPPING_MODULE)
        return mapping.map_over(self._runtime, fn, (iterable, *more_iterables), settings)

    def amap(
        self,
        fn: Any,
        iterable: Iterable[Any] | AsyncIterable[Any],
        *more_iterables: Iterable[Any] | AsyncIterable[Any],
        **settings: Any,
    ) -> Any:
        """`rustray.amap`, in this cluster; returns its `AsyncMapIterator`."""
        mapping = importlib.import_module(_MAPPING_MODULE)
        return mapping.amap_over(self._runtime, fn, (iterable, *more_iterables), settings)

    def shutdown(self) -> None:
        """End what this `init` has started; nothing happens if that has been done."""
        _shutdown(self._runtime)

    def __repr__(self) -> str:
        return f"<rustray {self.address or 'embedded cluster'}>"


def init(  # noqa: PLR0913 - settings, by name
    address: str | None = None,
    *,
    num_cpus: int | None = None,
    memory_mb: int | None = None,
    num_gpus: float | None = None,
    token: str | None = None,
    ca_file: str | os.PathLike[str] | None = None,
    connect_timeout_s: float = 10.0,
    backpressure_timeout_s: float = 600.0,
    log_to_driver: bool = True,
    runtime_env: Mapping[str, Any] | None = None,
    ignore_reinit_error: bool = False,
) -> Context:
    """Start an embedded cluster, or connect to a head.

    Args:
        address: ``rustray://host:port``; None takes ``RUSTRAY_ADDRESS``, and without that
            an embedded cluster: head and worker in this process, executors as children.
        num_cpus: Slots of the embedded cluster; None takes the machine's.
        memory_mb: Memory of the embedded cluster; None takes the machine's.
        num_gpus: GPUs of the embedded cluster; None takes those that are found.
        token: Access token; None takes ``RUSTRAY_TOKEN``, ``RUSTRAY_TOKEN_FILE``, or the
            local state directory's.
        ca_file: The head's CA certificate; None takes the local state directory's.
        connect_timeout_s: How long to wait for the head.
        backpressure_timeout_s: How long tasks wait here, to be handed in again and again, while
            the head takes no more of them; then they fail with `ResourceExhausted`.
        log_to_driver: Show here what the program's tasks print: lines with function, process and
            worker before them, within bounds; those that several processes print alike are
            folded (not so with ``RUSTRAY_DEDUP_LOGS=0``). `docs/logs.md` has more.
        runtime_env: What the processes of all tasks are to be like: ``env_vars``, ``working_dir``,
            ``py_modules``, ``excludes``; see docs/resources.md. Directories are packed now.
        ignore_reinit_error: Return the present context if there is one; in a task that is the
            cluster that runs it.

    Raises:
        RuntimeError: it has been called already.
        HeadUnavailable: no head answers.
        AuthenticationError: the token is not good.
        ValueError: a value is out of range.
        TypeError: the address is no text.
        PayloadError: a directory of ``runtime_env`` cannot be packed.
    """
    global _runtime, current_session, _was_forked
    check_address(address, "num_cpus")
    if ignore_reinit_error and relay.seat() is not None:
        return Context(None)
    refuse_in_executor()
    envs = Packer(runtime_env)
    envs.prepare(None)
    with _lock:
        if _runtime is not None:
            if ignore_reinit_error:
                return Context(_runtime)
            raise RuntimeError(
                "rustray.init() has been called already; call rustray.shutdown() first, or pass "
                "ignore_reinit_error=True"
            )
        _was_forked = False
        if address is None:
            address = os.environ.get("RUSTRAY_ADDRESS") or None
        _runtime = start_runtime(
            address,
            num_cpus=num_cpus,
            memory_mb=memory_mb,
            num_gpus=num_gpus,
            token=token,
            ca_file=ca_file,
            connect_timeout_s=connect_timeout_s,
            backpressure_timeout_s=backpressure_timeout_s,
            log_to_driver=log_to_driver,
        )
        _runtime.session.envs = envs
        current_session = _runtime.session
        return Context(_runtime)


async def ainit(address: str | None = None, **settings: Any) -> Context:
    """`init` for coroutines: the event loop goes on meanwhile."""
    return await asyncio.to_thread(init, address, **settings)


def start_runtime(address: str | None, **settings: Any) -> Runtime:
    """Start what `init` and `Executor` stand on; see `init` for the settings.

    Raises:
        ValueError: a setting that only embedded clusters or only connections have.
    """
    if address in ("auto", "local", ""):
        raise ValueError(
            f"{address!r} is no address: give rustray://HOST:PORT to connect; without an address "
            "RUSTRAY_ADDRESS is taken if it is set, and else an embedded cluster is started"
        )
    module = importlib.import_module(_RUNTIME_MODULE)
    runtime: Runtime = module.start(address, **settings)
    return runtime


def current_runtime() -> Runtime | None:
    """Return what `init` started, or None."""
    return _runtime


def is_initialized() -> bool:
    """Say whether `init` (or a first ``.remote()``) has been called, and `shutdown` not yet.

    In a task it is so from the start.
    """
    return _runtime is not None or relay.seat() is not None


def shutdown() -> None:
    """Close the session and stop the embedded cluster; without one it does nothing."""
    _shutdown(None)


async def ashutdown() -> None:
    """`shutdown` for coroutines."""
    await asyncio.to_thread(shutdown)


def _shutdown(expected: Runtime | None) -> None:
    global _runtime, current_session
    with _lock:
        runtime = _runtime
        if runtime is None or (expected is not None and runtime is not expected):
            return
        _runtime = None
        current_session = None
        runtime.close()


def ensure_session() -> ClientSession:
    """Return the task's session in a task, else the program's.

    The first call of a program without `init` starts an embedded cluster.

    Raises:
        RuntimeError: in a process that was forked from one with a session; in an executor, in a
            thread or process that belongs to no task.
    """
    session = current_session
    if session is not None:
        return session
    seat = relay.seat()
    if seat is not None:
        # By name: what a task needs is not loaded where there is none.
        nested: ClientSession = importlib.import_module(_NESTED_MODULE).session_of(seat)
        return nested
    if _was_forked:
        raise RuntimeError(
            "this process was forked from one that used rustray: its session stayed with the "
            "parent; call rustray.init() here to get one of its own"
        )
    init(ignore_reinit_error=True)
    assert current_session is not None
    return current_session


@overload
def get(refs: TaskRef[T], *, timeout: float | None = None) -> T: ...
@overload
def get(refs: Sequence[TaskRef[T]], *, timeout: float | None = None) -> list[T]: ...
def get(refs: Any, *, timeout: float | None = None) -> Any:
    """Wait for tasks and return their values, in the order of the references.

    Args:
        refs: One reference, or a list of them.
        timeout: Seconds to wait for all of them together; None waits for ever.

    Raises:
        GetTimeout: the time passed; the tasks go on.
        TaskExecutionFailed: a task's code raised; the error is also an instance of the class
            of the user's exception. Raised as soon as one of the tasks fails.
        TaskCancelled, TaskTimeout, TaskOutOfMemory, WorkerLost, TaskPoisoned: a task ended so.
    """
    if isinstance(refs, TaskRef):
        return waiting.get_one(refs, timeout)
    return waiting.get_many(_as_list(refs), timeout)


@overload
async def aget(refs: TaskRef[T], *, timeout: float | None = None) -> T: ...  # noqa: ASYNC109
@overload
async def aget(
    refs: Sequence[TaskRef[T]],
    *,
    timeout: float | None = None,  # noqa: ASYNC109
) -> list[T]: ...
async def aget(refs: Any, *, timeout: float | None = None) -> Any:  # noqa: ASYNC109 - as in get
    """`get` for coroutines; being cancelled leaves the tasks alone."""
    if isinstance(refs, TaskRef):
        return (await waiting.aget_many([refs], timeout))[0]
    return await waiting.aget_many(_as_list(refs), timeout)


def wait(
    refs: Sequence[TaskRef[T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,
    fetch_local: bool = True,
) -> tuple[list[TaskRef[T]], list[TaskRef[T]]]:
    """Wait until ``num_returns`` tasks have ended, however they did.

    Args:
        refs: Different references.
        num_returns: How many to wait for.
        timeout: Seconds to wait; None waits for ever, 0 only looks.
        fetch_local: Changes nothing, and is there for programs that were written for Ray: what has
            ended is ready wherever its value is, and `get` brings that here.

    Returns:
        (at most ``num_returns`` that have ended, the others), each in the order of ``refs``.

    Raises:
        ValueError: more asked for than there are, a reference twice, or ``fetch_local`` is
            no bool.
    """
    waiting.check_fetch_local(fetch_local)
    return waiting.wait_some(_as_list(refs), num_returns, timeout)


async def await_(
    refs: Sequence[TaskRef[T]],
    *,
    num_returns: int = 1,
    timeout: float | None = None,  # noqa: ASYNC109 - twin of wait
    fetch_local: bool = True,
) -> tuple[list[TaskRef[T]], list[TaskRef[T]]]:
    """`wait` for coroutines."""
    waiting.check_fetch_local(fetch_local)
    return await waiting.await_some(_as_list(refs), num_returns, timeout)


def cancel(
    refs: TaskRef[Any] | Sequence[TaskRef[Any]] | RefGenerator[Any],
    *,
    force: bool = False,
    recursive: bool = True,
) -> None:
    """Cancel tasks; `get` then raises `TaskCancelled`. Those that ended stay as they are.

    Args:
        refs: One reference, or a list of them; or what a generator task has returned.
        force: Kill the executor of a task that runs, instead of interrupting it.
        recursive: Also what these tasks have handed in themselves.
    """
    by_owner: dict[Any, list[TaskRef[Any]]] = {}
    if isinstance(refs, RefGenerator):
        refs = refs.completed()
    for ref in [refs] if isinstance(refs, TaskRef) else _as_list(refs):
        origin = ref._batch.origin_of(ref)
        by_owner.setdefault(origin._batch.owner, []).append(origin)
    for owner, own in by_owner.items():
        owner.cancel(own, force=force, recursive=recursive)


def free(refs: TaskRef[Any] | Sequence[TaskRef[Any]]) -> None:
    """Let go of values at once, wherever there are references to them; `get` then fails.

    (What the head keeps is freed for this program's references only; see docs/objects.md.)
    Without it the cluster lets go of a large value with its last reference, and of one whose
    reference was pickled when its time is over. Tasks that take it and were handed in before still
    get it. What has not ended is freed when it has.

    Args:
        refs: One reference, or a list of them, of tasks that this program has handed in.
    """
    for ref in [refs] if isinstance(refs, TaskRef) else _as_list(refs):
        if not ref.watch(_free):
            _free(ref)


def _free(ref: TaskRef[Any]) -> None:
    if ref._state != SUCCEEDED:
        return
    if type(ref._data) is Placed:
        ref._data.hold.is_lent = False
    ref._state = FAILED
    ref._data = ObjectLost("the value was freed: rustray.free() was called with its reference")


def put(value: T) -> TaskRef[T]:
    """Hand a value to the cluster, once, and return a reference to it for any number of tasks.

    The head keeps it as it keeps a result: at its level of durability, for ``result_ttl_s``, and as
    long as a task that takes it has not ended. What it does not take goes to a worker of this
    machine (docs/objects.md).

    Raises:
        PayloadError: the value cannot be pickled, or is larger than what can travel.
        TypeError: it is a reference already.
    """
    if isinstance(value, TaskRef):
        raise TypeError("that is a reference already: pass it to the task as it is")
    session = ensure_session()
    entry = session.define(PUT, b"")
    try:
        payload = parts_encoder(Codec.PICKLE)(value)
    except Exception:
        payload = encode_value(Codec.PICKLE, value)  # says what it was
    kept: TaskRef[T] | None = None
    if session.keeper is not None:
        kept = session.keeper.put(session, payload)
    return session.submit(entry, payload) if kept is None else kept


async def aput(value: T) -> TaskRef[T]:
    """`put` for coroutines: large values are encoded in another thread."""
    return await asyncio.to_thread(put, value)


def _as_list(refs: Iterable[Any]) -> list[TaskRef[Any]]:
    if isinstance(refs, RefGenerator):
        raise TypeError(
            "a generator task has no one value: iterate over what .remote() returned, or get its "
            "completed() reference to wait for the end"
        )
    if isinstance(refs, str | bytes):
        raise TypeError(f"expected task references, not {type(refs).__name__}: {refs!r:.80}")
    if isinstance(refs, TaskRef):
        raise TypeError("expected a list of task references, not one: write [ref]")
    try:
        found = list(refs)
    except TypeError:
        raise TypeError(f"expected task references, not {type(refs).__name__}") from None
    if not {TaskRef}.issuperset(map(type, found)):  # of thousands asked without a loop
        for ref in found:
            if not isinstance(ref, TaskRef):
                raise TypeError(f"expected task references, not {type(ref).__name__}: {ref!r:.80}")
    return found


def refuse_in_executor(why: str = "") -> None:
    """Refuse what is not for tasks: to start a cluster, or as is said.

    Raises:
        RuntimeError: this is an executor process.
    """
    child = sys.modules.get("rustray.worker.child")
    if child is not None and child.is_executor:
        raise RuntimeError(
            why
            or "in a task there is nothing to start: f.remote(...), rustray.get() and the others "
            "work there as they are, on the cluster that runs the task. (A process that a task has "
            "started, and a thread that one of a thread or async executor has started, do not "
            "count as the task: hand in tasks from the task itself)"
        )


def _after_fork_in_child() -> None:
    """Leave the session to the parent: its threads and sockets are not ours."""
    global _runtime, current_session, _was_forked, _lock
    _lock = threading.RLock()
    if _runtime is None:
        return
    _runtime = current_session = None
    _was_forked = True


Borrowed.find_owner = staticmethod(ensure_session)
os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(shutdown)
