"""A head without its gRPC server: what the networked and the embedded head share."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from rustray.common.counting import count_refused
from rustray.common.durability import Durability
from rustray.common.errors import RustRayError
from rustray.coordination.state import Settings as CoordinationSettings
from rustray.head import liveness
from rustray.head.client_peer import ClientPeer
from rustray.head.connections import ConnectionManager
from rustray.head.coordination import CoordinationDriver
from rustray.head.driver import HeadDriver
from rustray.head.issued import IssuedTokens
from rustray.head.journal import Journal, MemoryJournal
from rustray.head.nested_peer import NestedPeer, Parent
from rustray.head.notifications import NotificationManager
from rustray.head.owners import Owners
from rustray.head.waits import ResultWaiters
from rustray.head.worker_peer import WorkerPeer
from rustray.scheduler.events import WorkerDied
from rustray.scheduler.scheduler import Scheduler
from rustray.scheduler.state import SchedulerSettings
from rustray.security.roles import SCOPE_CODE, Caller, Role
from rustray.security.wall_clock import unix_s
from rustray.task.place import Place
from rustray.task.spec import Codec

if TYPE_CHECKING:
    from rustray.head.nested_stream import NestedStream
    from rustray.security.enrollment import Enrollment

logger = logging.getLogger("rustray.head")

VERSION = "0.1.0"
CERTIFICATE_CHECKS_S = (0.0, 0.05, 0.2, 1.0, 3.0)
"""When to look, after a stream broke, whether the worker's process is gone."""


@dataclass(frozen=True, slots=True)
class Start:
    """Numbers that no earlier head can have given out.

    Attributes:
        epoch_ms: Unix milliseconds, later than the start of any earlier head.
        is_first: There was no earlier head in this place.
    """

    epoch_ms: int
    is_first: bool

    @classmethod
    def first(cls) -> Start:
        """Return the start of a head that knows of no earlier one."""
        return cls(int(time.time() * 1000), is_first=True)

    @property
    def first_lease(self) -> int:
        """Number of the first lease; above all of before up to 16 million leases a second."""
        return self.epoch_ms << 14

    @property
    def revision(self) -> int:
        """What the first event comes after; above all of before up to 4 million events a second.

        Below 2**53, so that clients that know numbers only as doubles have it whole.
        """
        return 0 if self.is_first else self.epoch_ms << 12


class Registrar(Protocol):
    """Signs for workers; `rustray.security.enrollment.Registrar` is one."""

    def enroll(self, worker_id: str, signing_request: bytes) -> Enrollment:
        """Issue a certificate for a worker's key."""


class TokenDesk(Protocol):
    """Mints tokens; `rustray.security.auth.AuthManager` is one."""

    def mint(
        self,
        role: Role | str,
        subject: str,
        now_unix_s: float,
        ttl_s: float | None = None,
        *,
        allow_code: bool = False,
        audience: str = "head",
        renew_until_unix_s: float | None = None,
    ) -> str:
        """Sign a new token."""

    def renew_for(
        self,
        caller: Caller,
        now_unix_s: float,
        audience: str = "head",
        *,
        earliest_unix_s: float | None = None,
    ) -> str:
        """Sign a fresh token for a caller whose present one is good."""

    def verify(self, token: str | None, now_unix_s: float, audience: str = "head") -> Caller:
        """Answer who holds a token."""


@dataclass(frozen=True, slots=True)
class HeadIdentity:
    """What a head says of itself.

    Attributes:
        security: E.g. "TLS, JWT (EdDSA)", or "in process".
        address: host:port, or "" for an embedded head.
    """

    cluster_id: str
    version: str
    address: str
    security: str


@dataclass(slots=True)
class HeadCore:
    """The driver and everything around it, on one event loop.

    Attributes:
        sessions: Whose tokens may hand in tasks under which prefix.
        workers: Whose tokens may speak as which worker.
        registrar: Signs certificates of workers; None without TLS.
        issued: What is known of tokens that were made.
        next_session: Number of the next worker session; grows over restarts too.
        code_senders: Subjects of tokens with the scope "code" that have been used here.
        shared: Locks, semaphores, events and queues.
    """

    identity: HeadIdentity
    driver: HeadDriver
    connections: ConnectionManager
    notifications: NotificationManager
    waiters: ResultWaiters
    tokens: TokenDesk | None
    heartbeat_interval_s: float
    started_at_s: float
    host_key: str
    next_session: int
    registrar: Registrar | None = None
    issued: IssuedTokens = field(init=False)
    shared: CoordinationDriver = field(init=False)
    worker_hosts: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    sessions: Owners[bytes] = field(init=False)
    workers: Owners[str] = field(init=False)
    watches: set[asyncio.Task[None]] = field(default_factory=set)
    code_senders: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        state = self.driver.scheduler.state
        clients, refusals = self.driver.clients, self.driver.refusals
        self.issued = IssuedTokens(self.driver.journal.append)
        settings = CoordinationSettings(
            lease_s=state.settings.lease_ttl_s, first_fence=state.settings.first_lease
        )
        self.shared = CoordinationDriver(self.driver, settings)
        self.sessions = Owners(
            "this session of tasks",
            # By way of the state: what ends with it is not to be kept by who asks.
            lambda key: (
                key in state.sessions or key in clients or key in refusals or key in state.expired
            ),
        )
        self.workers = Owners("this worker's id", lambda key: key in state.workers)
        if self.tokens is not None:
            self.driver.object_token = partial(_object_token, self.tokens)

    @classmethod
    def create(
        cls,
        identity: HeadIdentity,
        settings: SchedulerSettings,
        *,
        tokens: TokenDesk | None = None,
        heartbeat_interval_s: float = 2.0,
        journal: Journal | None = None,
    ) -> HeadCore:
        """Build a head core on the running event loop."""
        notifications = NotificationManager()
        journal = journal or MemoryJournal()
        settings = replace(settings, durability=Durability[journal.level.upper()])
        loop = asyncio.get_running_loop()
        driver = HeadDriver(Scheduler(settings), notifications, journal, loop)
        waiters = ResultWaiters()
        driver.on_outcome = waiters.on_outcome
        driver.on_items = waiters.on_items
        return cls(
            identity,
            driver,
            ConnectionManager(driver),
            notifications,
            waiters,
            tokens,
            heartbeat_interval_s,
            driver.now(),
            liveness.host_key(),
            int(time.time() * 1000),
        )

    # -- HeadEndpoint: where the gRPC server gets its pumps ---------------------

    def worker_pump(self, caller: Caller, worker_id: str, session: int) -> WorkerPeer:
        """Open the head's end of a worker's stream.

        Raises:
            AuthorizationError: the worker has registered with another token.
            CommunicationError: the session is not the present one.
        """
        self.workers.check(worker_id, caller)
        peer = self.connections.open_worker(worker_id, session)
        peer.when_closed = self.watch_worker
        return peer

    def nested_pump(self, caller: Caller, worker_id: str, session: int) -> NestedStream:
        """Open the head's end for the sessions of tasks that run on a worker.

        Raises:
            AuthorizationError: the worker has registered with another token.
        """
        # Imported late: an embedded cluster loads no protobuf until a task hands in a task.
        from rustray.head.nested_stream import NestedStream

        self.workers.check(worker_id, caller)
        return NestedStream(partial(self._nested_peer, worker_id, session))

    def _nested_peer(self, worker_id: str, session: int, lease: int, offset: int) -> NestedPeer:
        parent = Parent.find(self.driver, worker_id, session, lease, offset)
        principal = parent.batch.principal
        scopes = frozenset({SCOPE_CODE}) if self._may_send_code(parent) else frozenset[str]()
        caller = Caller(principal, Role.SUBMIT, scopes, math.inf, "nested")
        self.sessions.claim(parent.children, caller)
        peer = NestedPeer(
            self.driver,
            parent,
            caller.may_send_code,
            lambda other: self.sessions.may_use(other, caller),
        )
        self.connections.enter_client(peer)
        return peer

    def _may_send_code(self, parent: Parent) -> bool:
        """Whether who has handed in a task could have handed in any code."""
        task_class = parent.task_class
        if task_class.code_hash or task_class.codec is Codec.PICKLE:
            return True
        principal = parent.batch.principal
        return principal in self.code_senders or self.issued.may_send_code(principal)

    def client_pump(self, caller: Caller, prefix: bytes) -> ClientPeer:
        """Open the head's end of a client's stream.

        Raises:
            AuthorizationError: the session is another token's.
        """
        self.sessions.claim(prefix, caller)
        self.note_caller(caller)
        return self.connections.open_client(
            prefix,
            "code" in caller.scopes,
            lambda other: self.sessions.may_use(other, caller),
            caller.subject,
        )

    def note_caller(self, caller: Caller) -> None:
        """Remember who may send code: what their tasks hand in may be code as well."""
        if caller.may_send_code:
            self.code_senders.add(caller.subject)

    def count_refusal(self, error: RustRayError) -> None:
        """Count a call that ended with an error: all, by the error's code, and by its reason."""
        count_refused(self.driver.scheduler.state.counters, "calls_refused", error)

    def watch_worker(self, worker_id: str) -> None:
        """After a stream broke: find out whether the worker's process is gone."""
        known = self.worker_hosts.get(worker_id)
        if known is None or not self.host_key or known[2] != self.host_key:
            return
        task = asyncio.get_running_loop().create_task(self._certify(worker_id, *known[:2]))
        self.watches.add(task)
        task.add_done_callback(self.watches.discard)

    async def _certify(self, worker_id: str, pid: int, session: int) -> None:
        for wait_s in CERTIFICATE_CHECKS_S:
            await asyncio.sleep(wait_s)
            if not self.driver.scheduler.knows_session(worker_id, session):
                return
            if liveness.is_process_gone(pid):
                logger.warning("worker %s is dead (process %d is gone)", worker_id, pid)
                self.driver.handle(WorkerDied(worker_id, session))
                return

    def close(self) -> None:
        """Stop timers and watches."""
        self.shared.close()
        self.driver.close()
        for task in list(self.watches):
            task.cancel()


def _object_token(tokens: TokenDesk, place: Place, subject: str) -> str:
    # Imported late: what loads JWT, which nobody needs who has no tokens.
    from rustray.security.object_tokens import mint_object_token

    return mint_object_token(tokens, place.object_id, subject, unix_s())
