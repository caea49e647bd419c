"""The task classes of the functions that a `rustray.Executor` is given."""

from __future__ import annotations

import secrets
import sys
import types
from collections.abc import Callable, Hashable
from typing import Any

from rustray.client.calls import Anything, Chunk, Initialized
from rustray.client.options import function_name, let_module_travel, pickle_function, task_class
from rustray.client.refs import ClassEntry
from rustray.client.session import ClientSession
from rustray.client.windows import kind_of


class ChunkOf:
    """Marks a function whose calls come in chunks; never travels itself."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, chunk: list[tuple[Any, ...]]) -> list[Any]:
        """Do what `Chunk` does, here."""
        return [self.fn(*args) for args in chunk]


class CallClasses:
    """Function to task class, for one session.

    Args:
        session: Where they are defined.
        retries: Re-runs of a call after a lost worker.
        initializer: With its arguments, or None: called in each executor before its first call.
    """

    def __init__(
        self,
        session: ClientSession,
        retries: int,
        initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None,
    ) -> None:
        self._session = session
        self._retries = retries
        self._initializer = initializer
        self._token = secrets.token_bytes(16)
        self._entries: dict[tuple[Any, bool], ClassEntry] = {}

    def initialized(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        """Return what calls the function in a process where the initializer has run."""
        for travels in (fn, *(self._initializer or ())[:1]):
            let_module_travel(travels)
        return fn if self._initializer is None else Initialized(self._token, *self._initializer, fn)

    def entry_of(
        self, fn: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[ClassEntry, tuple[Any, ...], Hashable]:
        """Return the task class for a function, what to send as arguments, and the call's kind.

        A function that has a name in its module travels once. Anything else (lambdas, bound
        methods, partials) may carry state that changes from call to call: it travels with
        the arguments. Calls of one kind are of the same function (`rustray.client.windows`).
        """
        is_chunk = type(fn) is ChunkOf
        target = fn.fn if isinstance(fn, ChunkOf) else fn
        kind: Hashable | None = None
        if not _is_named(target):
            kind = kind_of(target), is_chunk
            if is_chunk:
                args = (Chunk(target), *args)
                is_chunk = False
            else:
                args = (target, *args)
            target = Anything
        entry = self._entries.get((target, is_chunk))
        if entry is None:
            entry = self._entries[target, is_chunk] = self._define(target, is_chunk)
        return entry, args, entry if kind is None else kind

    def _define(self, target: Any, is_chunk: bool) -> ClassEntry:
        called: Any = Anything() if target is Anything else target
        let_module_travel(target)
        name = "call" if target is Anything else function_name(target)
        if is_chunk:
            called = Chunk(called)
        called = self.initialized(called)
        code, code_hash = pickle_function(called)
        options = {"name": name, "max_retries": self._retries, "executor": "process"}
        return self._session.define(task_class(called, code_hash, options), code)


def _is_named(fn: Any) -> bool:
    """Say whether the function is found under its own name in its module."""
    if not isinstance(fn, types.FunctionType | types.BuiltinFunctionType | type):
        return False
    found: Any = sys.modules.get(getattr(fn, "__module__", None) or "")
    for part in fn.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is fn
