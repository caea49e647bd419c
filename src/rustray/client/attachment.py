"""A session on a loop thread, connected to some head: what `init` and `Executor` stand on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from concurrent import futures
from dataclasses import dataclass
from typing import Any

from rustray.client.channels import SessionChannel
from rustray.client.connection import Connection
from rustray.client.derived import Borrower
from rustray.client.intake import MAX_PAYLOAD_BYTES
from rustray.client.keeping import Keeper
from rustray.client.log_printer import LogPrinter, settle, show_logs
from rustray.client.loop_thread import LoopThread
from rustray.client.session import ClientSession
from rustray.client.throttle import PATIENCE_S, Throttle
from rustray.client.values import SessionValues
from rustray.common.errors import CommunicationError, RustRayError
from rustray.common.resources import CPU
from rustray.rpc.api import HeadApi
from rustray.task.spec import DEFAULT_RETRIES
from rustray.task.views import Explanation

Dial = Callable[[], Awaitable[HeadApi]]
Hangup = Callable[[], Awaitable[None]]

logger = logging.getLogger("rustray.client")

CLOSE_LIMIT_S = 10.0
ADVISE_S = 3.0
"""When to look whether tasks wait although there is no worker."""
FLUSH_S = 3.0
"""How long an orderly end waits until the head has all that was handed in."""
_UNSENT = (
    "rustray was shut down before the head had said that it has this task: it may run or not; "
    "submit it again if that does no harm"
)


@dataclass(frozen=True, slots=True)
class SessionLimits:
    """What a session keeps to.

    Attributes:
        max_payload_bytes: Most that the way to the head can carry as one item.
        backpressure_timeout_s: How long tasks wait here while the head takes none.
        pack: Copies large arguments to where they wait, see `ClientSession`.
        shows_logs: Show what its tasks print.
    """

    max_payload_bytes: int = MAX_PAYLOAD_BYTES
    backpressure_timeout_s: float = PATIENCE_S
    pack: Callable[[Any], Any] = bytes
    shows_logs: bool = True


class Attachment:
    """A `Runtime`: the session, its connection, and whatever must be closed behind them.

    Attributes:
        session: Where tasks go.
        address: ``rustray://host:port``, or "" for an embedded cluster.
        slots: Tasks of one core that can run at once there, as far as known.
        channel: For locks, semaphores, events and queues.
    """

    channel: SessionChannel

    def __init__(
        self,
        dial: Dial,
        hangup: Hangup,
        *,
        address: str = "",
        slots: int = 1,
        close_reason: str = "rustray was shut down before this task ended",
        timeout_s: float | None = None,
        limits: SessionLimits | None = None,
    ) -> None:
        """Connect.

        Args:
            dial: Makes the head's api, on the loop thread.
            hangup: Closes what ``dial`` made, also after it failed half-way.
            address: For messages.
            slots: See the class.
            close_reason: What unfinished tasks say after `close`.
            timeout_s: Limit of ``dial`` and the first connection together.
            limits: What the session is to keep to.

        Raises:
            RustRayError: no head, or it does not let us in; nothing is left behind.
        """
        self.address = address
        self.slots = slots
        self._hangup = hangup
        self._close_reason = close_reason
        self._limits = limits or SessionLimits()
        self._thread = LoopThread(spins=not address)
        self._api: HeadApi | None = None
        self._connection: Connection | None = None
        self._adviser: asyncio.Task[None] | None = None
        self._printer: LogPrinter | None = None
        self._logs: asyncio.Task[None] | None = None
        self._asker: asyncio.Task[None] | None = None
        self._is_foreign = False
        self._values: SessionValues | None = None
        try:
            self.session = self._thread.call(self._open(dial, timeout_s))
        except BaseException:
            self._stop()
            raise
        _live.add(self)

    def close(self) -> None:
        """Fail what is unfinished, close connection and cluster, end the thread; idempotent."""
        if self._is_foreign:
            return
        self._stop()

    def after_fork(self) -> None:
        """Make the copy in a forked child refuse work: its threads and sockets are not there."""
        self._is_foreign = True
        self.channel.after_fork()
        self.session.after_fork(
            RustRayError(
                "this belongs to the process that this one was forked from; "
                "call rustray.init() (or make a new Executor) here, and hand the task in again"
            )
        )

    def count_slots(self) -> int:
        """Ask the cluster how many tasks of one core its workers can run at once, at least 1."""
        if self.address and self._api is not None:
            with contextlib.suppress(RustRayError, TimeoutError):
                self._thread.call(self._ask_slots(), CLOSE_LIMIT_S)
        return self.slots

    def explain(self, task_id: str, timeout_s: float) -> Explanation:
        """See `rustray.client.context.Runtime`."""
        assert self._api is not None
        try:
            return self._thread.call(self._api.explain(task_id), timeout_s)
        except futures.CancelledError:  # rustray.shutdown(), by another thread
            raise CommunicationError("rustray was shut down meanwhile") from None

    def refresh_slots(self) -> None:
        """Ask for the slots again, without waiting: `slots` changes when the answer comes."""
        if self.address and self._api is not None:
            self.call_soon(self._begin_to_ask)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Run a plain function on the loop thread; takes no lock, so finalisers may call it."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing is left to do
            self._thread.loop.call_soon_threadsafe(callback)

    def _begin_to_ask(self) -> None:
        if self._asker is None or self._asker.done():
            self._asker = asyncio.create_task(self._ask_slots())

    async def _ask_slots(self) -> None:
        assert self._api is not None
        # A token that may submit need not be allowed to look.
        with contextlib.suppress(RustRayError, TimeoutError):
            async with asyncio.timeout(CLOSE_LIMIT_S):
                status = await self._api.status()
            self.slots = max(int(status.resources.get(CPU, 1)), 1)

    async def _open(self, dial: Dial, timeout_s: float | None) -> ClientSession:
        connection = self._connection = Connection(self.address or "the embedded head")
        try:
            async with asyncio.timeout(timeout_s):
                api = self._api = await dial()
                self.channel = SessionChannel(self._thread, api)
                session = ClientSession(
                    connection.rouse,
                    self._thread.thread_id,
                    self._limits.max_payload_bytes,
                    Throttle(connection.rouse_after, self._limits.backpressure_timeout_s),
                )
                session.pack = self._limits.pack
                if self.address:
                    session.default_retries = await _retries_of(api)
                await connection.open(api, session)
                session.borrower = Borrower(api)
                values = self._values = SessionValues(api, self._thread)
                session.values = values
                session.lets_stay = True
                session.keeper = Keeper(api, self._thread, takes_calls=bool(self.address))
            if self._limits.shows_logs:
                printer = self._printer = LogPrinter(names_worker=bool(self.address))
                self._logs = asyncio.create_task(show_logs(api, session.prefix, printer))
            if self.address:
                self._adviser = asyncio.create_task(self._advise(api, session))
        except TimeoutError:
            where = self.address or "the embedded cluster"
            raise CommunicationError(
                f"{where} was not ready after {timeout_s:g} s; is the head overloaded or not "
                "reachable?"
            ) from None
        return session

    async def _advise(self, api: HeadApi, session: ClientSession) -> None:
        """Say once that tasks wait because nobody is there to run them."""
        await asyncio.sleep(ADVISE_S)
        with contextlib.suppress(RustRayError):
            if session.has_unfinished and not await api.list_workers():
                logger.warning(
                    "no worker has joined the head at %s, so tasks wait; start one: rustray worker",
                    self.address,
                )

    def _stop(self) -> None:
        if not self._thread.is_running:
            return
        try:
            # What hangs there hangs in a daemon thread: the program must be able to end.
            with contextlib.suppress(TimeoutError):
                self._thread.call(self._close(), CLOSE_LIMIT_S)
        finally:
            self._thread.stop()
            _live.discard(self)
            if self._printer is not None:
                self._printer.close()
            if self._values is not None:
                self._values.close()

    async def _close(self) -> None:
        for helper in (self._adviser, self._asker):
            if helper is not None:
                helper.cancel()
        channel = getattr(self, "channel", None)
        if channel is not None:
            await channel.close()
        session = getattr(self, "session", None)
        if session is not None:
            session.release_all()
            if self.address and self._connection is not None:
                await self._connection.flush(FLUSH_S)
            await self._end_logs(session)
            unsent = CommunicationError(_UNSENT) if self.address else None
            session.close(CommunicationError(self._close_reason), unsent)
        if self._connection is not None:
            await self._connection.close()
        await self._hangup()

    async def _end_logs(self, session: ClientSession) -> None:
        """Let what the last tasks have printed come, and stop fetching."""
        if self._logs is not None and self._printer is not None:
            if not self._logs.done() and session._next_sequence:
                await settle(self._printer)
            self._logs.cancel()
            await asyncio.wait((self._logs,))


# Strong: in a forked child the last other reference may go before `_after_fork_in_child` runs.
_live: set[Attachment] = set()


async def _retries_of(api: HeadApi) -> int:
    """Return the head's ``max_retries``; where it does not say, the first stream tells why."""
    with contextlib.suppress(RustRayError):
        status = await api.status()
        if status.max_retries is not None:
            return status.max_retries
    return DEFAULT_RETRIES


def _after_fork_in_child() -> None:
    for attachment in list(_live):
        attachment.after_fork()
    _live.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)
