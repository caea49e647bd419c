"""Composition root of a networked head."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shlex
import signal
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rustray.common.durability import Durability
from rustray.common.errors import ConfigError, HeadUnavailable

# (Loaded now: when the first task hands in a task, there may be no descriptor left to do so.)
from rustray.head import nested_stream  # noqa: F401
from rustray.head.config import HeadConfig
from rustray.head.core import VERSION, HeadCore, HeadIdentity, Start
from rustray.head.disk_watch import DiskWatch
from rustray.head.journal import GroupCommitJournal, Journal, MemoryJournal
from rustray.head.journal_files import (
    claim,
    expect_journal,
    expect_log,
    note_journal,
    when_unlocked,
)
from rustray.head.journal_store import FILE_NAME, JournalStore
from rustray.head.result_reader import ResultReader
from rustray.head.service import HeadService
from rustray.scheduler.events import StateRecovered
from rustray.scheduler.state import SchedulerSettings
from rustray.security.auth import AuthManager
from rustray.security.certificates import (
    ServerIdentity,
    load_authority,
    load_server_identity,
)
from rustray.security.enrollment import Registrar
from rustray.security.local import publish_local_credentials, withdraw_local_credentials
from rustray.security.renewal import HEAD_BEFORE_S, keep_identity
from rustray.security.state_dir import StateDir, is_read_only
from rustray.security.wall_clock import unix_s

logger = logging.getLogger("rustray.head")

STOP_GRACE_S = 1.0
RECONNECT_CAP_S = 12.0
"""Workers and clients knock at least so often; a restarted head waits so long beyond a lease."""


def settings_of(config: HeadConfig, start: Start) -> SchedulerSettings:
    """Return the scheduler's settings."""
    is_in_memory = config.scheduling.durability == MemoryJournal.level
    return SchedulerSettings(
        strategy=config.scheduling.strategy,
        lease_ttl_s=config.leases.ttl_s,
        result_ttl_s=config.limits.result_ttl_s,
        stream_ttl_s=config.limits.stream_ttl_s,
        result_memory_bytes=config.limits.result_memory_mb * 1_000_000,
        result_disk_bytes=0 if is_in_memory else config.limits.result_disk_mb * 1_000_000,
        letter_memory_bytes=config.limits.dead_letter_memory_mb * 1_000_000,
        max_pending_tasks=config.limits.max_pending_tasks,
        max_pending_bytes=config.limits.max_pending_mb * 1_000_000,
        principal_pending_tasks=config.limits.principal_pending_tasks,
        principal_pending_bytes=config.limits.principal_pending_mb * 1_000_000,
        max_payload_bytes=config.limits.max_payload_bytes,
        max_task_depth=config.limits.max_task_depth,
        seed=time.time_ns() & 0xFFFF_FFFF,
        first_lease=start.first_lease,
        max_retries=config.scheduling.max_retries,
    )


class Head:
    """A networked head: state directory, keys, gRPC server.

    Attributes:
        address: host:port where it serves, after `start`.
        security: In words, e.g. "TLS, JWT (EdDSA)".
        failed: Done when the journal cannot be written any more; the head must stop.
    """

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.address = ""
        self.security = ""
        self._state = StateDir(config.state_dir)
        self._stack = contextlib.AsyncExitStack()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def start(self) -> None:
        """Take the state directory, load or make keys, and serve.

        Raises:
            ConfigError: another head has the directory or the port, or a file is not right.
        """
        config = self.config
        self._state.create()
        self._stack.enter_context(self._state.lock())
        auth, identity = self._load_keys()
        host = config.listen.address
        self.security = self._security_text(auth)
        journal, recovered, store, start = self._open_journal()
        core = HeadCore.create(
            HeadIdentity(
                auth.cluster_id if auth else "open",
                VERSION,
                f"{host}:{config.listen.port}",
                self.security,
            ),
            settings_of(config, start),
            tokens=auth,
            heartbeat_interval_s=config.leases.heartbeat_interval_s,
            journal=journal,
        )
        if store is not None:
            core.issued.restore(store.tokens)
            core.shared.restore(store.shared, config.leases.ttl_s + RECONNECT_CAP_S)
        core.next_session = max(core.next_session, start.epoch_ms)
        core.notifications.go_on(store.events if store else [], start.revision)
        await self._watch_disk(core, journal)
        if journal.level != MemoryJournal.level:
            reader = ResultReader(self._state.path / FILE_NAME)
            core.driver.results = reader
            self._stack.push_async_callback(reader.close)
        if recovered is not None:
            _take_over(core, recovered)
        if identity is not None:
            document = auth.verification_document() if auth is not None else None
            now = datetime.fromtimestamp(unix_s(), UTC)
            core.registrar = Registrar(load_authority(self._state, now), document)
        self._stack.callback(core.close)
        await self._serve(core, auth, identity)

    async def _serve(
        self, core: HeadCore, auth: AuthManager | None, identity: ServerIdentity | None
    ) -> None:
        """Open the port, and say to this machine where it is."""
        from rustray.rpc.server import HeadServer

        host = self.config.listen.address
        server = HeadServer(
            make_api=lambda caller: HeadService(core, caller),
            endpoint=core,
            auth=auth,
            identity=identity,
            address=host,
            port=self.config.listen.port,
        )
        server.count_refusals(core.count_refusal)
        port = await server.start()
        self._stack.push_async_callback(server.stop, STOP_GRACE_S)
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        core.identity = HeadIdentity(
            core.identity.cluster_id, VERSION, self.address, core.identity.security
        )
        if identity is not None:
            keeping = keep_identity(
                identity, self._load_identity, server.renew, before_s=HEAD_BEFORE_S
            )
            task = asyncio.get_running_loop().create_task(keeping)
            self._stack.callback(task.cancel)
        if auth is not None and identity is not None:
            self._publish(auth)

    async def _load_identity(self, now_unix_s: float) -> ServerIdentity:
        hosts = [self.config.listen.address]
        return await asyncio.to_thread(load_server_identity, self._state, hosts, now_unix_s)

    async def _watch_disk(self, core: HeadCore, journal: Journal) -> None:
        """Have the scheduler know how the disk does, from before the first task on."""
        driver = core.driver
        if isinstance(journal, GroupCommitJournal):
            journal.on_stall = lambda is_stalled: driver.note_storage(is_stalled=is_stalled)
        reserve_mb = self.config.limits.disk_reserve_mb
        if not reserve_mb or isinstance(journal, MemoryJournal):
            return
        watch = DiskWatch(
            self._state.path,
            reserve_mb * 1_000_000,
            lambda is_full: driver.note_storage(is_full=is_full),
        )
        await watch.look()
        task = asyncio.get_running_loop().create_task(watch.run())
        self._stack.callback(task.cancel)

    def _open_journal(
        self,
    ) -> tuple[Journal, StateRecovered | None, JournalStore | None, Start]:
        """Return the journal, what an earlier head has left in its store, and how to go on."""
        level = self.config.scheduling.durability
        path = self._state.path / FILE_NAME
        if level == MemoryJournal.level:
            if path.exists():
                logger.warning(
                    "%s keeps tasks of an earlier head; at durability=memory they stay there", path
                )
            return MemoryJournal(), None, None, Start.first()
        expect_journal(self._state)
        self._stack.enter_context(claim(path))
        store, recovered = when_unlocked(lambda: self._load(path, level))
        if store.starts == 1:
            logger.info("starting with an empty journal, %s", path)
        note_journal(self._state)
        journal = GroupCommitJournal(
            store,
            level,
            asyncio.get_running_loop(),
            on_failure=self._fail,
            least=max(
                (batch.durability for batch in recovered.batches) if recovered else (),
                default=Durability.DEFAULT,
            ),
        )
        self._stack.push_async_callback(journal.close)
        start = Start(store.epoch_ms, is_first=store.starts == 1)
        return journal, recovered, store, start

    def _load(self, path: Path, level: str) -> tuple[JournalStore, StateRecovered | None]:
        expect_log(path)
        store = JournalStore(path, level, unix_s)
        try:
            return store, store.load(self.config.leases.ttl_s + RECONNECT_CAP_S)
        except BaseException:
            store.close()
            raise

    def _fail(self, error: BaseException) -> None:
        """Stop: from now on nothing that the head says would be true."""
        if not self.failed.done():
            self.failed.set_result(error)

    def _load_keys(self) -> tuple[AuthManager | None, ServerIdentity | None]:
        security = self.config.security
        auth = None
        if security.auth:
            auth = AuthManager.open(
                self._state,
                jwt_secret=security.jwt_secret,
                token_expiration_s=security.token_expiration_s,
            )
        identity = None
        if security.tls:
            hosts = [self.config.listen.address]
            identity = load_server_identity(self._state, hosts, unix_s())
        return auth, identity

    def _security_text(self, auth: AuthManager | None) -> str:
        """Say in words how connections are protected."""
        tls = "TLS" if self.config.security.tls else "no TLS"
        return f"{tls}, JWT ({auth.algorithm})" if auth else f"{tls}, no authentication"

    def _publish(self, auth: AuthManager) -> None:
        """Write local credentials now, and again each time before they end."""

        def publish() -> float:
            return publish_local_credentials(self._state, auth, self.address, unix_s())

        due = publish()
        self._stack.callback(self._withdraw)
        task = asyncio.get_running_loop().create_task(_republish(publish, due))
        self._stack.callback(task.cancel)

    def _withdraw(self) -> None:
        """Remove the local credentials, if that can be: the reason of the end must not get lost."""
        try:
            withdraw_local_credentials(self._state)
        except ConfigError as error:
            logger.error("%s; commands here look in vain for this head until another starts", error)

    async def close(self) -> None:
        """Stop serving and give the state directory free."""
        await self._stack.aclose()


def _take_over(core: HeadCore, recovered: StateRecovered) -> None:
    """Have the scheduler go on where an earlier head stopped."""
    core.driver.handle(recovered)
    for batch in recovered.batches:
        core.sessions.restore(batch.prefix, batch.principal)
    for prefix, _, principal in recovered.expired:
        core.sessions.restore(prefix, principal)
    logger.info(
        "found %d unfinished tasks of an earlier head and %d workers to wait for",
        core.driver.scheduler.state.pending_tasks,
        len(recovered.workers),
    )


async def _republish(publish: Callable[[], float], due_unix_s: float) -> None:
    while True:
        await asyncio.sleep(max(due_unix_s - unix_s(), 0.5))
        try:
            due_unix_s = publish()
        except ConfigError as error:
            logger.error("cannot renew the local credentials: %s", error)
            due_unix_s = unix_s() + 10.0


def announce(head: Head, config: HeadConfig) -> None:
    """Say on stdout that a head is ready, and how a worker joins it."""
    state = f"state in {config.state_dir}"
    print(f"head ready at rustray://{head.address} ({head.security}; {state})", flush=True)
    where = shlex.join(["--state-dir", str(config.state_dir)])
    print(f"join a worker on this machine: rustray worker {where} --functions MODULE", flush=True)


async def run_head(
    config: HeadConfig, on_start: Callable[[Head, HeadConfig], None] = announce
) -> None:
    """Run a head until SIGTERM or Ctrl-C.

    Args:
        config: Of the head.
        on_start: Called once it serves.

    Raises:
        ConfigError: it cannot start; the message says why and what to do.
    """
    head = Head(config)
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    try:
        await head.start()
        on_start(head, config)
        head.failed.add_done_callback(lambda _: stopped.set())
        await stopped.wait()
    finally:
        await head.close()
    if head.failed.done():
        raise HeadUnavailable(
            f"the head has stopped, for the journal in {config.state_dir} cannot be written: "
            f"{head.failed.result()}. Nothing was acked since; {_remedy(config)}, and "
            "start it again"
        )


def _remedy(config: HeadConfig) -> str:
    """Say what to do about a journal that cannot be written."""
    if is_read_only(config.state_dir):
        return (
            "the file system there is read-only now, as one is after an error of its disk: look "
            "into the kernel's log (dmesg), mount it for writing"
        )
    return "see to the disk"
