"""WorkerAgent: the worker's shell. It owns the clock, the pool, and the way to the head.

What happens is told to the `WorkerManager`, what that answers is carried out in order. The
agent takes any `HeadApi`: the stub of a head elsewhere, or the head of this very process.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from rustray.common.errors import (
    AuthorizationError,
    ConfigError,
    RustRayError,
    VersionMismatch,
)
from rustray.common.ids import WorkerId
from rustray.common.resources import UNIT
from rustray.objects.node_store import NodeStore
from rustray.objects.records import StoreLimits
from rustray.objects.recycling import POOL
from rustray.objects.spill_files import SpillFiles
from rustray.rpc.api import FramePump, HeadApi, Link
from rustray.task.frames import AssignFrame, LeaseOutcome, WorkerFrame
from rustray.task.functions import FunctionInfo
from rustray.task.spec import TaskClass
from rustray.task.views import Heartbeat, HeartbeatReply, Registered, WorkerInfo
from rustray.worker import calls, detect, events
from rustray.worker.config import WorkerConfig
from rustray.worker.driver import Pool, PoolFactory, WorkerDriver
from rustray.worker.executor import ExecutorPool, PoolListener
from rustray.worker.manager import WorkerManager
from rustray.worker.memory_groups import MemoryGroups
from rustray.worker.object_desk import ObjectDesk
from rustray.worker.output_desk import OutputDesk
from rustray.worker.package_store import PackageStore
from rustray.worker.process_groups import ProcessGroups
from rustray.worker.pulse import Pulse
from rustray.worker.reconnect import ReconnectManager
from rustray.worker.session import HeadSession
from rustray.worker.spool_files import SpoolFiles
from rustray.worker.task_calls import TaskCoordination
from rustray.worker.value_errands import ValueErrands

logger = logging.getLogger("rustray.worker")

_MB: Final = 1_000_000
POOL_GRACE_S: Final = 0.5
"""How long idle executors have to end by themselves."""


class WorkerAgent:
    """Runs one worker until it is drained or stopped.

    Attributes:
        worker_id: ``<name>-<8 hex digits>``.
        config: As given.
        address: host:port of the WorkerService; set before `run`, "" if there is none.
        functions: What the worker offers by name, once the pool has started.
        started_at: Loop time of the start of `run`.
        objects: What it keeps.
        tls_name: What the certificate of its WorkerService names; "": the address's host.
    """

    def __init__(
        self,
        head: HeadApi,
        config: WorkerConfig,
        *,
        version: str = "",
        pool_factory: PoolFactory | None = None,
    ) -> None:
        self.worker_id = WorkerId(f"{config.name}-{secrets.token_hex(4)}")
        self.config = config
        self.address = self.tls_name = ""
        self.functions: tuple[FunctionInfo, ...] = ()
        self.started_at = 0.0
        self._head = head
        self._version = version
        self._incarnation = time.time_ns() // 1_000_000
        self._host_key = detect.host_key()
        self._coordination = TaskCoordination(
            head, self.worker_id, lambda: {number for number, _ in self.manager.heartbeat()[2]}
        )
        files = SpoolFiles(Path(config.spool_dir), self.worker_id) if config.spool_dir else None
        self.objects = ObjectDesk(
            self.worker_id,
            self._host_key,
            head.fetch_object,
            lambda is_keeping: self._driver.apply(events.KeepingChanged(is_keeping)),
        )
        wake_link = partial(self.wake_link, now=False)
        self._errands = ValueErrands(self.worker_id, self.objects, wake_link)
        self._driver = WorkerDriver(self, config.limits(), pool_factory or self._make_pool, files)
        self._output = OutputDesk(wake_link)
        self._reconnect = ReconnectManager(self.worker_id)
        self._session: HeadSession | None = None
        self._link: Link | None = None
        self._last_trouble = ""
        self._left = asyncio.Event()
        self._done = asyncio.Event()
        self._connected = asyncio.Event()
        self._loaded = asyncio.Event()
        self._is_running = False

    def _make_pool(self, listener: PoolListener) -> Pool:
        pool = ExecutorPool(
            listener,
            function_modules=self.config.functions,
            sys_path=self.config.sys_path,
            max_result_bytes=self.config.max_result_bytes,
            keep_output=lambda pieces: self._output.printed(pieces),
            shows_output=self.config.shows_output,
            packages=PackageStore(self.config.package_dir, self.worker_id),
            object_port=self.objects.port_name,
            looks=not self.config.address,  # embedded
        )
        pool.handlers = {calls.COORDINATE: self._coordination.handle}
        pool.look = self.objects.in_memory
        return pool

    @property
    def manager(self) -> WorkerManager:
        """The core; look, do not touch."""
        return self._driver.manager

    # ── Life ──────────────────────────────────────────────────────────────────────────────

    async def run(self) -> None:
        """Work until drained or stopped; call it once.

        Raises:
            ConfigError: a function module cannot be imported, the head refuses the worker for
                its settings, or the system allows too few file descriptors.
            AuthorizationError: the token does not allow to be a worker.
            VersionMismatch: the head is of a release that does not fit.
            InvariantError: a bug in rustray.
        """
        detect.allow_descriptors(self.config.limits().slots)
        self._loop = asyncio.get_running_loop()
        self.started_at = self._loop.time()
        self.objects.address, self.objects.tls_name = self.address, self.tls_name
        limits, files = _store_parts(self.config, self.worker_id)
        store = NodeStore(self._loop, limits, files, self._driver.note_store)
        self.objects.open(self._loop, store)
        self._errands.open(self._loop)
        self._is_running = True
        self._driver.open(self._loop, *_groups(self.config))
        pool = asyncio.create_task(self._start_pool(), name="rustray-pool")
        left = asyncio.create_task(self._left.wait(), name="rustray-left")
        tasks: list[asyncio.Task[Any]] = [pool, left]
        tasks.append(asyncio.create_task(self._keep_session(pool), name="rustray-session"))
        try:
            # The pool's task ends when it has started; the others mean the end.
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if pool.done() and pool.exception() is None:
                await asyncio.wait(tasks[1:], return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._shut_down(tasks)
        errors = [task.exception() for task in tasks if not task.cancelled()]
        for error in errors:
            if error is not None:
                raise error
        if self._driver.failure is not None:
            raise self._driver.failure

    async def _start_pool(self) -> None:
        self.functions = await self._driver.start()
        self._loaded.set()

    async def _shut_down(self, tasks: Sequence[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._is_running = False
        await self._coordination.close()
        await self._driver.close(0.0 if self.manager.running else POOL_GRACE_S)
        self._output.close()
        self._errands.close()
        await self.objects.close()
        self._done.set()

    async def drain(self, timeout_s: float | None = None) -> None:
        """Leave in order: finish what runs, hand the rest back; returns when it is over.

        Args:
            timeout_s: Limit for what runs, in seconds; None takes the configured one.
        """
        if not self._is_running:
            self._left.set()
            return
        self._driver.apply(events.DrainRequested(timeout_s))
        await self._done.wait()

    async def stop(self) -> None:
        """Stop now: what runs is killed, and the head will give it to others."""
        self._left.set()
        if self._is_running:
            await self._done.wait()

    async def wait_loaded(self) -> None:
        """Return as soon as the function modules have been imported."""
        await self._loaded.wait()

    async def wait_connected(self) -> None:
        """Return as soon as a stream to the head stands."""
        await self._connected.wait()

    @property
    def state(self) -> str:
        """One of "starting", "ready", "disconnected" and "draining"."""
        if self.manager.is_draining:
            return "draining"
        if self._link is not None:
            return "ready"
        return "disconnected" if self._connected.is_set() else "starting"

    # ── The head ──────────────────────────────────────────────────────────────────────────

    async def _keep_session(self, pool: asyncio.Task[None]) -> None:
        if self.config.functions:
            # They are announced with the registration; without any it need not wait.
            await asyncio.shield(pool)
        while not self._left.is_set():
            error = await self._hold_session()
            pause_s = self._reconnect.pause_after_failure(self._loop.time())
            text = str(error) if error is not None else "the head ended the session"
            # A head that is away for a night is worth one line, not thousands.
            level = logging.DEBUG if text == self._last_trouble else logging.WARNING
            self._last_trouble = text
            logger.log(level, "no session with the head: %s; trying again and again", text)
            await asyncio.sleep(pause_s)

    async def _hold_session(self) -> RustRayError | None:
        """Register and keep one session until it ends; returns why."""
        try:
            asked_at = self._loop.time()
            registered = await self._head.register_worker(_info_of(self))
            session = HeadSession(self, registered.session)
            opened = events.SessionOpened(session.number, asked_at, registered.lease_ttl_s)
            self._driver.apply(opened)
            self._output.session_opened(registered.takes_output)
            self._session = session
            link = await self._open_stream(session)
        except (AuthorizationError, ConfigError):
            raise
        except RustRayError as error:
            if isinstance(error, VersionMismatch) and not self._connected.is_set():
                raise
            # A head that was of another release before may become that again, and take the results.
            return error
        self._link = link
        self._driver.nested.connect(partial(self._open_nested, session.number))
        self._reconnect.session_opened(self._loop.time())
        self._last_trouble = ""
        self._connected.set()
        logger.info("worker %s joined the head, session %d", self.worker_id, session.number)
        beat = asyncio.create_task(self._pulse(session, registered).run(), name="rustray-pulse")
        link.wake()
        try:
            return await session.ended
        finally:
            beat.cancel()
            nested = self._driver.nested.disconnect()
            self._drop_session(session)
            await asyncio.wait([beat])
            await link.close()
            if nested is not None:
                await asyncio.wait([nested])

    async def _open_nested(self, session: int, pump: FramePump) -> Link:
        return await self._head.open_nested_stream(self.worker_id, session, pump)

    async def _open_stream(self, session: HeadSession) -> Link:
        try:
            return await self._head.open_worker_stream(self.worker_id, session.number, session)
        except BaseException:
            self._drop_session(session)
            raise

    def _drop_session(self, session: HeadSession) -> None:
        self._link = None
        self._session = None
        self._errands.session_closed()
        self._driver.apply(events.SessionClosed(session.number, session.was_orderly))

    def _pulse(self, session: HeadSession, registered: Registered) -> Pulse:
        def on_answer(asked_at: float, reply: HeartbeatReply) -> None:
            self.objects.free(reply.unneeded)
            self._driver.apply(events.HeartbeatAnswered(session.number, asked_at))

        return Pulse(
            session, registered, partial(_heartbeat_of, self), self._head.heartbeat, on_answer
        )

    # ── What the session asks (see `HeadSession`) ─────────────────────────────────────────

    def next_frame(self, session: HeadSession) -> WorkerFrame | None:
        """Return the next frame for this session's stream."""
        if session is not self._session or not self._is_running:
            return None
        if self._errands.answers:
            return self._errands.take_frame()
        frame = self._output.next_frame(self._driver.manager)
        if frame is not None and frame.drained:
            self._driver.set_timer()
        return frame

    def frame_received(self, session: HeadSession, frame: AssignFrame) -> None:
        """Take a frame of this session's stream."""
        if frame.output:
            self._output.asked(frame.output)
        if frame.free:
            self.objects.free(frame.free)
        if frame.surrender:
            self._errands.surrender(frame.surrender)
        if frame.adopt:
            self._errands.adopt(frame.adopt)
        self._driver.apply(events.FrameReceived(session.number, frame))

    # ── What the core asks (see `driver.Owner`) ───────────────────────────────────────────

    def wake_link(self, now: bool = True) -> None:
        """Have the stream ask for a frame, now or later."""
        if self._link is not None:
            (self._link.wake_now if now else self._link.wake)()

    def settle_large(self, outcome: LeaseOutcome) -> LeaseOutcome:
        """Keep a large result here, if it may stay."""
        return self.objects.settle(outcome, self.manager.may_stay(outcome.lease, outcome.offset))

    def close_session(self, number: int) -> None:
        """End this session, if it is still the present one."""
        if self._session is not None and self._session.number == number:
            self._session.end(None)

    def leave(self) -> None:
        """Stop: the work is over."""
        self._left.set()

    # ── For the WorkerService ─────────────────────────────────────────────────────────────

    async def run_direct(
        self, task_class: TaskClass, prefix: bytes, sequence: int, payload: bytes
    ) -> LeaseOutcome:
        """See `WorkerDriver.run_direct`."""
        return await self._driver.run_direct(task_class, prefix, sequence, payload)

    def used(self) -> dict[str, float]:
        """Return what tasks hold of each resource, in the user's units."""
        return {name: units / UNIT for name, units in self.manager.used.items()}


def _heartbeat_of(agent: WorkerAgent, session: int) -> Heartbeat:
    POOL.trim()
    sent, received, held, running = agent.manager.heartbeat()
    pids = [os.getpid(), *(e.pid for e in agent.manager.executors() if e.pid)]
    memory_mb = sum(map(detect.resident_bytes, pids)) / _MB
    return Heartbeat(
        agent.worker_id,
        session,
        sent,
        received,
        held,
        running,
        detect.load_ratio(),
        memory_mb,
        agent.manager.is_full,
        agent.objects.doubtful(agent.manager.is_draining) if agent.manager.is_settled else (),
    )


def _info_of(agent: WorkerAgent) -> WorkerInfo:
    return WorkerInfo(
        worker_id=agent.worker_id,
        incarnation=agent._incarnation,
        name=agent.config.name,
        address=agent.address,
        resources=agent.config.amounts().amounts(),
        labels=agent.config.labels,
        functions=agent.functions,
        version=agent._version,
        pid=os.getpid(),
        host_key=agent._host_key,
        object_port=agent.objects.port,
    )


def _store_parts(config: WorkerConfig, name: str) -> tuple[StoreLimits, SpillFiles | None]:
    """Return the limits of the node's objects, and where they go that have no room in memory."""
    limits = StoreLimits(
        config.object_memory_mb * _MB, config.object_disk_mb * _MB if config.spool_dir else 0
    )
    if not config.spool_dir:
        return limits, None
    return limits, SpillFiles(Path(f"{config.spool_dir}-objects"), name)


def _groups(config: WorkerConfig) -> tuple[MemoryGroups | None, str, ProcessGroups | None]:
    """Find where the kernel may hold limits, before there is any other process."""
    memory, lacking = None, ""
    if config.memory_cgroup:
        memory, text = MemoryGroups.find()
        if memory is None:
            lacking = text
        else:
            logger.info("the kernel holds memory limits too, in control groups below %s", text)
    if not config.max_processes:
        return memory, lacking, None
    processes, text = ProcessGroups.find(config.max_processes, memory)
    if processes is None:
        logger.info("nothing bounds the processes that tasks start: %s", text)
    return memory, lacking, processes
