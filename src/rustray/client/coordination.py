"""`Lock`, `Semaphore` and `Event` of the whole cluster, as the standard library has them.

Each is a name. Whoever runs under the same token, program or task, means the same thing by it.
What is held is held under a lease: it is free again when its holder dies, is cut off for too long,
or, in a task, when the attempt ends. So each hold has a *fence*, a number that grows with every
holder.
"""

from __future__ import annotations

import functools
import sys
from importlib import import_module
from typing import Any, ClassVar, Final, Self

from rustray.client.channels import Channel
from rustray.common.errors import LeaseLost
from rustray.coordination.messages import Action, Answer, Kind, Request, Verdict
from rustray.task.names import check_name

# By name: what runs in executors is no part of the client.
_CHILD_MODULE: Final = "rustray.worker.child"
_TASK_MODULE: Final = "rustray.worker.task_channel"


def current_channel() -> Channel:
    """Return the channel of the calling code: its task's, else its program's session's.

    A program without a session gets one (`rustray.init`).
    """
    child = sys.modules.get(_CHILD_MODULE)
    if child is not None and child.is_executor:
        found: Channel = import_module(_TASK_MODULE).channel
        return found
    from rustray.client import context

    context.ensure_session()
    runtime = context.current_runtime()
    if runtime is None:
        raise LeaseLost("rustray.shutdown() was called meanwhile")
    return runtime.channel


class Named:
    """What is found by a name; it can be pickled, and holds nothing in the copy.

    Attributes:
        name: 1 to 256 printable characters.
        namespace: Keeps the names of different programs apart; "" is the usual one.
    """

    kind: ClassVar[Kind]

    def __init__(self, name: str, *, namespace: str = "") -> None:
        check_name("name", name)
        if namespace:
            check_name("namespace", namespace)
        self.name = name
        self.namespace = namespace
        self._bound: Channel | None = None

    def over(self, channel: Channel) -> Self:
        """Use this channel for every call from now on, and return the object."""
        self._bound = channel
        return self

    def _settings(self) -> dict[str, Any]:
        """Return what makes another one of it."""
        return {"name": self.name, "namespace": self.namespace}

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), **self._settings()), ()

    def __repr__(self) -> str:
        place = f" in {self.namespace!r}" if self.namespace else ""
        return f"<rustray.{type(self).__name__} {self.name!r}{place}>"

    def _request(self, action: Action, **fields: Any) -> Request:
        return Request(b"", 0, 0, action, self.kind, self.namespace, self.name, **fields)

    def _channel(self) -> Channel:
        return self._bound or current_channel()


def wait_of(timeout: float | None) -> float | None:
    """Return how long to wait, as `threading.Event.wait` takes it: below 0 is not at all."""
    if timeout is None:
        return None
    return float(timeout) if timeout > 0 else 0.0


def _lock_wait_of(blocking: bool, timeout: float) -> float | None:
    """Turn the two arguments of `threading.Lock.acquire` into one; None waits for ever.

    Raises:
        ValueError: they contradict each other, or the time is below 0 and not -1.
    """
    if timeout is None or timeout == -1:
        return None if blocking else 0.0
    if not blocking:
        raise ValueError("can't specify a timeout for a non-blocking call")
    if not timeout >= 0:
        raise ValueError("timeout value must be a non-negative number")
    return float(timeout)


def _permit_wait_of(blocking: bool, timeout: float | None) -> float | None:
    """Turn the two arguments of `threading.Semaphore.acquire` into one; None waits for ever.

    Raises:
        ValueError: they contradict each other.
    """
    if blocking:
        return wait_of(timeout)
    if timeout is not None:
        raise ValueError("can't specify timeout for non-blocking acquire")
    return 0.0


class _Permits(Named):
    """What locks and semaphores share: what this object holds, the newest last."""

    def __init__(self, name: str, *, namespace: str = "") -> None:
        super().__init__(name, namespace=namespace)
        self._held: list[tuple[Channel, int]] = []

    @property
    def fence(self) -> int:
        """Number of the present hold, larger than that of every earlier holder; 0: none.

        Hand it to the system that the lock protects, and have that refuse what is smaller than
        the largest it has seen: so a holder that lost its lease, and does not know it, changes
        nothing any more.
        """
        held = self._held
        return held[-1][1] if held else 0

    def _acquiring(self, wait_s: float | None) -> Request:
        return self._request(Action.ACQUIRE, limit=self._limit(), wait_s=wait_s)

    def _limit(self) -> int:
        return 1

    def _note(self, channel: Channel, answer: Answer) -> bool:
        if answer.verdict is not Verdict.DONE:
            return False
        self._held.append((channel, answer.fence))
        return True

    def _acquire(self, wait_s: float | None) -> bool:
        channel = self._channel()
        return self._note(channel, channel.call(self._acquiring(wait_s)))

    async def _aacquire(self, wait_s: float | None) -> bool:
        channel = self._channel()
        return self._note(channel, await channel.acall(self._acquiring(wait_s)))

    def _checking(self) -> tuple[Channel, Request]:
        if not self._held:
            raise LeaseLost(f"{self!r} is not held through this object")
        channel, fence = self._held[-1]
        return channel, self._request(Action.CHECK, fence=fence)

    def check(self) -> None:
        """Ask the head whether what this object holds is held still.

        Raises:
            LeaseLost: it is not.
            HeadUnavailable: nobody answers, so nobody knows.
        """
        channel, request = self._checking()
        channel.call(request)

    async def acheck(self) -> None:
        """`check` for coroutines."""
        channel, request = self._checking()
        await channel.acall(request)

    def _releasing(self, why_not: Exception) -> tuple[Channel, Request]:
        try:
            channel, fence = self._held.pop()
        except IndexError:
            raise why_not from None
        return channel, self._request(Action.RELEASE, fence=fence)

    def _counting(self) -> Request:
        return self._request(Action.COUNT, limit=self._limit())

    def _release(self) -> None:
        raise NotImplementedError

    async def _arelease(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._acquire(None)
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        try:
            self._release()
        except LeaseLost as lost:
            if error is None:
                raise
            error.add_note(f"(and meanwhile: {lost})")

    async def __aenter__(self) -> Self:
        await self._aacquire(None)
        return self

    async def __aexit__(
        self, _type: object, error: BaseException | None, _traceback: object
    ) -> None:
        try:
            await self._arelease()
        except LeaseLost as lost:
            if error is None:
                raise
            error.add_note(f"(and meanwhile: {lost})")


class Lock(_Permits):
    """A lock of the whole cluster, for one holder at a time; not reentrant, as `threading.Lock`.

    ::

        with rustray.Lock("ledger") as lock:
            store.write(data, fence=lock.fence)

    Whoever waits is served in order. Each object is a hold of its own: another object of the same
    name waits, also in the same thread.

    Args:
        name: Of the lock.
        namespace: Keeps the names of different programs apart.
    """

    kind = Kind.LOCK

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Get it.

        Args:
            blocking: Wait for it.
            timeout: Seconds to wait at most; -1: for ever.

        Returns:
            Whether it is held now.

        Raises:
            ValueError: as `threading.Lock.acquire`.
            HeadUnavailable: nobody answered within the timeout.
        """
        return self._acquire(_lock_wait_of(blocking, timeout))

    async def aacquire(self, blocking: bool = True, timeout: float = -1) -> bool:  # noqa: ASYNC109
        """`acquire` for coroutines; being cancelled leaves the line."""
        return await self._aacquire(_lock_wait_of(blocking, timeout))

    def release(self) -> None:
        """Give it back.

        Raises:
            RuntimeError: this object does not hold it.
            LeaseLost: the lease had ended; others may have held it since.
        """
        channel, request = self._releasing(RuntimeError("release unlocked lock"))
        channel.call(request)

    async def arelease(self) -> None:
        """`release` for coroutines."""
        channel, request = self._releasing(RuntimeError("release unlocked lock"))
        await channel.acall(request)

    def locked(self) -> bool:
        """Say whether anybody holds it."""
        return self._channel().call(self._counting()).count == 0

    async def alocked(self) -> bool:
        """`locked` for coroutines."""
        return (await self._channel().acall(self._counting())).count == 0

    _release = release
    _arelease = arelease


class Semaphore(_Permits):
    """A semaphore of the whole cluster: at most ``value`` holders at a time.

    As `threading.BoundedSemaphore`: an object releases what it has acquired, and no more.

    Args:
        name: Of the semaphore.
        value: Permits; all who use it at the same time must say the same.
        namespace: Keeps the names of different programs apart.
    """

    kind = Kind.SEMAPHORE

    def __init__(self, name: str, value: int = 1, *, namespace: str = "") -> None:
        super().__init__(name, namespace=namespace)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"a semaphore has at least 1 permit, not {value!r:.80}")
        self.value = value

    def _settings(self) -> dict[str, Any]:
        return {"name": self.name, "value": self.value, "namespace": self.namespace}

    def _limit(self) -> int:
        return self.value

    def acquire(self, blocking: bool = True, timeout: float | None = None) -> bool:
        """Get one permit.

        Args:
            blocking: Wait for it.
            timeout: Seconds to wait at most, below 0: not at all; None: for ever.

        Returns:
            Whether there was one.

        Raises:
            ValueError: as `threading.Semaphore.acquire`.
            ConfigError: others use it with another number of permits now.
            HeadUnavailable: nobody answered within the timeout.
        """
        return self._acquire(_permit_wait_of(blocking, timeout))

    async def aacquire(self, blocking: bool = True, timeout: float | None = None) -> bool:  # noqa: ASYNC109
        """`acquire` for coroutines; being cancelled leaves the line."""
        return await self._aacquire(_permit_wait_of(blocking, timeout))

    def release(self, n: int = 1) -> None:
        """Give ``n`` permits back.

        Raises:
            ValueError: this object does not hold so many.
            LeaseLost: the lease had ended.
        """
        for _ in range(self._check_count(n)):
            channel, request = self._releasing(_too_often())
            channel.call(request)

    async def arelease(self, n: int = 1) -> None:
        """`release` for coroutines."""
        for _ in range(self._check_count(n)):
            channel, request = self._releasing(_too_often())
            await channel.acall(request)

    def _check_count(self, n: int) -> int:
        if n < 1:
            raise ValueError("n must be one or more")
        if n > len(self._held):
            raise _too_often()
        return n

    def free(self) -> int:
        """Return how many permits nobody holds."""
        return self._channel().call(self._counting()).count

    async def afree(self) -> int:
        """`free` for coroutines."""
        return (await self._channel().acall(self._counting())).count

    _release = release
    _arelease = arelease


def _too_often() -> ValueError:
    return ValueError("Semaphore released too many times")


class Event(Named):
    """An event of the whole cluster: set once, seen by all, until it is cleared.

    It has no holder: it stays set when whoever has set it ends.

    Args:
        name: Of the event.
        namespace: Keeps the names of different programs apart.
    """

    kind = Kind.EVENT

    def is_set(self) -> bool:
        """Say whether it is set."""
        return self._channel().call(self._request(Action.COUNT)).count > 0

    def set(self) -> None:
        """Set it, and wake all who wait."""
        self._channel().call(self._request(Action.SET))

    def clear(self) -> None:
        """Have those who come from now on wait."""
        self._channel().call(self._request(Action.CLEAR))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until it is set.

        Args:
            timeout: Seconds to wait at most, below 0: not at all; None: for ever.

        Returns:
            Whether it was set in time.
        """
        request = self._request(Action.AWAIT, wait_s=wait_of(timeout))
        return self._channel().call(request).verdict is Verdict.DONE

    async def ais_set(self) -> bool:
        """`is_set` for coroutines."""
        return (await self._channel().acall(self._request(Action.COUNT))).count > 0

    async def aset(self) -> None:
        """`set` for coroutines."""
        await self._channel().acall(self._request(Action.SET))

    async def aclear(self) -> None:
        """`clear` for coroutines."""
        await self._channel().acall(self._request(Action.CLEAR))

    async def await_(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - as in wait
        """`wait` for coroutines."""
        request = self._request(Action.AWAIT, wait_s=wait_of(timeout))
        return (await self._channel().acall(request)).verdict is Verdict.DONE
