"""A simulated worker: the real manager, driver and reconnects, with simulated executors."""

from __future__ import annotations

from typing import Any, Final

from rustray.common.resources import ResourceSet
from rustray.task.frames import AssignFrame, LeaseOutcome, WorkerFrame
from rustray.task.views import Heartbeat, HeartbeatReply, WorkerInfo
from rustray.testing.clock import WALL_OFFSET_S, ProcessLoop, Timer, VirtualClock
from rustray.testing.executor import Functions, SimPool
from rustray.testing.head import HEAD, SimHead
from rustray.testing.history import SimNode
from rustray.testing.network import Network
from rustray.testing.stream import End, Stream
from rustray.testing.values import SimDesk, SimNodes
from rustray.worker import events as w
from rustray.worker.driver import WorkerDriver
from rustray.worker.reconnect import ReconnectManager
from rustray.worker.state import WorkerLimits
from rustray.worker.value_errands import ValueErrands

HEARTBEAT_S: Final = 2.0
RPC_LIMIT_S: Final = 5.0
"""How long a call waits for its answer."""


class CheckedDriver(WorkerDriver):
    """The real driver; a bug that it would survive ends the simulation.

    Memory is not simulated: ``memory_mb`` says where tasks fit, and nothing outgrows it.
    """

    def apply(self, event: w.Event) -> None:
        """See `WorkerDriver.apply`."""
        super().apply(event)
        if self.failure is not None:
            raise self.failure

    def _carry_out(self, command: w.Command) -> None:
        if not isinstance(command, w.WatchMemory | w.UnwatchMemory):
            super()._carry_out(command)

    def _unix_s(self, at: float) -> float:
        return at + WALL_OFFSET_S


class SessionPump:
    """The worker's end of one session."""

    def __init__(self, worker: SimWorker, number: int) -> None:
        self.worker, self.number = worker, number

    @property
    def _is_present(self) -> bool:
        return self.worker.session is self and self.worker.is_up

    def next_frame(self) -> WorkerFrame | None:
        """See `FramePump`."""
        return self.worker.take_frame() if self._is_present else None

    def on_frame(self, frame: AssignFrame) -> None:
        """See `FramePump`."""
        if self._is_present:
            self.worker.take(self.number, frame)

    def on_closed(self, error: object) -> None:
        """See `FramePump`."""
        if self._is_present:
            self.worker.lose_session(is_orderly=error is None)


class SimWorker:
    """A worker's processes: the agent and its executors live, pause and die together.

    Attributes:
        name: What the cluster calls it.
        worker_id: What it calls itself in its present life; a new one at each start.
        is_up: Whether it runs (it may be paused).
        has_left: It was drained and has ended by itself.
        desk: What it keeps.
        session: The present one, None between two.
    """

    def __init__(
        self,
        name: str,
        node: SimNode,
        clock: VirtualClock,
        network: Network,
        head: SimHead,
        functions: Functions,
        nodes: SimNodes,
    ) -> None:
        self.name, self.node = name, node
        self._clock, self._network, self._head = clock, network, head
        self._functions, self._nodes = functions, nodes
        self._lives = 0
        self.is_up = False
        self.start()

    # -- life ------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process (anew)."""
        self._lives += 1
        self.is_up, self.has_left = True, False
        self.worker_id = self.name if self._lives == 1 else f"{self.name}~{self._lives}"
        self._functions.history.names[self.worker_id] = self.name
        self.loop = self._network.loops[self.name] = ProcessLoop(self._clock)
        self.desk = SimDesk(self.name, self.worker_id, self._nodes, self._note_keeping)
        self.desk.begin(self.loop)
        self._errands = ValueErrands(self.worker_id, self.desk, self.wake_link)
        self._errands.open(self.loop)
        resources = ResourceSet.of(self.node.amounts)
        self.driver = CheckedDriver(self, WorkerLimits(resources), self._make_pool)
        self.driver.open(self.loop)
        self._reconnect = ReconnectManager(f"{self.name}/{self._lives}")
        self.session: SessionPump | None = None
        self._end: End | None = None
        self._stream: Stream | None = None
        self._limit: Timer | None = None
        self._heard_at = self._asked_at = 0.0
        self.driver.apply(w.PoolStarted())
        self.loop.call_soon(self._connect)

    def _note_keeping(self, is_keeping: bool) -> None:
        self.driver.apply(w.KeepingChanged(is_keeping))

    def _make_pool(self, driver: Any) -> SimPool:
        def tell(event: w.Event) -> None:
            if type(event) is w.ExecutorReported:
                driver.executor_reported(event.executor_id, event.outcomes)
            else:
                driver.apply(event)

        self.pool = SimPool(
            self.name, self._clock, self.loop, self._functions, tell, self.desk.load
        )
        return self.pool

    def die(self) -> None:
        """Kill the processes; the head's system learns of it if the network lets it."""
        self.is_up = False
        self.session = None
        self.loop.kill()
        self.pool.die()
        self.desk.end()
        if self._stream is not None:
            self._stream.die_at(self.name)

    def leave(self) -> None:
        """The core is drained: end (see `driver.Owner`)."""
        self.loop.call_soon(self._leave)

    def _leave(self) -> None:
        if self._end is not None:
            self._end.hang_up()
        self.has_left = True
        self.die()

    # -- the session -----------------------------------------------------------------------

    def _connect(self) -> None:
        """Register, then open the stream."""
        if self.session is not None:
            return
        node = self.node
        info = WorkerInfo(
            self.worker_id,
            self._lives,
            self.name,
            self.desk.address,
            node.amounts,
            node.labels,
            host_key=self.name,
        )
        self._asked_at = self.loop.time()
        self._limit = self.loop.call_later(RPC_LIMIT_S, self._fail)
        self._network.carry(self.name, HEAD, self._ask_to_register, info)

    def _ask_to_register(self, info: WorkerInfo) -> None:
        head, loop = self._head, self.loop
        head.loop.create_task(head.register(info, lambda n: self._answer(loop, n)))

    def _answer(self, loop: ProcessLoop, session: int | None) -> None:
        self._network.carry(HEAD, self.name, self._registered, loop, session)

    def _registered(self, loop: ProcessLoop, session: int | None) -> None:
        if loop is not self.loop or self._limit is None:
            return  # too late, or the answer came twice
        if session is None:
            self._fail()
            return
        self._limit.cancel()
        self._limit = None
        self._reconnect.session_opened(self.loop.time())
        self._heard_at = self.loop.time()
        pump = self.session = SessionPump(self, session)
        self.driver.apply(w.SessionOpened(session, self._asked_at, self._head.lease_ttl_s))
        stream = self._stream = Stream(self._network, self.name, HEAD, breaks=False)
        self._end = stream.join(self.name, self.loop, pump)
        self._network.insist(self.name, HEAD, self._open_at_head, session, stream)
        self._end.wake()
        self.loop.call_later(HEARTBEAT_S, self._beat, pump)

    def _open_at_head(self, session: int, stream: Stream) -> None:
        if HEAD not in stream.ends:
            self._head.open_worker(self.worker_id, session, stream)

    def _fail(self) -> None:
        """No answer, or a refusal: try again after a pause."""
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None
        self.loop.call_later(self._reconnect.pause_after_failure(self.loop.time()), self._connect)

    def lose_session(self, *, is_orderly: bool) -> None:
        """The stream is over."""
        session, self.session, self._end = self.session, None, None
        assert session is not None
        self._errands.session_closed()
        self.driver.apply(w.SessionClosed(session.number, is_orderly))
        self._fail()

    def take_frame(self) -> WorkerFrame | None:
        """Return the next frame for the stream."""
        if self._errands.answers:
            return self._errands.take_frame()
        manager = self.driver.manager
        frame = manager.take_frame(self.loop.time()) if manager.has_frame else None
        if frame is not None and frame.drained:
            self.driver.set_timer()
        return frame

    def take(self, session: int, frame: AssignFrame) -> None:
        """Take a frame of the stream."""
        if frame.free:
            self.desk.free(frame.free)
        self._errands.surrender(frame.surrender)
        self._errands.adopt(frame.adopt)
        self.driver.apply(w.FrameReceived(session, frame))

    # -- heartbeats ------------------------------------------------------------------------

    def _beat(self, pump: SessionPump) -> None:
        """Send a heartbeat beside the stream, over the same bad network."""
        if self.session is not pump:
            return
        if self.loop.time() - self._heard_at >= 5 * HEARTBEAT_S:
            self._hang_up()  # as the agent does when no heartbeat is answered
            return
        self.loop.call_later(HEARTBEAT_S, self._beat, pump)
        manager = self.driver.manager
        objects = self.desk.doubtful(manager.is_draining) if manager.is_settled else ()
        beat = Heartbeat(self.worker_id, pump.number, *manager.heartbeat(), objects=objects)
        self._network.carry(self.name, HEAD, self._beat_at_head, pump, beat, self.loop.time())

    def _beat_at_head(self, pump: SessionPump, beat: Heartbeat, asked_at: float) -> None:
        reply = self._head.heartbeat(beat)
        self._network.carry(HEAD, self.name, self._hear, pump, asked_at, reply)

    def _hear(self, pump: SessionPump, asked_at: float, reply: HeartbeatReply) -> None:
        if self.session is not pump:
            return
        self._heard_at = self.loop.time()
        if reply.is_known:
            self.desk.free(reply.unneeded)
            self.driver.apply(w.HeartbeatAnswered(pump.number, asked_at))
        else:
            self._hang_up()

    def _hang_up(self) -> None:
        if self._end is not None:
            self._end.hang_up()

    # -- what the core asks (see `driver.Owner`) -------------------------------------------

    def wake_link(self) -> None:
        """There is a frame for the head."""
        if self._end is not None:
            self._end.wake()

    def settle_large(self, outcome: LeaseOutcome) -> LeaseOutcome:
        """Keep a large result here, if it may stay."""
        task = self.driver.manager.may_stay(outcome.lease, outcome.offset)
        return self.desk.settle(outcome, task)

    def close_session(self, number: int) -> None:
        """End this session, if it is still the present one."""
        if self.session is not None and self.session.number == number:
            self.loop.call_soon(self._hang_up)
