"""A holder's conversation with the head: each request is asked until it is answered.

A lost connection or a head that restarts costs time and nothing else: a request is asked again
under its lane and number, and the head does nothing twice. One message at a time says that the
holder lives, and names all that it holds, however much that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from rustray.common.errors import HeadUnavailable, LeaseLost, RustRayError
from rustray.coordination.messages import Action, Answer, Request, Verdict

logger = logging.getLogger("rustray.client")

PATIENCE_S: Final = 60.0
"""How long a request that is not to wait goes on asking for a head that is away."""
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
RENEWALS: Final = 3
"""Messages in the time of one lease."""
END_S: Final = 2.0
ENDED: Final = "this session has ended, and all that it held is free"
_WAITING: Final = frozenset({Action.ACQUIRE, Action.AWAIT, Action.PUT, Action.GET})
"""What may stand in line."""
_OF_HOLD: Final = frozenset({Action.RELEASE, Action.CHECK, Action.ABANDON})
"""What means a hold of this very term."""
_TAKING: Final = frozenset({Action.ACQUIRE, Action.GET})
"""What is freed, or comes back, when the holder ends."""

Ask = Callable[[Request], Awaitable[Answer]]


def _patience_of(request: Request) -> float:
    """Return how long a request asks for a head that is away."""
    if request.action not in _WAITING:
        return PATIENCE_S
    return math.inf if request.wait_s is None else max(request.wait_s, LONGEST_PAUSE_S)


class Coordinator:
    """One holder; use it on one event loop.

    Attributes:
        is_closed: It has ended, and takes no more requests.
    """

    def __init__(self, ask: Ask, holder: bytes, *, renews: bool) -> None:
        """Begin; nothing is sent yet.

        Args:
            ask: Sends one request, and returns or raises what the head answers.
            holder: Names the holder.
            renews: It has a lease; False: the head knows by itself when it ends.
        """
        self.is_closed = False
        self._ask = ask
        self._holder = holder
        self._renews = renews
        self._next = 1
        self._lanes = 0
        self._free: list[int] = []
        self._open: dict[int, int] = {}  # lane to number of the request under way in it
        self._held: set[int] = set()
        self._unconfirmed: dict[int, int] = {}  # lane to number of a request that brought items
        self._term = 0
        self._lease_s = 0.0
        self._renewer: asyncio.Task[None] | None = None
        self._chores: set[asyncio.Task[None]] = set()

    async def call(self, request: Request) -> Answer:
        """Ask, and wait for the answer as long as `Request.wait_s` says.

        Being cancelled takes the request back.

        Args:
            request: Its holder, lane and number are filled in here.

        Raises:
            RustRayError: what the head says; `HeadUnavailable` after `PATIENCE_S` or the wait.
            LeaseLost: the session has ended.
        """
        if self.is_closed:
            raise LeaseLost(ENDED)
        request = self._numbered(request)
        try:
            request, answer = await self._ask_on(request)
            if self._is_over and request.action in _TAKING:
                raise LeaseLost(ENDED)  # what it brings goes back with the rest
        except (asyncio.CancelledError, HeadUnavailable):
            self._clean_up(request)
            raise
        except BaseException:
            self._leave(request)
            raise
        else:
            self._note(request, answer)
            self._leave(request)
            return answer
        finally:
            if request.action is Action.RELEASE:
                self._held.discard(request.fence)  # what the head has still is freed by a renewal

    async def confirm(self, patience_s: float = PATIENCE_S) -> None:
        """Say that every answer so far has come, and what is held.

        Args:
            patience_s: How long to go on asking for a head that is away.

        Raises:
            RustRayError: as `call`.
        """
        taken = dict(self._unconfirmed)
        request = Request(
            b"", 0, 0, Action.RENEW, fences=tuple(self._held), taken=tuple(taken.values()),
            pending=tuple(self._open.values()),
        )  # fmt: skip
        request = self._numbered(request)
        try:
            answer = await self._insist(request, patience_s)
            self._term = answer.term
        except LeaseLost:
            self._note_lost(request.term)
        finally:
            self._leave(request)
        for lane, number in taken.items():
            if self._unconfirmed.get(lane) == number:
                del self._unconfirmed[lane]

    async def close(self) -> None:
        """End all waits, and free what is held, if the head can be told; idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._renewer is not None:
            self._renewer.cancel()
        for chore in list(self._chores):
            chore.cancel()
        if self._renews and self._is_in_use:
            with contextlib.suppress(RustRayError, TimeoutError):
                async with asyncio.timeout(END_S):
                    taken = tuple(self._unconfirmed.values())
                    await self._send(self._numbered(Request(b"", 0, 0, Action.END, taken=taken)))

    # -- asking ----------------------------------------------------------------

    def _numbered(self, request: Request) -> Request:
        """Give a request a lane of its own, and the next number."""
        if self._free:
            lane = self._free.pop()  # the last one, so that few are in use, and confirmed soon
        else:
            lane = self._lanes
            self._lanes += 1
        number = self._open[lane] = self._next
        self._next += 1
        return replace(request, holder=self._holder, lane=lane, number=number, term=self._term)

    def _leave(self, request: Request) -> None:
        """Give a lane back, whose request has been answered."""
        self._open.pop(request.lane, None)
        self._free.append(request.lane)

    async def _ask_on(self, request: Request) -> tuple[Request, Answer]:
        """Ask in the present term, and if that is over, in the next one."""
        start, wait_s, patience_s = self._now(), request.wait_s, _patience_of(request)
        while True:
            try:
                if self._renews and not request.term:
                    if not self._term:
                        await self.confirm(patience_s - (self._now() - start))
                    request = replace(request, term=self._term)
                return request, await self._insist(request, patience_s - (self._now() - start))
            except LeaseLost:
                if self._is_over:
                    raise LeaseLost(ENDED) from None
                if request.action in _OF_HOLD or not request.term:
                    raise
                # We were silent for too long, and stand in line no more: at its end, then.
                self._note_lost(request.term)
                left_s = None if wait_s is None else max(wait_s - (self._now() - start), 0.0)
                request = replace(request, term=0, wait_s=left_s)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()

    def _note_lost(self, term: int) -> None:
        if term != self._term or not term:
            return
        if self._held and not self._is_over:
            logger.warning("the lease is lost: for too long the head has not heard of us")
        self._term = 0
        self._held.clear()
        self._unconfirmed.clear()

    async def _insist(self, request: Request, patience_s: float) -> Answer:
        """Ask until there is an answer, or no head for too long."""
        start, pause_s, wait_s = self._now(), FIRST_PAUSE_S, request.wait_s
        while True:
            if self._is_over:
                raise LeaseLost(ENDED)
            left_s = None if wait_s is None else max(wait_s - (self._now() - start), 0.0)
            try:
                answer = await self._send(replace(request, wait_s=left_s))
                if answer.verdict is not Verdict.WAITING:
                    return answer
                pause_s = FIRST_PAUSE_S
            except HeadUnavailable:
                if self._now() - start >= patience_s:
                    raise
                await asyncio.sleep(pause_s * (0.5 + random.random() / 2))  # noqa: S311
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _send(self, request: Request) -> Answer:
        self._keep_alive()
        answer = await self._ask(request)
        if answer.lease_s:
            self._lease_s = answer.lease_s
        if self._unconfirmed.get(request.lane, request.number) < request.number:
            del self._unconfirmed[request.lane]
        return answer

    @property
    def _is_in_use(self) -> bool:
        """Whether the head has to know that the holder lives, or what it has."""
        return bool(self._held or self._open or self._unconfirmed)

    @property
    def _is_over(self) -> bool:
        """Whether the head frees all that it holds, now or soon; a task's goes with its attempt."""
        return self.is_closed and self._renews

    def _note(self, request: Request, answer: Answer) -> None:
        if answer.verdict is not Verdict.DONE:
            return
        if request.action is Action.ACQUIRE and request.term == self._term:
            self._held.add(answer.fence)
        elif request.action is Action.GET and request.term == self._term:
            self._unconfirmed[request.lane] = request.number  # else others get the items
        self._keep_alive()

    def _clean_up(self, request: Request) -> None:
        """The caller has gone: finish what gives back, take back what would hold something."""
        if self.is_closed:
            return
        chore = asyncio.get_running_loop().create_task(
            self._finish(request), name="rustray-clean-up"
        )
        self._chores.add(chore)
        chore.add_done_callback(self._chores.discard)

    async def _finish(self, request: Request) -> None:
        """Leaves the lane unused for ever if the head cannot be told."""
        last = replace(request, term=self._term)
        if request.action in _WAITING:
            number, lane = request.number, request.lane
            last = self._numbered(Request(b"", 0, 0, Action.ABANDON, fence=number, count=lane))
        is_told = False
        try:
            if self._term or not self._renews:  # else it never came to be asked, or is forgotten
                await self._insist(last, PATIENCE_S)
            is_told = True
        except LeaseLost:
            is_told = True
        except RustRayError as error:
            logger.debug("could not clean up after a caller that has gone: %s", error)
        for lane in {request.lane, last.lane}:
            self._open.pop(lane, None)
            if is_told:
                self._free.append(lane)

    # -- the lease -------------------------------------------------------------

    def _keep_alive(self) -> None:
        if self._renews and self._renewer is None and not self.is_closed:
            loop = asyncio.get_running_loop()
            self._renewer = loop.create_task(self._renew(), name="rustray-renew")

    async def _renew(self) -> None:
        """Say that the holder lives as long as it holds or waits for something."""
        try:
            lease_s = self._lease_s or LONGEST_PAUSE_S
            await asyncio.sleep(lease_s / RENEWALS)
            while self._is_in_use:
                try:
                    async with asyncio.timeout(lease_s):
                        await self.confirm()
                except (RustRayError, TimeoutError) as error:
                    logger.debug("a lease was not renewed: %r", error)  # the next one comes soon
                lease_s = self._lease_s or LONGEST_PAUSE_S
                await asyncio.sleep(lease_s / RENEWALS)
        finally:
            self._renewer = None
