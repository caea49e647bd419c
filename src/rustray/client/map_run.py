"""One map on one session: encodes parts, hands them in, and takes what comes back.

It never blocks and never waits: `rustray.client.mapping` has the two ways of doing that.
"""

from __future__ import annotations

import inspect
import pickle
import random
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final

from rustray.client import map_calls
from rustray.client.context import Runtime
from rustray.client.failures import error_of
from rustray.client.map_plan import MapPlan, Part, Rules
from rustray.client.map_tuner import TARGET_S
from rustray.client.options import (
    check_options,
    function_name,
    let_module_travel,
    pickle_function,
    task_class,
)
from rustray.client.pauses import Pauses
from rustray.client.refs import SUCCEEDED, ClassEntry, Failure, TaskRef
from rustray.client.remote import RemoteFunction
from rustray.client.session import ClientSession
from rustray.common.durability import parse_durability
from rustray.common.errors import PayloadError, RustRayError, TaskPoisoned
from rustray.task.codec import encode_call
from rustray.task.names import check_name
from rustray.task.pickling import ATOMS, PROTOCOL, dumps_call, loads
from rustray.task.retries import exception_names
from rustray.task.spec import DEFAULT_CRASH_LIMIT, DEFAULT_RETRIES, Codec, deadline_unix_s

LONGEST_S: Final = 1.0
"""A chunk that takes longer gives back what it has not begun, to be spread over all slots."""
MAX_CHUNK_BYTES: Final = 1 << 20
READ_S: Final = 0.02
"""A slow input is not waited for until a chunk is full."""
ASK_SLOTS_S: Final = 5.0

_REFERENCE: Final = (
    "an item is a task reference, and a chunk cannot wait for it: map over the values, "
    "rustray.map(fn, rustray.get(refs)), or hand in a task each, [fn.remote(ref) for ref in refs]"
)
_is_atomic: Final = ATOMS.issuperset


class MapFunction:
    """A function and its options, as classes of tasks in one session.

    Attributes:
        name: For messages.
        is_star: An item is a tuple of arguments.
        rules: What is tried again.
    """

    def __init__(
        self,
        fn: Callable[..., Any] | RemoteFunction[Any, Any] | str,
        options: Mapping[str, Any] | None,
        *,
        is_star: bool,
    ) -> None:
        """Check what the user gave.

        Raises:
            TypeError: not a function.
            ValueError: a bad option, or no name of a function.
        """
        self._options = dict(options or {})
        check_options(self._options)
        if isinstance(fn, RemoteFunction):
            self._options = {**fn._options, **self._options}
            fn = fn._function
        elif isinstance(fn, str):
            check_name("function name", fn)
            fn = map_calls.Registered(fn)
        if self._options.get("num_returns", 1) != 1:
            raise ValueError("num_returns must be 1 in a map: an item has one result")
        if not callable(fn):
            raise TypeError(f"map takes a function, or the name of one, not {fn!r:.80}")
        self.fn = fn
        self.is_star = is_star
        self.name = function_name(fn)
        retries = self._options.get("max_retries")
        self.rules = Rules(
            max_retries=DEFAULT_RETRIES if retries is None else retries,
            crash_limit=self._options.get("crash_limit") or DEFAULT_CRASH_LIMIT,
            oom_retries=self._options.get("oom_retries") or 0,
            retry_on=exception_names(self._options.get("retry_exceptions", False)),
            retry_delay_s=self._options.get("retry_delay_s"),
        )
        self._budget_s = LONGEST_S
        timeout_s = self._options.get("timeout_s")
        if timeout_s:
            self._budget_s = min(self._budget_s, timeout_s / 4)

    def take_default(self, retries: int) -> None:
        """Take a head's ``max_retries``, unless the user has named one."""
        if self._options.get("max_retries") is None:
            self.rules = replace(self.rules, max_retries=retries)

    @property
    def target_s(self) -> float:
        """Work that a chunk should have."""
        return min(TARGET_S, self._budget_s / 2)

    @property
    def cpus(self) -> float:
        """Cores that a task of it takes."""
        amount = self._options.get("num_cpus")
        return 1.0 if amount is None else float(amount)

    def chunk_entry(self, session: ClientSession) -> ClassEntry:
        """Return the class of its chunks.

        The first executor that dies under one ends it: it is then split, not run again as it is. An
        exception is no failure of the chunk.

        Raises:
            PayloadError: the function cannot be pickled.
        """
        run = map_calls.run_items_async if self._is_async else map_calls.run_items
        code = partial(run, self.fn, self.is_star, self._budget_s)
        changes = {"crash_limit": 1, "oom_retries": 0, "retry_exceptions": False}
        return self._define(session, code, changes)

    def item_entry(self, session: ClientSession) -> ClassEntry:
        """Return the class of an item that runs alone, after its first run in a chunk."""
        rules = self.rules
        changes = {
            "max_retries": max(rules.max_retries - 1, min(rules.max_retries, 0)),
            "crash_limit": max(rules.crash_limit - 1, 1),
            "oom_retries": max(rules.oom_retries - 1, min(rules.oom_retries, 0)),
        }
        return self._define(session, self.fn, changes)

    @property
    def _is_async(self) -> bool:
        call = getattr(type(self.fn), "__call__", None)  # noqa: B004 - the function behind it
        return inspect.iscoroutinefunction(self.fn) or inspect.iscoroutinefunction(call)

    def _define(
        self, session: ClientSession, call: Callable[..., Any], changes: Mapping[str, Any]
    ) -> ClassEntry:
        options = {**self._options, **changes}
        options["name"] = options.get("name") or self.name
        if options.get("executor") is None and self._is_async and not options.get("exclusive"):
            options["executor"] = "async"
        let_module_travel(self.fn)
        try:
            code, code_hash = pickle_function(call)
        except PayloadError:
            pickle_function(self.fn)  # it says whose function it is
            raise
        kind = task_class(call, code_hash, options)
        if isinstance(self.fn, map_calls.Registered):
            kind = replace(kind, needs_function=self.fn.name)
        return session.define(
            kind,
            code,
            deadline_unix_s(options.get("deadline")),
            parse_durability(options.get("durability")),
            options.get("runtime_env"),
        )


class Mail:
    """Parts that have ended, put in by the session's thread; it keeps the map itself not alive.

    Attributes:
        arrived: (part, reference), oldest first.
        wake: Called after each.
    """

    __slots__ = ("arrived", "wake")

    def __init__(self) -> None:
        self.arrived: deque[tuple[Part, TaskRef[Any]]] = deque()
        self.wake: Callable[[], None] = _nothing

    def put(self, part: Part, ref: TaskRef[Any]) -> None:
        """Take one in."""
        self.arrived.append((part, ref))
        self.wake()


class MapRun:
    """See the module.

    Attributes:
        plan: What is to be done.
        mail: What has come back and was not looked at.
        behind: What the session stands on, or None where that is not known.
        source_error: What the input raised, to be raised after the results of what came before.
    """

    def __init__(
        self,
        session: ClientSession,
        function: MapFunction,
        plan: MapPlan,
        behind: Runtime | None,
    ) -> None:
        self.plan = plan
        self.mail = Mail()
        self.source_error: BaseException | None = None
        self._session = session
        self._function = function
        self.behind = behind
        self._asked_s = time.monotonic()
        self._chunk = function.chunk_entry(session)
        self._item: ClassEntry | None = None
        self._out: dict[TaskRef[Any], Part] = {}

    @property
    def pauses(self) -> Pauses | None:
        """What lets a task that waits for the results give back its cores."""
        return self._session.pauses

    def slots(self) -> int:
        """Return how many chunks can run at once, as far as known."""
        behind = self.behind
        if behind is None:
            return 1
        now = time.monotonic()
        if now - self._asked_s > ASK_SLOTS_S:
            self._asked_s = now
            behind.refresh_slots()
        cpus = self._function.cpus
        return max(int(behind.slots / cpus), 1) if cpus > 0 else max(behind.slots, 1)

    def absorb(self) -> None:
        """Look at what has come back."""
        arrived = self.mail.arrived
        while arrived:
            part, ref = arrived.popleft()
            self._out.pop(ref, None)
            self._take_in(part, ref)

    def read(self, source: Iterator[Any], slots: int) -> None:
        """Read from the input, and hand in, until enough is under way."""
        self.send(slots)
        while count := self.plan.wanted(slots):
            self.plan.read(self._read_items(source, count))
            self.send(slots)

    def end_of_source(self, error: BaseException | None = None) -> None:
        """Note that there is no more input, and what it raised if it did."""
        self.plan.is_at_end = True
        self.source_error = error

    def send(self, slots: int) -> None:
        """Hand in what is due.

        Raises:
            RustRayError: the session is closed.
        """
        while (part := self.plan.next_to_send(slots, time.monotonic())) is not None:
            self._send(part)

    def cancel(self) -> None:
        """Cancel what is under way."""
        out, self._out = self._out, {}
        if out and self._session.broken is None:
            self._session.cancel(list(out), force=False)

    def abandon(self) -> None:
        """`cancel` from a finaliser, which may run anywhere, also under a lock of the session."""
        if self._out and self.behind is not None:
            self.behind.call_soon(self.cancel)

    def waiting_refs(self) -> list[TaskRef[Any]]:
        """Return references to what is under way."""
        return list(self._out)

    # ---- inside -------------------------------------------------------------------------

    def _read_items(self, source: Iterator[Any], count: int) -> list[Any]:
        items: list[Any] = []
        append, clock = items.append, time.perf_counter
        stop_at = clock() + READ_S
        try:
            for item in source:
                append(item)
                if len(items) >= count or clock() >= stop_at:
                    return items
        except Exception as error:
            self.end_of_source(error)
            return items
        except BaseException:
            self.plan.read(items)  # a Ctrl-C: who goes on shall not miss what was read
            raise
        self.end_of_source()
        return items

    def _send(self, part: Part) -> None:
        try:
            entry, payload = self._encode(part)
        except Exception as error:
            if isinstance(error, RustRayError) and self._session.broken is not None:
                raise
            self.plan.cannot_be_sent(partial(_unsendable, self._function, part.items[0]))
            return
        if self.plan.is_too_big(len(payload), MAX_CHUNK_BYTES):
            return
        try:
            ref = self._session.submit(entry, payload)
        except PayloadError as too_big:
            self.plan.cannot_be_sent(partial(PayloadError, str(too_big)))
            return
        self._out[ref] = part
        self.plan.sent(len(payload), time.monotonic())
        if not ref.watch(partial(self.mail.put, part)):
            self.mail.put(part, ref)

    def _encode(self, part: Part) -> tuple[ClassEntry, bytes]:
        items = part.items
        if part.is_alone:
            if self._item is None:
                self._item = self._function.item_entry(self._session)
            args = tuple(items[0]) if self._function.is_star else (items[0],)
            return self._item, dumps_call(args, {})
        if _is_atomic(map(type, items)):
            return self._chunk, pickle.dumps(((items,), {}), PROTOCOL)
        if self._has_reference(items):
            raise PayloadError(_REFERENCE)
        return self._chunk, dumps_call((items,), {})

    def _has_reference(self, items: list[Any]) -> bool:
        if self._function.is_star:
            return any(TaskRef in map(type, item) for item in items)
        return TaskRef in map(type, items)

    def _take_in(self, part: Part, ref: TaskRef[Any]) -> None:
        data = ref._data
        if ref._state != SUCCEEDED:
            payload = data.payload if isinstance(data, Failure) else None
            self.plan.failed(part, payload, partial(_error, ref, part.deaths))
        elif part.is_alone:
            self.plan.returned(part, data)
        else:
            # Made by our own code of plain values; what is the user's in it stays encoded.
            report = loads(data)
            now, lot = time.monotonic(), random.random()  # noqa: S311 - jitter, no secret
            failure_of = partial(_failure_of, ref.task_id)
            self.plan.ran(part, report, len(data), now, lot, failure_of)


def _failure_of(task_id: str, payload: bytes) -> Callable[[], RustRayError]:
    return partial(error_of, payload, task_id, "", 1, Codec.PICKLE)


def _error(ref: TaskRef[Any], deaths: int) -> RustRayError:
    error = ref.error()
    if deaths and isinstance(error, TaskPoisoned):
        error.add_note(f"({deaths} more died before, under chunks that the item was in)")
    return error


def _unsendable(function: MapFunction, item: Any) -> RustRayError:
    """Say why an item cannot be encoded."""
    args = tuple(item) if function.is_star else (item,)
    if TaskRef in map(type, args):
        return PayloadError(_REFERENCE)
    try:
        encode_call(Codec.PICKLE, args, {})
    except PayloadError as error:
        return error
    except Exception as error:
        return PayloadError(f"the item cannot be pickled: {type(error).__name__}: {error}")
    return PayloadError("the item could not be pickled when it was to be sent, and now it can")


def _nothing() -> None:
    """Wake nobody."""
