"""WorkerAgent: joins, works, loses and finds the head again, drains, stops, fails clearly."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest

from helpers.waiting import aeventually
from helpers.worker_head import ECHO, FakePool, FakeWorkerHead
from rustray.common.errors import (
    AuthenticationError,
    AuthorizationError,
    CommunicationError,
    ConfigError,
    FunctionNotFound,
    HeadUnavailable,
    InvariantError,
    PayloadError,
    ResourceExhausted,
    ResourceNotAvailable,
    RustRayError,
    VersionMismatch,
)
from rustray.common.resources import ResourceSet
from rustray.rpc.api import SubmitItem
from rustray.task.spec import TaskClass
from rustray.task.state import TaskState
from rustray.worker import agent as agent_module
from rustray.worker.agent import WorkerAgent
from rustray.worker.app import run_worker
from rustray.worker.config import WorkerConfig
from rustray.worker.service import WorkerService

CONFIG = WorkerConfig(cpus=2, memory_mb=100, name="w", functions=("tasks",))
CLASS = TaskClass("echo")
OK = TaskState.SUCCEEDED


class Cluster:
    """One agent, its fake head and its fake pool."""

    def __init__(self, config: WorkerConfig = CONFIG, **times: float) -> None:
        self.head = FakeWorkerHead(**times)
        self.pools: list[FakePool] = []
        self.agent = WorkerAgent(self.head, config, version="1", pool_factory=self._pool)  # type: ignore[arg-type]
        self.task: asyncio.Task[None]

    def _pool(self, listener: Any) -> FakePool:
        self.pools.append(FakePool(listener))
        return self.pools[-1]

    @property
    def pool(self) -> FakePool:
        return self.pools[0]

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Cluster]:
        self.task = asyncio.create_task(self.agent.run())
        try:
            await asyncio.wait(
                [self.task, asyncio.create_task(self.agent.wait_connected())],
                return_when=asyncio.FIRST_COMPLETED,
            )
            yield self
        finally:
            await self.agent.stop()
            await asyncio.wait([self.task])

    async def told(self, count: int) -> dict[tuple[int, int], tuple[TaskState | None, bytes]]:
        await aeventually(lambda: len(self.head.told) >= count)
        return self.head.told


async def test_it_registers_with_what_it_offers() -> None:
    """Id, resources, functions and process are announced, then tasks run."""
    async with Cluster().running() as c:
        [info] = c.head.infos
        assert info.worker_id == c.agent.worker_id
        assert info.worker_id.startswith("w-")
        assert info.functions == (ECHO,)
        assert (info.resources["cpu_cores"], info.pid, info.version) == (2, os.getpid(), "1")
        lease = c.head.grant([b"a", b"b", b"c"], CLASS)
        told = await c.told(3)
        assert told == {(lease, i): (OK, p) for i, p in enumerate([b"a", b"b", b"c"])}
    assert c.pool.is_closed


async def test_without_functions_it_registers_while_the_pool_starts() -> None:
    """Nothing to announce: head and pool are not waited for in turn."""
    c = Cluster(WorkerConfig(cpus=1, memory_mb=1))
    c.pool.before_start = lambda: aeventually(lambda: c.head.infos)
    async with c.running():
        c.head.grant([b"x"], CLASS)
        await c.told(1)


async def test_a_head_of_another_release_ends_a_new_worker_and_not_one_that_has_worked() -> None:
    """A head may be rolled back: until then the worker keeps what it has, and knocks."""
    mismatch = VersionMismatch("upgrade rustray on the head's machine")
    c = Cluster()
    c.head.refuse = [mismatch]
    with pytest.raises(VersionMismatch, match="upgrade"):
        await c.agent.run()
    async with Cluster().running() as c:
        c.pool.is_held = True
        lease = c.head.grant([b"a"], CLASS)
        await aeventually(lambda: any(c.pool.executors.values()))
        c.head.refuse = [mismatch, mismatch]
        assert c.head.link is not None
        c.head.link.break_off(HeadUnavailable("gone"))
        await aeventually(lambda: not c.head.refuse and len(c.head.infos) == 2)
        for executor_id in list(c.pool.executors):
            c.pool.release(executor_id)
        assert await c.told(1) == {(lease, 0): (OK, b"a")}


async def test_the_greeting_names_what_is_held() -> None:
    """The first frame of every session lists the work, and results arrive after a break."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        lease = c.head.grant([b"a", b"b"], CLASS)
        await aeventually(lambda: any(c.pool.executors.values()))
        assert c.head.link is not None
        c.head.link.break_off(HeadUnavailable("gone"))
        for executor_id in c.pool.executors:
            c.pool.release(executor_id)
        assert c.head.told == {}
        told = await c.told(2)
        assert {state for state, _ in told.values()} == {OK}
        greetings = [f.held or [] for f in c.head.frames if f.number == 1]
        assert [[(h.lease, h.offset, h.count) for h in g] for g in greetings] == [
            [],
            [(lease, 0, 2)],
        ]


async def test_it_keeps_trying_while_the_head_is_away(caplog: pytest.LogCaptureFixture) -> None:
    """Refused tokens and absent heads are logged once each, and tried again."""
    c = Cluster()
    c.head.refuse = [
        HeadUnavailable("no head at x"),
        HeadUnavailable("no head at x"),
        AuthenticationError("the token has expired"),
    ]
    with caplog.at_level("WARNING", logger="rustray.worker"):
        async with c.running():
            assert len(c.head.infos) == 1
    texts = [record.getMessage() for record in caplog.records]
    assert len([t for t in texts if "no head at x" in t]) == 1
    assert len([t for t in texts if "the token has expired" in t]) == 1


@pytest.mark.parametrize("error", [AuthorizationError("not a worker"), ConfigError("bad label")])
async def test_what_no_retry_can_help_is_raised(error: RustRayError) -> None:
    """A role that may not work, or refused settings, end the agent with that error."""
    c = Cluster()
    c.head.refuse = [error]
    with pytest.raises(type(error), match=str(error)):
        await c.agent.run()
    assert c.pool.is_closed


async def test_a_module_that_cannot_be_imported_is_raised() -> None:
    """The pool's ConfigError comes out of `run`, nothing was registered."""
    c = Cluster()
    c.pool.start_error = ConfigError("cannot import 'tasks'")
    troubles: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, trouble: troubles.append(trouble))
    with pytest.raises(ConfigError, match="cannot import"):
        await c.agent.run()
    assert c.head.infos == []
    gc.collect()
    assert troubles == []


async def test_heartbeats_say_what_is_held() -> None:
    """Frame numbers, leases and running tasks, beside the stream."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        lease = c.head.grant([b"a"], CLASS)
        await aeventually(lambda: c.head.beats and c.head.beats[-1].held == ((lease, 1),))
        beat = c.head.beats[-1]
        assert (beat.session, beat.received, beat.running) == (1, 1, 1)
        assert beat.memory_used_mb > 1


async def test_the_first_heartbeat_does_not_wait() -> None:
    """Bug: it stopped an exclusive task, for it had waited long to be registered."""
    async with Cluster(heartbeat_s=60.0, lease_ttl_s=120.0).running() as c:
        await aeventually(lambda: c.head.beats)


async def test_a_head_that_has_forgotten_the_session_is_joined_anew() -> None:
    """``is_known`` False closes the session; the worker registers again."""
    async with Cluster().running() as c:
        seen = len(c.head.beats)
        c.head.is_known = False
        await aeventually(lambda: len(c.head.beats) > seen)
        c.head.is_known = True
        await aeventually(lambda: len(c.head.infos) >= 2)


async def test_unanswered_heartbeats_end_the_session() -> None:
    """After a lease's time without an answer the stream is not trusted any more."""
    async with Cluster().running() as c:
        c.head.beat_error = HeadUnavailable("no answer")
        await aeventually(lambda: len(c.head.infos) >= 2)
        c.head.beat_error = None


async def test_a_stuck_heartbeat_holds_up_no_other() -> None:
    """A call that is lost on the way costs the worker neither its lease nor its session."""
    async with Cluster().running() as c:
        c.head.stuck_beats = 3
        await aeventually(lambda: c.head.stuck_beats == 0)
        seen = len(c.head.beats)
        await aeventually(lambda: len(c.head.beats) > seen + 10)
        assert len(c.head.infos) == 1


async def test_a_heartbeat_that_cannot_be_made_ends_the_session() -> None:
    """A bug there is logged, and the worker joins anew: a stream is no pulse."""
    async with Cluster().running() as c:
        c.head.beat_error = ZeroDivisionError("a bug")
        await aeventually(lambda: len(c.head.infos) >= 2)
        c.head.beat_error = None


async def test_a_head_that_breaks_the_protocol_is_left_and_joined_anew() -> None:
    """A gap in the frame numbers ends the session, not the worker."""
    async with Cluster().running() as c:
        assert c.head.link is not None
        c.head.link.sent += 5
        c.head.grant([b"a"], CLASS)
        await aeventually(lambda: len(c.head.infos) == 2)
        c.head.grant([b"b"], CLASS)
        assert set((await c.told(1)).values()) == {(OK, b"b")}


async def test_an_executors_death_is_reported_and_healed() -> None:
    """The task's outcome says LEASED, and a new executor takes the next one."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        lease = c.head.grant([b"a"], CLASS)
        await aeventually(lambda: any(c.pool.executors.values()))
        [victim] = [n for n, tasks in c.pool.executors.items() if tasks]
        c.pool.is_held = False
        c.pool.die(victim, 11)
        assert (await c.told(1))[(lease, 0)][0] is TaskState.LEASED
        await aeventually(lambda: len(c.pool.executors) == 2)


async def test_drain_finishes_what_runs_and_returns_the_rest() -> None:
    """`drain` returns when the worker has said goodbye; `run` ends with it."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        lease = c.head.grant([b"a", b"b", b"c", b"d"], CLASS)
        await aeventually(lambda: sum(map(len, c.pool.executors.values())) == 2)
        draining = asyncio.create_task(c.agent.drain())
        await aeventually(lambda: c.agent.state == "draining")
        for executor_id in list(c.pool.executors):
            c.pool.release(executor_id)
        await draining
        assert c.head.frames[-1].drained
        states = [c.head.told[(lease, i)][0] for i in range(4)]
        assert states == [OK, OK, None, None]
        await c.task


async def test_stop_does_not_wait() -> None:
    """`stop` ends the pool with what it runs."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        c.head.grant([b"a"], CLASS)
        await aeventually(lambda: any(c.pool.executors.values()))
        await c.agent.stop()
        assert c.pool.is_closed
        assert c.head.told == {}


async def test_a_bug_in_the_core_ends_the_worker_with_an_invariant_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A core that failed decides nothing more; the error is raised, not swallowed."""
    async with Cluster().running() as c:

        def fail(*_: object) -> None:
            raise ZeroDivisionError

        monkeypatch.setattr(c.agent.manager, "handle", fail)
        c.head.grant([b"a"], CLASS)
        with pytest.raises(InvariantError, match="ZeroDivisionError"):
            await c.task


# ── WorkerService ─────────────────────────────────────────────────────────────────────────


def item(task_class: TaskClass = CLASS, payload: bytes = b"hello", **changes: Any) -> SubmitItem:
    """Return what a direct call asks for."""
    return SubmitItem(bytes(10), 7, task_class, payload, **changes)


async def test_a_worker_runs_what_it_is_asked_directly() -> None:
    """The result comes back to the caller; the head is not told."""
    async with Cluster().running() as c:
        result = await WorkerService(c.agent).execute_task(item())
        assert (result.state, result.payload, result.worker_id) == (OK, b"hello", c.agent.worker_id)
        assert result.task_id == "00" * 10 + f"{7:012x}"
        assert c.head.told == {}


@pytest.mark.parametrize(
    ("asked", "error", "message"),
    [
        (item(TaskClass("eco")), FunctionNotFound, "echo"),
        (item(TaskClass("echo", code_hash=b"x" * 32)), PayloadError, "no code"),
        (item(TaskClass("echo", nargs=3)), PayloadError, "at most 1 positional"),
        (
            item(TaskClass("echo", resources=ResourceSet.of({"gpus": 1}))),
            ResourceNotAvailable,
            "gpus: needs 1, has 0",
        ),
    ],
)
async def test_a_bad_direct_call_is_refused(
    asked: SubmitItem, error: type[RustRayError], message: str
) -> None:
    """Unknown name, code, wrong arity, too much: each its typed error."""
    async with Cluster().running() as c:
        with pytest.raises(error, match=message):
            await WorkerService(c.agent).execute_task(asked)


async def test_a_direct_call_that_is_given_up_frees_the_slot() -> None:
    """Cancelling the call cancels its task."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        call = asyncio.create_task(WorkerService(c.agent).execute_task(item()))
        await aeventually(lambda: any(c.pool.executors.values()))
        call.cancel()
        await aeventually(lambda: c.agent.manager.running == 0)


async def test_a_direct_call_to_a_worker_that_stops_gets_an_error() -> None:
    """The caller is told, not left waiting."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        call = asyncio.create_task(WorkerService(c.agent).execute_task(item()))
        await aeventually(lambda: any(c.pool.executors.values()))
        await c.agent.stop()
        with pytest.raises(CommunicationError, match="stopped"):
            await call


async def test_a_leaving_worker_takes_no_direct_calls() -> None:
    """A worker that has not joined, or drains, says so."""
    c = Cluster()
    with pytest.raises(ResourceExhausted, match="starting"):
        await WorkerService(c.agent).execute_task(item())


async def test_the_status_shows_the_worker_as_it_is() -> None:
    """State, slots, executors and tasks."""
    async with Cluster().running() as c:
        c.pool.is_held = True
        c.head.grant([b"a", b"b", b"c"], CLASS)
        await aeventually(lambda: c.agent.manager.queued == 1)
        status = await WorkerService(c.agent, head="here:1", version="1").get_status()
        assert (status.state, status.slots, status.head) == ("ready", 2, "here:1")
        assert (status.held, status.running, status.queued) == (3, 2, 1)
        assert status.used["cpu_cores"] == 2
        assert [x.state for x in status.executors] == ["busy", "busy"]


# ── app ───────────────────────────────────────────────────────────────────────────────────


class FakeServer:
    """A service that listens nowhere."""

    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.is_stopped = False

    async def stop(self) -> None:
        """Stop."""
        self.is_stopped = True


async def test_the_first_signal_drains_and_the_second_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SIGTERM waits for what runs; one more does not."""
    head, server = FakeWorkerHead(), FakeServer()
    pools: list[FakePool] = []

    def make(self: WorkerAgent, listener: Any) -> FakePool:
        pools.append(FakePool(listener))
        pools[0].is_held = True
        return pools[0]

    monkeypatch.setattr(agent_module.WorkerAgent, "_make_pool", make)
    agents: list[WorkerAgent] = []

    async def serve(_: WorkerService, config: WorkerConfig, worker_id: str) -> FakeServer:
        return server

    running = asyncio.create_task(
        run_worker(CONFIG, head, serve=serve, on_start=agents.append)  # type: ignore[arg-type]
    )
    await aeventually(lambda: head.link is not None)
    assert head.infos[0].address == server.address
    head.grant([b"a"], CLASS)
    await aeventually(lambda: any(pools[0].executors.values()))
    os.kill(os.getpid(), signal.SIGTERM)
    await aeventually(lambda: agents[0].state == "draining")
    assert not running.done()
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert server.is_stopped
    assert pools[0].is_closed
