"""HeadService: the face of the head, in the words of `rustray.rpc.api.HeadApi`.

Thin: it turns a call into an event, and the commands that come out into the answer.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

from rustray.common import ids
from rustray.common.counting import count_refused
from rustray.common.durability import Durability
from rustray.common.errors import (
    AuthorizationError,
    ConfigError,
    PayloadError,
    ResourceExhausted,
    RustRayError,
    TaskExpired,
    TaskNotFound,
)
from rustray.common.resources import ResourceSet
from rustray.head.coordination_service import CoordinationService
from rustray.head.core import HeadCore, TokenDesk
from rustray.head.issued import info_of
from rustray.head.item_reads import StreamService
from rustray.head.letters import LetterService
from rustray.head.listing import cluster_status, list_tasks
from rustray.head.output_service import OutputService, parse_id
from rustray.head.value_service import ValueService, unneeded
from rustray.rpc.api import (
    CancelVerdict,
    EventFilter,
    FramePump,
    Link,
    SubmitItem,
    SubmitVerdict,
    TaskFilter,
)
from rustray.rpc.memory_link import memory_link_pair
from rustray.scheduler.admission import count_refusal
from rustray.scheduler.commands import AcceptTasks, RefuseWorker, RejectTasks
from rustray.scheduler.events import (
    CancelRequested,
    DrainRequested,
    HeartbeatReceived,
    TasksSubmitted,
    WorkerJoined,
)
from rustray.scheduler.view import TaskSnapshot, worker_view
from rustray.security.roles import Caller
from rustray.security.wall_clock import unix_s
from rustray.task.columns import PayloadColumn
from rustray.task.frames import CancelRequest
from rustray.task.functions import FunctionInfo
from rustray.task.result import TaskEvent
from rustray.task.spec import TaskClass
from rustray.task.views import (
    ClusterStatus,
    Explanation,
    Heartbeat,
    HeartbeatReply,
    OfferedFunction,
    Registered,
    TaskPage,
    TokenInfo,
    WorkerInfo,
    WorkerView,
)

if TYPE_CHECKING:
    from rustray.head.client_peer import ClientPeer
    from rustray.head.nested_stream import NestedStream
    from rustray.head.worker_peer import WorkerPeer
    from rustray.security.enrollment import Enrollment


_SHORT_LIVES_S: Final = {"worker": 900.0, "admin": 900.0}
"""Of a join string, which is copied about, and of what may do anything."""


class HeadService(LetterService, OutputService, CoordinationService, StreamService, ValueService):
    """What one caller may do with the head (`rustray.rpc.api.HeadApi`)."""

    def __init__(self, core: HeadCore, caller: Caller) -> None:
        self._core = core
        self._driver = core.driver
        self._caller = caller

    # -- workers ------------------------------------------------------------

    async def register_worker(self, info: WorkerInfo) -> Registered:
        """Register a worker; its stream comes next."""
        core = self._core
        core.workers.claim(info.worker_id, self._caller)
        session = core.next_session
        core.next_session += 1
        for command in self._driver.handle(WorkerJoined(info, session)):
            if isinstance(command, RefuseWorker):
                raise command.error
        # Before it is given anything: after a restart its return is waited for.
        await self._driver.safe()
        core.worker_hosts[info.worker_id] = (info.pid, session, info.host_key)
        settings = self._driver.scheduler.state.settings
        beat_s, ttl_s = core.heartbeat_interval_s, settings.lease_ttl_s
        return Registered(session, beat_s, ttl_s, takes_output=True)

    async def enroll_worker(self, worker_id: str, signing_request: bytes) -> Enrollment:
        """Sign for a worker's own service.

        Raises:
            ConfigError: this head has no certificate authority (no TLS).
            ValueError: the request is none.
        """
        if self._core.registrar is None:
            raise ConfigError("this head runs without TLS, so it signs no certificates")
        return self._core.registrar.enroll(worker_id, signing_request)

    async def heartbeat(self, beat: Heartbeat) -> HeartbeatReply:
        """Renew a worker's leases."""
        self._core.workers.check(beat.worker_id, self._caller)
        peer = self._driver.workers.get(beat.worker_id)
        in_step = peer is not None and peer.compare(beat.sent, beat.received)
        scheduler = self._driver.scheduler
        self._driver.handle(
            HeartbeatReceived(
                beat.worker_id,
                beat.session,
                beat.held if in_step else None,
                beat.running,
                beat.is_full,
            )
        )
        is_known = scheduler.knows_session(beat.worker_id, beat.session)
        asked = beat.objects if in_step and is_known else ()
        return HeartbeatReply(is_known, unneeded(self._driver, beat.worker_id, asked))

    async def open_worker_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        """Join an in-process worker's pump to the head's."""
        peer = self._core.worker_pump(self._caller, worker_id, session)
        return _join(pump, peer)

    async def open_nested_stream(self, worker_id: str, session: int, pump: FramePump) -> Link:
        """Join an in-process worker's pump, for the sessions of its tasks, to the head's."""
        stream = self._core.nested_pump(self._caller, worker_id, session)
        return _join(pump, stream)

    # -- tasks --------------------------------------------------------------

    async def open_client_stream(self, prefix: bytes, pump: FramePump) -> Link:
        """Join an in-process client's pump to the head's."""
        peer = self._core.client_pump(self._caller, prefix)
        return _join(pump, peer)

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitVerdict]:
        """Submit tasks one by one; each gets its own verdict."""
        self._core.note_caller(self._caller)
        items = [_named(item, self._caller) if item.idempotency_key else item for item in items]
        verdicts: list[SubmitVerdict | None] = [None] * len(items)
        classes: list[TaskClass | None] = []
        for position, item in enumerate(items):
            try:
                self._core.sessions.claim(item.prefix, self._caller)
                classes.append(self._resolve(item))
            except RustRayError as error:
                self.note_rejected(error)
                classes.append(None)
                name = ids.task_id(item.prefix, item.sequence)
                verdicts[position] = SubmitVerdict(name, error)
        start = 0
        while start < len(items):
            end = start + 1
            while end < len(items) and _continues(items, classes, end):
                end += 1
            task_class = classes[start]
            if task_class is not None:
                self._submit_run(items[start:end], task_class, start, verdicts)
            start = end
        answers = [verdict for verdict in verdicts if verdict is not None]
        await self._driver.safe(max(map(_safety_of, answers), default=Durability.MEMORY))
        return answers

    def note_rejected(self, error: RustRayError) -> None:
        """Count a task that the scheduler never sees."""
        count_refusal(self._driver.scheduler.state, error, 1)

    def _submit_run(
        self,
        items: Sequence[SubmitItem],
        task_class: TaskClass,
        start: int,
        verdicts: list[SubmitVerdict | None],
    ) -> None:
        first = items[0]
        payloads = PayloadColumn.of([item.payload for item in items])
        event = TasksSubmitted(
            first.prefix,
            first.sequence,
            task_class,
            payloads,
            is_pushed=False,
            uses_default_resources=first.uses_default_resources,
            deadline_unix_s=first.deadline_unix_s,
            time_left_s=self._driver.time_left_s(first.deadline_unix_s),
            rejects_known=first.rejects_duplicate,
            principal=self._caller.subject,
            durability=first.durability,
        )
        for command in self._driver.handle(event):
            if isinstance(command, AcceptTasks | RejectTasks) and command.prefix == first.prefix:
                _note_verdicts(command, first, start, verdicts)

    def _resolve(self, item: SubmitItem) -> TaskClass:
        """Check an item's class and fill in what its caller left open."""
        task_class = item.task_class
        try:
            task_class.validate()
        except ValueError as error:
            raise PayloadError(f"the task is not valid: {error}") from error
        if task_class.needs_code and "code" not in self._caller.scopes:
            raise AuthorizationError(
                "this token may not send code or pickles; use the msgpack or json codec, "
                "or ask for a token with --allow-code"
            )
        info: FunctionInfo | None = self._driver.scheduler.state.functions.get(task_class.function)
        filled: dict[str, Any] = {}
        if item.uses_default_retries:
            filled["max_retries"] = self._driver.scheduler.state.settings.max_retries
        if info is not None and not task_class.code_hash:
            # Else it runs in a process, whatever was announced.
            if not (task_class.exclusive or task_class.stream_window):
                filled["executor"] = info.executor
            if item.uses_default_resources and info.resources:
                filled["resources"] = ResourceSet.of(info.resources)
        is_new = any(getattr(task_class, name) != value for name, value in filled.items())
        return replace(task_class, **filled) if is_new else task_class

    def _look(self, task_id: str) -> tuple[bytes, int, TaskSnapshot]:
        return (*parse_id(task_id), self._snapshot(*parse_id(task_id)))

    def _snapshot(self, prefix: bytes, sequence: int) -> TaskSnapshot:
        found = self._driver.scheduler.task(prefix, sequence)
        if found is None:
            kept_s = self._driver.scheduler.state.settings.result_ttl_s
            name = ids.task_id(prefix, sequence)
            is_own = self._core.sessions.may_use(prefix, self._caller)
            if is_own and self._driver.scheduler.has_expired(prefix, sequence):
                raise TaskExpired(
                    f"task {name} is not known any more: it has ended, and its result has expired "
                    f"(kept {kept_s:g} s, [scheduler] result_ttl_s); or it was refused, or lost "
                    "with a head that had it in memory only"
                )
            raise TaskNotFound(
                f"no task {name} is known here; it was never accepted, or its result has expired "
                f"(kept {kept_s:g} s, result_ttl_s)"
            )
        return found

    async def cancel(self, task_ids: Sequence[str], force: bool) -> list[CancelVerdict]:
        """Cancel tasks; each gets its own verdict."""
        verdicts = [self._cancel(name, force) for name in task_ids]
        await self._driver.safe()
        return verdicts

    def _cancel(self, name: str, force: bool) -> CancelVerdict:
        try:
            prefix, sequence = parse_id(name)
            self._snapshot(prefix, sequence)
            if not self._core.sessions.may_use(prefix, self._caller):
                raise AuthorizationError(
                    f"task {name} was handed in with another token than that of "
                    f"{self._caller.subject}: that one may cancel it, or an administrator"
                )
            self._driver.handle(CancelRequested(CancelRequest(prefix, sequence, 1, force)))
            return CancelVerdict(name, self._snapshot(prefix, sequence).state)
        except (PayloadError, TaskNotFound, AuthorizationError) as error:
            count_refused(self._driver.scheduler.state.counters, "cancels_refused", error)
            return CancelVerdict(name, None, error)

    async def explain(self, task_id: str) -> Explanation:
        """Say why a task is where it is."""
        await self._driver.safe()
        prefix, sequence = parse_id(task_id)
        found = self._driver.scheduler.explain(prefix, sequence, self._driver.now())
        if found is None and self._core.sessions.may_use(prefix, self._caller):
            found = self._driver.refusals.explain(prefix, sequence)  # it may name the principal
        if found is None:
            self._snapshot(prefix, sequence)
            raise TaskNotFound(f"no task {task_id} is known here")
        return found

    # -- looking ------------------------------------------------------------

    async def list_tasks(self, where: TaskFilter, cursor: str, limit: int) -> TaskPage:
        """List tasks in order of acceptance."""
        await self._driver.safe()
        return list_tasks(self._driver, where, cursor, limit)

    async def list_workers(self) -> list[WorkerView]:
        """List the workers, in order of joining."""
        now = self._driver.now()
        return [
            worker_view(worker, now) for worker in self._driver.scheduler.state.workers.values()
        ]

    async def list_functions(self) -> list[OfferedFunction]:
        """List what the present workers offer, in name order."""
        state = self._driver.scheduler.state
        offered: dict[str, list[str]] = {}
        for worker in state.workers.values():
            for name in worker.functions:
                offered.setdefault(name, []).append(worker.worker_id)
        return [
            OfferedFunction(state.functions[name], tuple(sorted(offered[name])))
            for name in sorted(offered)
        ]

    async def drain_worker(self, worker_id: str) -> None:
        """Send a worker away in order."""
        self._driver.handle(DrainRequested(worker_id))

    async def status(self) -> ClusterStatus:
        """Return the cluster at a glance."""
        return cluster_status(self._core)

    async def subscribe(self, where: EventFilter) -> AsyncIterator[list[TaskEvent]]:
        """Stream events in order of revision."""
        async for events in self._core.notifications.subscribe(where):
            yield events

    # -- tokens -------------------------------------------------------------

    async def renew_token(self) -> str:
        """Return a fresh token with the caller's rights."""
        now = unix_s.moments()
        return self._desk().renew_for(self._caller, now[0], earliest_unix_s=min(now))

    async def create_token(
        self, role: str, ttl_s: float, allow_code: bool, audience: str = "head"
    ) -> str:
        """Mint a token; what is known of it is committed before it is handed out.

        Args:
            role: Of its holder.
            ttl_s: Its life; 0: 15 minutes for a worker or an administrator, else as configured.
            allow_code: Its holder may send functions as code.
            audience: Kind of node that takes it.
        """
        kind = "worker" if role == "worker" else "user"
        subject, now = f"{kind}:{secrets.token_hex(4)}", unix_s()
        desk = self._desk()
        life_s = ttl_s or _SHORT_LIVES_S.get(role)
        token = desk.mint(role, subject, now, life_s, allow_code=allow_code, audience=audience)
        holder = desk.verify(token, now, audience)
        self._core.issued.note(info_of(holder, audience, self._caller))
        await self._driver.safe()
        return token

    async def list_tokens(self) -> list[TokenInfo]:
        """Return what is known of the tokens that were made here."""
        self._desk()
        return self._core.issued.current(unix_s())

    def _desk(self) -> TokenDesk:
        if self._core.tokens is None:
            raise ConfigError("this head runs without authentication, so it has no tokens")
        return self._core.tokens


def _join(pump: FramePump, peer: WorkerPeer | ClientPeer | NestedStream) -> Link:
    """Join an in-process peer's pump to the head's."""
    link, mine = memory_link_pair(asyncio.get_running_loop(), pump, peer)
    peer.attach(mine)
    return link


def _named(item: SubmitItem, caller: Caller) -> SubmitItem:
    """Give a task the id that its key stands for, to this caller.

    The id is committed with the task, and so is the key: there is no table that could disagree.
    """
    name = f"{caller.subject}\0{item.idempotency_key}".encode()
    digest = blake2b(name, digest_size=ids.PREFIX_BYTES + ids.SEQUENCE_BITS // 8).digest()
    sequence = int.from_bytes(digest[ids.PREFIX_BYTES :])
    return replace(item, prefix=digest[: ids.PREFIX_BYTES], sequence=sequence)


def _safety_of(verdict: SubmitVerdict) -> Durability:
    """Return how safe what a verdict rests on has to be, before it is told."""
    if verdict.error is None:
        return verdict.durability
    # A refusal for now rests on no fact, and the disk may be why.
    is_for_now = isinstance(verdict.error, ResourceExhausted)
    return Durability.MEMORY if is_for_now else Durability.FULL


def _continues(
    items: Sequence[SubmitItem], classes: Sequence[TaskClass | None], position: int
) -> bool:
    """Whether an item continues the run of the one before it."""
    before, item = items[position - 1], items[position]
    return (
        item.prefix == before.prefix
        and item.sequence == before.sequence + 1
        and item.uses_default_resources == before.uses_default_resources
        and item.deadline_unix_s == before.deadline_unix_s
        and item.rejects_duplicate == before.rejects_duplicate
        and item.durability == before.durability
        and classes[position] == classes[position - 1]
        and classes[position] is not None
    )


def _note_verdicts(
    command: AcceptTasks | RejectTasks,
    first: SubmitItem,
    start: int,
    verdicts: list[SubmitVerdict | None],
) -> None:
    for number in range(command.first, command.first + command.count):
        name = ids.task_id(command.prefix, number)
        position = start + number - first.sequence
        if isinstance(command, AcceptTasks):
            level = command.durability
            verdicts[position] = SubmitVerdict(name, None, command.deduplicated, level)
        else:
            verdicts[position] = SubmitVerdict(name, command.error)
