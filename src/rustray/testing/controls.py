"""What a test can do to a simulated cluster: crash, pause, cut, mend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from rustray.common.errors import InvariantError
from rustray.testing.client import SimClient
from rustray.testing.clock import ProcessLoop, VirtualClock
from rustray.testing.head import HEAD, SimHead
from rustray.testing.history import History
from rustray.testing.network import Network
from rustray.testing.placing import misplaced
from rustray.testing.reading import CLIENT
from rustray.testing.tasks import SimTask
from rustray.testing.values import SimNodes
from rustray.testing.worker import SimWorker

_EXECUTOR_SIGNAL: Final = 9
_LOOK_S: Final = 1.0
"""How often to look whether values are where they should be."""


class Controls:
    """The faults half of `SimCluster`."""

    _clock: VirtualClock
    _network: Network
    _history: History
    _head: SimHead
    _client: SimClient
    _nodes: SimNodes
    _workers: dict[str, SimWorker]

    def __init__(self) -> None:
        self._operator = ProcessLoop(self._clock)

    def later(self, delay_s: float, call: Callable[..., object], *args: object) -> None:
        """Arrange a call of yours for a time to come, e.g. a fault."""
        self._operator.call_later(delay_s, call, *args)

    @property
    def is_head_up(self) -> bool:
        """Whether the head runs."""
        return self._head.is_up

    def leave(self, task: SimTask) -> None:
        """Have the consumer of a generator want no more; what `SimTask.leave` does."""
        self._history.note("left", CLIENT, task.number)
        self._client.leave(self._history.tasks[task.number])

    def cancel(self, task: SimTask, *, force: bool = False) -> None:
        """Ask the head to cancel a task; what `SimTask.cancel` does."""
        self._history.note("cancel asked", CLIENT, task.number)
        self._client.cancel(self._history.tasks[task.number], force=force)

    def name_of(self, worker_id: str) -> str:
        """Return the name of a worker in one of its lives."""
        return self._history.names.get(worker_id, worker_id)

    def free(self, task: SimTask) -> None:
        """Let go of a result; what `SimTask.free` does."""
        self._client.free(self._history.tasks[task.number])

    def crash_head(self) -> None:
        """Kill the head as ``kill -9`` does: what it has not committed is lost.

        Raises:
            ValueError: it does not run.
        """
        self._need(self._head.is_up, "the head does not run")
        self._history.note("head crashed", HEAD)
        self._head.crash()

    def restart_head(self) -> None:
        """Start a head again, with what the journal has.

        Raises:
            ValueError: it runs.
        """
        self._need(not self._head.is_up, "the head runs")
        self._history.note("head started", HEAD)
        self._head.start()

    def pause_head(self) -> None:
        """Freeze the head as SIGSTOP does."""
        self._history.note("head paused", HEAD)
        self._head.loop.pause()

    def resume_head(self) -> None:
        """Let the head go on; without effect if it is not paused."""
        if self._head.loop.is_paused:
            self._history.note("head resumed", HEAD)
            self._head.loop.resume()

    @property
    def worker_names(self) -> Sequence[str]:
        """Names of all workers, also of those that do not run."""
        return list(self._workers)

    def is_worker_up(self, name: str) -> bool:
        """Whether a worker runs."""
        return self._worker(name).is_up

    def crash_worker(self, name: str) -> None:
        """Kill a worker and its executors, with what they have not reported.

        Raises:
            ValueError: there is no such worker, or it does not run.
        """
        worker = self._worker(name)
        self._need(worker.is_up, f"{name} does not run")
        self._history.frozen.discard(name)
        self._history.note("worker crashed", name)
        worker.die()

    def restart_worker(self, name: str) -> None:
        """Start a worker again that has crashed or left.

        Raises:
            ValueError: there is no such worker, or it runs.
        """
        worker = self._worker(name)
        self._need(not worker.is_up, f"{name} runs")
        self._history.note("worker started", name)
        worker.start()

    def pause_worker(self, name: str) -> None:
        """Freeze a worker with its tasks, as SIGSTOP or a sleeping laptop does."""
        self._worker(name).loop.pause()
        self._history.frozen.add(name)
        self._history.note("worker paused", name)

    def resume_worker(self, name: str) -> None:
        """Let a worker go on; without effect if it is not paused."""
        loop = self._worker(name).loop
        if loop.is_paused:
            self._history.note("worker resumed", name)
            self._history.frozen.discard(name)
            loop.resume()

    def drain_worker(self, name: str) -> None:
        """Send a worker away in order, as ``rustray workers drain`` does.

        Without effect if the head does not run or does not know it.
        """
        worker = self._worker(name)
        if self.is_head_up:
            self._history.note("worker drained", name)
            self._head.loop.deliver(self._head.drain, worker.worker_id)

    def kill_executor(self, name: str) -> None:
        """Kill the executor of a worker that runs a task, as the system does when memory is out.

        Without effect if it runs none.
        """
        worker = self._worker(name)
        busy = [one for one in worker.pool.executors.values() if one.is_busy]
        if worker.is_up and busy:
            self._history.note("executor killed", name)
            worker.loop.deliver(busy[0].exit, _EXECUTOR_SIGNAL)

    def partition(self, a: str, b: str, *, one_way: bool = False) -> None:
        """Cut the network between two of "head", "client" and the workers.

        Args:
            a: One side.
            b: The other.
            one_way: Only what goes from ``a`` to ``b`` is lost.

        Raises:
            ValueError: a name is unknown.
        """
        self._network.partition(a, b, one_way=one_way)
        self._history.note("cut", f"{a} → {b}" if one_way else f"{a} ↔ {b}")

    def heal(self, a: str | None = None, b: str | None = None) -> None:
        """Mend the network: between two, around one, or everywhere."""
        self._network.heal(a, b)
        self._history.note("mended", " ↔ ".join(name for name in (a, b) if name) or "everywhere")

    def network(self, *, between: tuple[str, str] | None = None, **faults: Any) -> None:
        """Make the network bad, or good again.

        Args:
            between: Two of "head", "client" and the workers; None for all links that were not
                named before.
            **faults: ``drop``, ``duplicate`` and ``reorder`` are probabilities of a message,
                ``delay_s=(least, greatest)`` its travel time; see `Faults`.

        Raises:
            ValueError: a value is out of range, or a name is unknown.
        """
        self._network.set_faults(between, **faults)
        self._history.note("network", " ↔ ".join(between or ("everywhere",)), detail=str(faults))

    def check_values(self, within_s: float = 60.0) -> None:
        """Let time pass until workers keep the values that the head knows of, and no others.

        Mend everything and let all tasks end before (`settle`): a message that was lost is made
        good within seconds, and a worker that is gone is noticed when its lease has ended.

        Args:
            within_s: Virtual seconds to wait at most.

        Raises:
            InvariantError: they keep others still: a value has leaked, or is not where the head
                takes it to be.
        """
        until_s = self._clock.now + within_s
        while True:
            wrong = self._misplaced()
            if not wrong:
                return
            if self._clock.now >= until_s:
                raise InvariantError(wrong)
            self._run(self._clock.now + _LOOK_S, None)

    def _misplaced(self) -> str:
        if not self._head.is_up:
            return "the head is down"
        freed = [t.number for t in self._history.tasks if t.freed_before is not None]
        return misplaced(self._head.driver.scheduler.state, self._nodes.kept(), freed)

    def _run(self, limit: float, condition: Callable[[], object] | None) -> bool:
        """Let time pass; see `SimCluster`."""
        raise NotImplementedError

    def restore(self) -> None:
        """Undo all faults: mend the network, resume and restart what is paused or down."""
        self._network.reset()
        self._history.note("mended", "everywhere")
        if self._head.is_up:
            self.resume_head()
        else:
            self.restart_head()
        for name, worker in self._workers.items():
            if worker.is_up:
                self.resume_worker(name)
            else:
                self.restart_worker(name)

    def _worker(self, name: str) -> SimWorker:
        worker = self._workers.get(name)
        if worker is None:
            raise ValueError(f"there is no worker {name!r}; there are: {', '.join(self._workers)}")
        return worker

    @staticmethod
    def _need(condition: bool, text: str) -> None:
        if not condition:
            raise ValueError(text)
