"""A client of a chaos run: ``python -m chaos.client HOST PORT SEED``, a program of its own.

It hands in tasks of every kind, cancels some, fetches results (also those of clients that have
been killed), and writes down what it asked and what it was told. SIGTERM ends the handing in; it
then waits for what is open. SIGKILL may come at any time.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any, Final, NoReturn

import rustray
from chaos import functions, graph_functions, graphs
from chaos.history import FOLDER_ENV, REFUSED_EXIT, Reader, Writer, digest, own_writer
from rustray.client import context
from rustray.task.spec import MAX_RETRIES_LIMIT

KEYS_ENV: Final = "CHAOS_KEYS"
ROUND_ENV: Final = "CHAOS_ROUND"
RATE_ENV: Final = "CHAOS_IN_FLIGHT"
LIMIT_ENV: Final = "CHAOS_LIMIT"
ACTS_ENV: Final = "CHAOS_ACTS"
BATCH_ENV: Final = "CHAOS_BATCH"
WATCH_ENV: Final = "CHAOS_WATCH"
PACE_ENV: Final = "CHAOS_PACE"
_PAUSE_S: Final = 0.25
_LARGE_EVERY_S: Final = 12.0
"""Large values are kept to the end of a run, and the head's disk may be a small one."""
_CASCADE_S: Final = 12.0
"""So long the children of tasks take that are cancelled."""
_OTHERS: Final = 20
_REFUSALS: Final = (
    rustray.ResourceExhausted,
    rustray.ResourceNotAvailable,
    rustray.FunctionNotFound,
    rustray.DuplicateTask,
)


@rustray.remote
def travelling(number: int, seconds: float) -> str:
    """Travel as code, for it is defined in a main module."""
    return functions.step(number, seconds)


@rustray.remote(generator_backpressure_num_objects=5)
def streaming(count: int, seconds: float) -> Iterator[str]:
    """Travel as code, and yield."""
    yield from functions.stream(count, seconds)


class Client:
    """The load of one process.

    Attributes:
        head: Connection for single calls.
        open: Tasks whose end has not been told yet.
    """

    def __init__(self, host: str, port: int, random: Random, history: Writer) -> None:
        self.head = rustray.HeadNode(host, port, allow_pickle=True)
        self.address = f"rustray://{host}:{port}"
        self.open: set[str] = set()
        self._unacked: set[str] = set()
        self._random, self._history = random, history
        self._sequence = 0
        self._prefix = random.randbytes(10)
        self._limit = int(os.environ.get(RATE_ENV, "120"))
        self._batch = int(os.environ.get(BATCH_ENV, "40"))
        self._watched = float(os.environ.get(WATCH_ENV, "1"))
        self._pace = float(os.environ.get(PACE_ENV, "1"))
        self._left = int(os.environ.get(LIMIT_ENV, "0")) or sys.maxsize
        self._stop = asyncio.Event()
        self._waiting: set[asyncio.Task[None]] = set()
        self._others = Reader(Path(os.environ[FOLDER_ENV]))
        self._foreign: list[str] = []
        self._large_at = 0.0

    # ---- life -------------------------------------------------------------------------

    async def run(self) -> None:
        """Hand in until told to stop, or until the limit; then wait for what is open."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self._stop.set)
        await self._patiently(self.head.connect)
        await self._patiently(lambda: rustray.ainit(self.address))
        assert context.current_session is not None
        self._history.write("session", prefix=context.current_session.prefix.hex())
        wanted = os.environ.get(ACTS_ENV, "").split(",")
        acts = [act for act in _ACTS if wanted == [""] or act[0].__name__ in wanted]
        while not self._stop.is_set() and self._left > 0:
            if len(self.open) >= self._limit:
                await self._pause(_PAUSE_S / 5)
                continue
            [(act, _)] = self._random.choices(acts, [weight for _, weight in acts])
            await act(self)
        while self._waiting:
            await asyncio.wait(self._waiting)
        await rustray.ashutdown()
        await self.head.close()

    async def _patiently(self, connect: Callable[[], Awaitable[Any]]) -> None:
        while not self._stop.is_set():
            try:
                await connect()
            except rustray.HeadUnavailable:
                await self._pause(_PAUSE_S)
            else:
                return

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stop.wait(), seconds)

    def _new_id(self) -> str:
        self._sequence += 1
        return (self._prefix + self._sequence.to_bytes(6, "big")).hex()

    def _take(self, wanted: int) -> int:
        taken = min(wanted, self._left)
        self._left -= taken
        return taken

    # ---- handing in -------------------------------------------------------------------

    async def _hand_in(self, specs: list[rustray.TaskSpec]) -> list[str]:
        """Hand in tasks under names of our own until the head has said what it does with them."""
        if not specs:
            return []
        ids = [spec.task_id for spec in specs if spec.task_id is not None]
        retries = 3 if specs[0].max_retries is None else specs[0].max_retries
        key, again = specs[0].idempotency_key or "", bool(specs[0].retry_exceptions)
        exclusive = specs[0].exclusive
        self._history.write(
            "submit", ids=ids, retries=retries, key=key, again=again, exclusive=exclusive
        )
        while True:
            try:
                answers = await self.head.submit_tasks_batch(specs, return_errors=True)
                break
            except rustray.HeadUnavailable:  # for half a minute; the same ids are the same tasks
                self._history.write("away", call="submit_tasks_batch")
                await self._pause(_PAUSE_S)
        accepted: list[str] = [answer for answer in answers if isinstance(answer, str)]
        if accepted:
            self._history.write("ack", ids=accepted, key=key)
        for spec, answer in zip(specs, answers, strict=True):
            if not isinstance(answer, str):
                self._refused(spec.task_id, answer)
        for number, task_id in enumerate(accepted, 1):
            is_watched = number == len(accepted) or self._random.random() < self._watched
            if is_watched and task_id not in self.open:
                self.open.add(task_id)
                self._spawn(self._await_end(task_id))
        return accepted

    def _refused(self, task_id: str | None, error: rustray.RustRayError) -> None:
        if not isinstance(error, _REFUSALS):
            raise error
        self._history.write("refused", ids=[task_id] if task_id else [], code=error.code)

    def _steps(self, count: int, **options: Any) -> list[rustray.TaskSpec]:
        random = self._random
        padding = random.choice([0, 0, 0, 100, 5_000, 300_000 if count < 3 else 0])
        return [
            rustray.TaskSpec(
                "step",
                [i, round(self._pace * random.choice([0.0, 0.0, 0.01, 0.05, 0.3]), 4), padding],
                task_id=self._new_id(),
                **options,
            )
            for i in range(count)
        ]

    async def batch(self) -> None:
        """Hand in a batch of default tasks."""
        await self._hand_in(self._steps(self._take(self._random.randint(1, self._batch))))

    async def once(self) -> None:
        """Hand in tasks that run at most once."""
        await self._hand_in(self._steps(self._take(self._random.randint(1, 12)), max_retries=0))

    async def alone(self) -> None:
        """Hand in tasks of which no two attempts may ever run at a time."""
        seconds = self._random.choice([0.1, 0.5, 1.5])
        specs = [
            rustray.TaskSpec("step", [i, seconds, 0], task_id=self._new_id(), exclusive=True)
            for i in range(self._take(self._random.randint(1, 4)))
        ]
        await self._hand_in(specs)

    async def remote(self) -> None:
        """Hand in calls of a function that travels as code, through the session."""
        count = self._take(self._random.randint(1, 30))
        self._watch([travelling.remote(i, self._random.choice([0.0, 0.02])) for i in range(count)])

    def _watch(self, refs: list[rustray.TaskRef[Any]]) -> None:
        ids = [ref.task_id for ref in refs]
        self._history.write("submit", ids=ids, retries=3, key="", again=False)
        self.open.update(ids)
        self._unacked.update(ids)
        self._spawn(self._await_refs(refs))

    async def stream(self) -> None:
        """Hand in a generator, and read it; some are left half-way."""
        if not self._take(1):
            return
        random = self._random
        count = random.choice([0, 3, 30, 200])
        limit = count // 2 if random.random() < 0.2 else None
        refs = streaming.remote(count, random.choice([0.0, 0.01]))
        task_id = refs.task_id
        self._history.write("submit", ids=[task_id], retries=3, key="", again=False)
        self.open.add(task_id)
        self._unacked.add(task_id)
        self._spawn(self._read_stream(refs, limit))

    async def graph(self) -> None:
        """Hand in tasks that take what others return."""
        if self._take(1):
            await self._hand_in_graph(graphs.small(self._random, self._pace))

    async def large(self) -> None:
        """Hand in tasks that take, and return, large values; not often."""
        now = time.monotonic()
        if now >= self._large_at and self._take(1):
            self._large_at = now + _LARGE_EVERY_S / max(self._pace, 0.02)
            await self._hand_in_graph(graphs.of_large_values(self._random, self._pace))

    async def _hand_in_graph(self, graph: graphs.Graph) -> None:
        graph.write(self._history)
        self._take(len(graph.values) - 1)
        self.open.update(graph.values)
        self._unacked.update(graph.values)
        for values in graph.values.values():
            self._spawn(self._await_values(values))
        if graph.victim:
            self._spawn(self._cancel_later(graph.victim, self._random.uniform(0.0, 1.0)))

    async def nest(self) -> None:
        """Hand in tasks that hand in tasks; some die once in the middle of it."""
        random = self._random
        depth, width = random.randint(1, 3), random.randint(1, 3)
        how = random.choice(["", "", "kill", "segfault", "exit"])
        seconds = round(self._pace * random.choice([0.0, 0.05, 0.4]), 4)
        if self._take(1):
            self._watch([graph_functions.branch.remote(depth, width, seconds, how)])

    async def cascade(self) -> None:
        """Hand in tasks that hand in tasks which take long, and cancel them."""
        if self._take(1):
            depth = self._random.randint(1, 2)
            ref = graph_functions.branch.remote(depth, 2, _CASCADE_S, "", waits=True)
            self._watch([ref])
            self._spawn(self._cancel_later(ref.task_id, self._random.uniform(0.3, 3.0)))

    async def _cancel_later(self, task_id: str, seconds: float) -> None:
        """Cancel a task that was handed in through the session, until the head has said so."""
        await _passed(seconds)
        while task_id in self.open:
            # No head may answer just now; or it is still to be handed in, perhaps again.
            with contextlib.suppress(rustray.HeadUnavailable, rustray.TaskNotFound):
                state = await self.head.cancel_task(task_id)
                self._history.write("cancel", id=task_id, state=state.name)
                return
            await _passed(_PAUSE_S)

    async def keyed(self) -> None:
        """Hand in a task that other clients hand in too, under the same key."""
        keys = int(os.environ.get(KEYS_ENV, "0"))
        if keys:
            self._take(1)
            number, series = self._random.randrange(keys), os.environ.get(ROUND_ENV, "0")
            spec = rustray.TaskSpec(
                "step", [number, 0.01, 0], idempotency_key=f"key {series}.{number}"
            )
            await self._hand_in([spec])

    async def trouble(self) -> None:
        """Hand in what kills its executor, once or always, or raises, or will not stop."""
        random = self._random
        how = random.choice(["segfault", "abort", "kill", "exit"])
        kinds: list[tuple[str, list[Any], int]] = [
            ("stumble", [1, how, 1], MAX_RETRIES_LIMIT),
            ("stumble", [2, how, 1_000_000], 2),
            ("stumble", [3, how, 1_000_000], MAX_RETRIES_LIMIT),
            ("fail", [4], 3),
            ("flaky", [5, 2], MAX_RETRIES_LIMIT),
            ("stubborn", [1.0], 3),
        ]
        name, arguments, retries = random.choice(kinds)
        if self._take(1):
            spec = rustray.TaskSpec(
                name,
                arguments,
                task_id=self._new_id(),
                max_retries=retries,
                retry_exceptions=name == "flaky",
                retry_delay_s=0.2 if name == "flaky" else None,
            )
            await self._hand_in([spec])

    async def refusable(self) -> None:
        """Hand in what the head has to refuse; the rest of the batch runs.

        A head that has just started, and waits for the workers of before, takes it: it may be one
        of theirs. Its queue limit ends it then.
        """
        if not self._take(1):
            return
        nobody, name = "no_such_function", self._new_id()
        specs = [
            rustray.TaskSpec(nobody, [1], task_id=name, queue_timeout_s=5.0),
            *self._steps(1),
        ]
        await self._hand_in(specs)

    async def cancel(self) -> None:
        """Cancel some of what is open; a few of them were handed in just now."""
        fresh = await self._hand_in(self._steps(self._take(self._random.randint(1, 10))))
        others = sorted(self.open)
        chosen = fresh[: len(fresh) // 2 + 1] + self._random.sample(others, min(3, len(others)))
        for task_id in chosen:
            try:
                state = await self.head.cancel_task(task_id, force=self._random.random() < 0.2)
            except rustray.HeadUnavailable:
                self._history.write("away", call="cancel_task")
                continue
            except rustray.TaskNotFound:
                if task_id in self.open and task_id not in self._unacked:
                    raise
                # The head has restarted, and this one is still to be handed in again; or it has
                # ended meanwhile, and its large value was let go.
                continue
            self._history.write("cancel", id=task_id, state=state.name)

    async def visit(self) -> None:
        """Fetch what other clients, perhaps dead ones, have handed in."""
        for record in self._others.new():
            if record["k"] == "ack":
                self._foreign += record["ids"]
        self._random.shuffle(self._foreign)
        for task_id in [self._foreign.pop() for _ in range(min(_OTHERS, len(self._foreign)))]:
            if task_id not in self.open:
                self.open.add(task_id)
                self._spawn(self._await_end(task_id))

    # ---- waiting for ends -------------------------------------------------------------

    def _spawn(self, waiting: Awaitable[None]) -> None:
        task = asyncio.create_task(_run(waiting))
        self._waiting.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._waiting.discard(task)
        if not task.cancelled():
            task.result()  # a bug here must not pass unseen: the loop's handler ends the process

    async def _await_end(self, task_id: str) -> None:
        result = await self.head.get_task_result(task_id)
        self.open.discard(task_id)
        if result is None:
            self._history.write("result", id=task_id, state="", hash="", attempts=0)
            return
        self._write_result(task_id, result)

    def _write_result(self, task_id: str, result: rustray.TaskResult) -> None:
        self._history.write(
            "result",
            id=task_id,
            state=result.state.name,
            hash=digest(result.value),
            attempts=result.attempts,
        )

    async def _read_stream(self, refs: rustray.RefGenerator[str], limit: int | None) -> None:
        """Look whether each item comes once and in order, and how many the task says it had."""
        index, task_id = 0, refs.task_id
        with contextlib.suppress(rustray.TaskError):  # it is the task's own, and comes once more
            async for value in refs.values():
                if value != functions.item(task_id, index):
                    text = f"item {index} of the generator {task_id} is {value!r:.60}"
                    self._history.write("problem", text=text)
                index += 1
                if index == limit:
                    self._history.write("cancel", id=task_id, state="")  # asked, and not answered
                    refs.close()
        ended = refs.completed()
        await self._await_refs([ended])
        with contextlib.suppress(rustray.TaskError):
            count = await rustray.aget(ended)
            if count != index and limit is None:
                text = f"the generator {task_id} had {count} items, and {index} came"
                self._history.write("problem", text=text)

    async def _await_values(self, values: list[graphs.Value]) -> None:
        """Wait for a task of a graph, and write what its references give."""
        task_id = values[0].ref.task_id
        for one in values:
            try:
                found = digest(await rustray.aget(one.ref))
            except rustray.AuthenticationError as error:
                _refuse(error)
            except rustray.RustRayError as error:
                name, origin = type(error).__name__, graphs.origin_of(error)
                self._history.write("cause", id=task_id, error=name, origin=origin)
                continue
            if one.index == graphs.WHOLE:
                self._history.write("value", id=task_id, hash=found)
            else:
                self._history.write("part", id=task_id, index=one.index, hash=found)
        self._history.write("ack", ids=[task_id], key="")
        self._unacked.discard(task_id)
        await self._await_end(task_id)

    async def _await_refs(self, refs: list[rustray.TaskRef[Any]]) -> None:
        for ref in refs:
            value = ""
            try:
                value = digest(await rustray.aget(ref))
            except rustray.AuthenticationError as error:
                _refuse(error)
            except rustray.TaskError as error:
                value = type(error).__name__
            self._history.write("ack", ids=[ref.task_id], key="")
            self._unacked.discard(ref.task_id)
            self._history.write("value", id=ref.task_id, hash=value)
            await self._await_end(ref.task_id)


_ACTS: Final = (
    (Client.batch, 10),
    (Client.once, 4),
    (Client.alone, 2),
    (Client.remote, 8),
    (Client.stream, 3),
    (Client.graph, 5),
    (Client.large, 2),
    (Client.nest, 3),
    (Client.cascade, 1),
    (Client.keyed, 3),
    (Client.trouble, 2),
    (Client.refusable, 1),
    (Client.cancel, 3),
    (Client.visit, 3),
)


async def _passed(seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(asyncio.Event().wait(), seconds)


async def _run(waiting: Awaitable[None]) -> None:
    await waiting


def _end_process(_loop: asyncio.AbstractEventLoop, found: dict[str, Any]) -> None:
    error = found.get("exception")
    if isinstance(error, rustray.AuthenticationError):
        _refuse(error)
    print(f"client ends: {found.get('message')}: {error!r}", file=sys.stderr, flush=True)
    os._exit(70)


async def main(host: str, port: str, seed: str) -> None:
    """Be a client until told to stop."""
    asyncio.get_running_loop().set_exception_handler(_end_process)
    try:
        await Client(host, int(port), Random(int(seed)), own_writer()).run()
    except rustray.AuthenticationError as error:
        _refuse(error)


def _refuse(error: BaseException) -> NoReturn:
    print(f"client ends: {error}", file=sys.stderr, flush=True)
    os._exit(REFUSED_EXIT)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
