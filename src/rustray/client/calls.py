"""What `rustray.Executor` runs in executor processes; imports nothing that a child should not load.

Objects of these classes travel as the code of a task class: they are pickled once per function
and session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

_initialized: dict[bytes, BaseException | None] = {}
"""Executors (by token) whose initializer has run in this process, and how it failed."""


class InitializerFailed(RuntimeError):
    """The initializer of a `rustray.Executor` raised in this executor process."""


class Anything:
    """Calls the function that comes with the arguments."""

    def __call__(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Call ``fn`` with the rest."""
        return fn(*args, **kwargs)


class Chunk:
    """Calls a function for each tuple of arguments in a list."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        self.fn = fn

    def __call__(self, chunk: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Return the results in order; the first exception ends the chunk."""
        fn = self.fn
        return [fn(*args) for args in chunk]


class Initialized:
    """Runs an initializer before the first call that its executor makes in this process."""

    def __init__(
        self,
        token: bytes,
        initializer: Callable[..., Any],
        initargs: tuple[Any, ...],
        fn: Callable[..., Any],
    ) -> None:
        self.token = token
        self.initializer = initializer
        self.initargs = initargs
        self.fn = fn

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Initialize once per process, then call.

        Raises:
            InitializerFailed: the initializer raised, now or in an earlier call.
        """
        if self.token not in _initialized:
            try:
                self.initializer(*self.initargs)
                _initialized[self.token] = None
            except BaseException as error:
                _initialized[self.token] = error
        failure = _initialized[self.token]
        if failure is not None:
            raise InitializerFailed(f"{type(failure).__name__}: {failure}") from failure
        return self.fn(*args, **kwargs)
