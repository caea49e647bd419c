"""`SimCluster`: a whole cluster in one thread and in virtual time, from a seed."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from random import Random
from types import TracebackType
from typing import Any, Final, Self

from rustray.client.remote import RemoteFunction
from rustray.scheduler.state import SchedulerSettings
from rustray.task.place import MIN_PLACED_BYTES
from rustray.testing.chaos import FAULTS, Nemesis
from rustray.testing.client import SimClient
from rustray.testing.clock import WALL_OFFSET_S, VirtualClock
from rustray.testing.controls import Controls
from rustray.testing.head import HEAD, SimHead, TroubleHandler
from rustray.testing.history import History, HistoryEntry, SimNode
from rustray.testing.host import SimHost
from rustray.testing.network import Network
from rustray.testing.placing import PREFIX
from rustray.testing.reading import CLIENT
from rustray.testing.replay import replay_command
from rustray.testing.tasks import Duration, SimFunction, SimTask, record_of
from rustray.testing.values import SimNodes
from rustray.testing.worker import SimWorker
from rustray.worker import context

_START_LIMIT_S: Final = 60.0
_TAIL: Final = 25
"""Entries of the history that a failure shows."""


class SimCluster(Controls):
    """The real scheduler, worker managers, reconnects and journal over a simulated network.

    Nothing here waits: a minute of virtual time takes milliseconds, and everything follows from
    the seed, so that a failure can be repeated. After each event the promises are checked; see
    docs/testing.md for which.

    Use it as a context manager: an error that leaves the block, from an assertion of yours or
    from a broken promise, then says the seed and the command that repeats it.

    Attributes:
        seed, stay_bytes: As given.
        random: For your own draws; they disturb none of the simulation's.
        events: How many have happened, messages and timers.
    """

    def __init__(
        self,
        seed: int,
        *,
        workers: int | Mapping[str, float | SimNode] = 2,
        commit_s: float = 0.002,
        check_every: int = 1,
        settings: SchedulerSettings | None = None,
        waits: float = 0.0,
        stay_bytes: int = MIN_PLACED_BYTES,
    ) -> None:
        """Start a head, workers and a client, and let them connect.

        Args:
            seed: Of all that is random.
            workers: How many, named "w-0", "w-1" ..., of one core each; or name to cores or node.
            commit_s: Longest time of a commit of the journal; each draws its own.
            check_every: Check all invariants after so many events; 1 finds the very one, slowly.
            settings: The scheduler's; its seed and first lease are replaced.
            waits: Share of the plain tasks that wait, as for tasks of their own, for their time.
            stay_bytes: Results of so many encoded bytes and more stay with their worker, if their
                task may run again.
        """
        self.seed = seed
        self.random = self._stream("user")
        self._clock = VirtualClock()
        self._network = Network(self._clock, self._stream("network"))
        self._history = History(self._clock)
        settings = replace(settings or SchedulerSettings(), seed=seed)
        self._history.may_expire = settings.result_memory_bytes < 1 << 20
        self.stay_bytes = stay_bytes
        self._functions: list[SimFunction] = []
        self._nodes = SimNodes(self._network)
        self._host = SimHost(self._history)
        self._hosts_before: list[tuple[context.Host, int]] = []
        self._head = SimHead(
            self._clock, self._network, self._history, self._stream("journal"), settings, commit_s
        )
        if isinstance(workers, int):
            workers = {f"w-{number}": 1.0 for number in range(workers)}
        self._workers = {name: self._make_worker(name, node) for name, node in workers.items()}
        self._client = SimClient(self._clock, self._network, self._head, self._nodes, self._history)
        super().__init__()
        self._nemesis = Nemesis(self, self._stream("chaos"))
        self._check_every, self._waits, self.events = check_every, waits, 0
        self._trouble = TroubleHandler(self._clock)
        self._run(self._clock.now + _START_LIMIT_S, self._is_ready)
        self._history.begin()

    def _stream(self, name: str) -> Random:
        return Random(f"{self.seed}/{name}")  # noqa: S311 - a simulation is to be repeated

    def _is_ready(self) -> bool:
        known = self._head.driver.scheduler.state.workers
        ready = [worker for worker in known.values() if worker.state == "ready"]
        return self._client.is_connected and len(ready) == len(self._workers)

    def _make_worker(self, name: str, node: SimNode | float) -> SimWorker:
        if name in (HEAD, CLIENT):
            raise ValueError(f"a worker cannot be called {name!r}")
        node = self._history.offers(name, node)
        return SimWorker(
            name, node, self._clock, self._network, self._head, _Functions(self), self._nodes
        )

    def add_worker(self, name: str, cpus: SimNode | float = 1.0) -> None:
        """Start one more worker, of so many cores or as the node says.

        Raises:
            ValueError: the name is taken.
        """
        self._need(name not in self._workers, f"there is a worker {name!r} already")
        self._history.note("worker started", name)
        self._workers[name] = self._make_worker(name, cpus)

    def __enter__(self) -> Self:
        logging.getLogger("rustray").addHandler(self._trouble)
        self._hosts_before = context._hosts[:]
        context.serve(self._host)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.check()
        except BaseException as found:
            self._explain(found)
            raise
        finally:
            self._head.store.close()
            logging.getLogger("rustray").removeHandler(self._trouble)
            context._hosts[:] = self._hosts_before
            self._end()
        if error is not None:
            self._explain(error)

    def _end(self) -> None:
        """End all processes: nothing is to happen any more."""
        for loop in (*self._network.loops.values(), self._operator):
            loop.kill()
        for worker in self._workers.values():
            worker.pool.end()

    def _explain(self, error: BaseException) -> None:
        """Say how to repeat a failure."""
        text = (
            f"SimCluster failed with seed {self.seed}, {self.now:.4f} virtual seconds after its "
            f"start; repeat it with:\n  {replay_command(self.seed)}"
        )
        tail = "\n".join(map(str, self._history.entries[-_TAIL:]))
        error.add_note(f"{text}\nWhat happened last:\n{tail}")
        print(text, file=sys.stderr)

    # -- tasks -----------------------------------------------------------------------------

    def remote(
        self,
        function: Callable[..., Any] | RemoteFunction[..., Any],
        *,
        takes_s: Duration | None = None,
        **options: Any,
    ) -> SimFunction:
        """Make a function run as tasks of this cluster.

        Args:
            function: A plain function, called at the start of each attempt; an ``async def``,
                whose asyncio.sleep and the like take virtual time; or a function that
                `rustray.remote` has decorated, with its options.
            takes_s: How long an attempt of a plain function, or an item of a generator, takes in
                virtual seconds; or a function of its arguments. Effects happen at the start.
            **options: As for `rustray.remote`; ``durability`` makes no difference here, each task
                is as safe as at the level "full".

        Raises:
            ValueError: an unknown option, or a value out of range.
            TypeError: not a function.
        """
        made = SimFunction(self, len(self._functions), function, takes_s, options)
        self._functions.append(made)
        self._client.codes[made.task_class.code_hash] = made.code
        return made

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> SimTask:
        """Hand in one task with the default options; see `remote`."""
        return self.remote(function).remote(*args, **kwargs)

    def hand_in(
        self, function: SimFunction, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> SimTask:
        """Hand in one task; what `SimFunction.remote` does."""
        record = record_of(len(self._history.tasks), function, args, kwargs)
        number = record.number
        self._history.tasks.append(record)
        self._history.note("submitted", CLIENT, number)
        self._client.submit(record)
        return SimTask(self, record)

    @property
    def tasks(self) -> list[SimTask]:
        """All tasks, in order of submission."""
        return [SimTask(self, record) for record in self._history.tasks]

    # -- time ------------------------------------------------------------------------------

    @property
    def now(self) -> float:
        """Virtual seconds since the start."""
        return self._history.now

    @property
    def unix_s(self) -> float:
        """What the wall clocks of the simulation show, as for the option ``deadline``."""
        return self._clock.now + WALL_OFFSET_S

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._run(self._clock.now + seconds, None)

    def run_until(self, condition: Callable[[], object], within_s: float = 600.0) -> None:
        """Let time pass until something holds; it is looked at after each event.

        Raises:
            TimeoutError: it did not within so many virtual seconds.
        """
        if not self._run(self._clock.now + within_s, condition):
            name = getattr(condition, "__name__", repr(condition))
            raise TimeoutError(
                f"{name} did not hold within {within_s:g} virtual seconds{self._waiting()}"
            )

    def wait_for(self, task: SimTask, within_s: float) -> None:
        """Let time pass until a task has ended; what `SimTask.result` does."""
        if not self._run(self._clock.now + within_s, lambda: task.is_done):
            raise TimeoutError(
                f"{task} did not end within {within_s:g} virtual seconds{self._waiting()}"
            )

    def settle(self, within_s: float = 600.0) -> None:
        """Mend everything, and let time pass until all tasks have ended.

        Raises:
            TimeoutError: some did not within so many virtual seconds; says why, as far as the
                head knows.
        """
        self.restore()
        if not self._run(self._clock.now + within_s, self._all_done):
            raise TimeoutError(
                f"not all tasks ended within {within_s:g} virtual seconds{self._waiting()}"
            )
        self.check()

    def _all_done(self) -> bool:
        return self._history.ended_tasks == len(self._history.tasks)

    def _run(self, limit: float, condition: Callable[[], object] | None) -> bool:
        if condition is not None and condition():
            return True
        while self._clock.step(limit):
            self.events += 1
            if self.events % self._check_every == 0:
                self.check()
            if condition is not None and condition():
                return True
        return False

    def _waiting(self) -> str:
        """Say what the head knows of the tasks that have not ended."""
        open_tasks = [task for task in self._history.tasks if not task.has_ended]
        if not open_tasks:
            return ""
        lines = [f"; {len(open_tasks)} tasks have not ended:"]
        for task in open_tasks[:5]:
            why = "the head is down"
            if self.is_head_up:
                scheduler = self._head.driver.scheduler
                found = scheduler.explain(PREFIX, task.number, self._clock.now)
                why = str(found) if found is not None else "the head does not know it (yet)"
            lines.append(f"  task {task.number} ({task.task_class.function}): {why}")
        return "\n".join(lines)

    def chaos(
        self, duration_s: float = 60.0, *, every_s: float = 5.0, faults: Sequence[str] = FAULTS
    ) -> None:
        """Arrange random faults for the time to come; each is undone within 25 seconds.

        Args:
            duration_s: The last one comes before this.
            every_s: Mean time between two.
            faults: Kinds to choose from, of `FAULTS`.

        Raises:
            ValueError: a kind is not known, or a time makes no sense.
        """
        self._nemesis.plan(duration_s, every_s, faults)

    # -- what happened ---------------------------------------------------------------------

    @property
    def history(self) -> list[HistoryEntry]:
        """All that happened, in order; the same seed and the same program give the same."""
        return self._history.entries

    def entries_of(self, task: SimTask) -> list[HistoryEntry]:
        """Return what happened to a task; `SimTask.history`."""
        return [entry for entry in self._history.entries if entry.task == task.number]

    def trace(self) -> str:
        """Return the history as text, a line each."""
        return "\n".join(map(str, self._history.entries))

    def check(self) -> None:
        """Verify all invariants now.

        Raises:
            InvariantError: names the one that is broken.
        """
        self._head.check()
        for worker in self._workers.values():
            worker.driver.manager.check()


class _Functions:
    """What executors find in the cluster."""

    def __init__(self, cluster: SimCluster) -> None:
        self._cluster = cluster
        self.history = cluster._history
        self.host = cluster._host
        self.stay_bytes = cluster.stay_bytes

    def function_of(self, code: bytes) -> Callable[..., Any]:
        """Return the function behind a class's code."""
        return self._cluster._functions[int(code.rpartition(b" ")[2])].function

    def waits(self, number: int) -> bool:
        """Whether this task waits for tasks of its own."""
        share, stream = self._cluster._waits, self._cluster._stream
        return share > 0 and stream(f"waits/{number}").random() < share
