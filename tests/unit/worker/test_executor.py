"""Executors run what they are given and report each task once, whatever the task does."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from helpers.waiting import aeventually
from rustray.common.errors import ConfigError, InvariantError, ResourceExhausted
from rustray.objects.port import ObjectPort, new_name
from rustray.objects.segment import Segment
from rustray.task import codec as codecs
from rustray.task.columns import PlacedColumn
from rustray.task.inputs import WHOLE, InputValue, Slot, join_call
from rustray.task.place import Place
from rustray.task.spec import Codec, ExecutorKind, TaskClass
from rustray.task.state import TaskState
from unit.worker.executor_harness import Bench, bench

# The executors cannot import test modules: their functions travel by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])

KINDS = list(ExecutorKind)
MIB = 1024 * 1024


def double(x: Any) -> Any:
    """Return twice x."""
    return x * 2


async def double_later(x: Any) -> Any:
    """Return twice x from a coroutine."""
    await asyncio.sleep(0)
    return x * 2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [double, double_later])
async def test_every_kind_runs_plain_functions_and_coroutines(
    kind: ExecutorKind, function: Callable[..., Any]
) -> None:
    """Each executor kind runs ``def`` and ``async def``, several chunks of several tasks."""
    async with bench() as b:
        executor = b.spawn(kind, 3)
        number = b.define(executor, function)
        leases = [b.run(executor, number, *[(i,) for i in range(50)]) for _ in range(4)]
        for lease in leases:
            assert await b.values(lease, 50) == [2 * i for i in range(50)]


async def test_quick_successes_travel_as_one_outcome() -> None:
    """Consecutive results of one chunk are coalesced and carry their run time together."""
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, double)
        await b.values(b.run(executor, number, (1,)), 1)
        lease = b.run(executor, number, *[(i,) for i in range(100)])
        await b.values(lease, 100)
        outcomes = [each for each in b.seen.outcomes if each.lease == lease]
        assert len(outcomes) < 20
        assert all(0 <= each.run_us < 10_000_000 for each in outcomes)


def echo(data: bytes, size: int) -> tuple[int, bytes]:
    """Return the size of what came and as many bytes as asked for."""
    return len(data), bytes(size)


@pytest.mark.parametrize("kind", KINDS)
async def test_megabytes_in_both_directions_at_once_do_not_deadlock(kind: ExecutorKind) -> None:
    """Big arguments wait to be sent while big results wait to be read."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        number = b.define(executor, echo)
        leases = [
            b.run(executor, number, (bytes(3 * MIB), 2 * MIB), (bytes(MIB), 5 * MIB))
            for _ in range(4)
        ]
        for lease in leases:
            sizes = [(n, len(data)) for n, data in await b.values(lease, 2)]
            assert sizes == [(3 * MIB, 2 * MIB), (MIB, 5 * MIB)]


class Odd(BaseException):
    """Nobody's subclass."""


def raise_it(make: Callable[[], BaseException]) -> None:
    """Raise what is made."""
    raise make()


def bad_result() -> Any:
    """Return what cannot be pickled, two levels down."""
    return {"a": [1, threading.Lock()]}


def big_result() -> bytes:
    """Return two mebibytes."""
    return bytes(2 * MIB)


FAILURES: list[tuple[Callable[..., Any], tuple[Any, ...], str, str, str]] = [
    (raise_it, (lambda: ValueError("bad"),), "TASK_FAILED", "bad", "builtins.ValueError"),
    (raise_it, (lambda: SystemExit(3),), "TASK_FAILED", "3", "builtins.SystemExit"),
    (raise_it, (KeyboardInterrupt,), "TASK_FAILED", "", "builtins.KeyboardInterrupt"),
    (raise_it, (GeneratorExit,), "TASK_FAILED", "", "builtins.GeneratorExit"),
    (raise_it, (StopIteration,), "TASK_FAILED", "", "builtins.StopIteration"),
    (raise_it, (lambda: Odd("odd"),), "TASK_FAILED", "odd", ".Odd"),
    (raise_it, (RecursionError,), "TASK_FAILED", "", "builtins.RecursionError"),
    (double, (1, 2), "TASK_FAILED", "positional argument", "builtins.TypeError"),
    (bad_result, (), "PAYLOAD", "result['a'][1] (a _thread.lock)", ""),
    (big_result, (), "RESOURCE_EXHAUSTED", "2.0 MiB when encoded, over the limit of 1.0 MiB", ""),
]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failing_task_fails_alone(kind: ExecutorKind) -> None:
    """Whatever a task raises or returns, it gets a clear failure, and the executor goes on."""
    async with bench(max_result_bytes=MIB) as b:
        executor = b.spawn(kind, 1)
        for function, args, code, message, error_type in FAILURES:
            lease = b.run(executor, b.define(executor, function), args)
            state, info = await b.failure(lease)
            assert (state, info.code) == (TaskState.FAILED, code), info
            assert message in info.message
            assert info.error_type.endswith(error_type)
            assert "rustray/worker" not in info.traceback
        assert await b.value(executor, double, 4) == 8
        assert not b.seen.exits


async def async_exit() -> None:
    """Raise SystemExit inside a coroutine."""
    await asyncio.sleep(0)
    raise SystemExit(1)


@pytest.mark.parametrize("kind", KINDS)
async def test_system_exit_in_a_coroutine_fails_only_its_task(kind: ExecutorKind) -> None:
    """It does not end the event loop or the process."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        state, info = await b.failure(b.run(executor, b.define(executor, async_exit), ()))
        assert (state, info.error_type) == (TaskState.FAILED, "builtins.SystemExit")
        assert await b.value(executor, double_later, 4) == 8


async def test_failures_keep_their_place_among_successes() -> None:
    """In a chunk of mixed outcomes each index gets its own, in every position."""
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, lambda x: 1 // x)
        calls = [(i % 3,) for i in range(60)]
        states = await b.ended(b.run(executor, number, *calls), 60)
        for index, (x,) in enumerate(calls):
            assert states[index] is (TaskState.SUCCEEDED if x else TaskState.FAILED)


async def test_the_pickled_exception_comes_back_as_itself() -> None:
    """PICKLE tasks carry their exception, with its cause as text."""

    def chained() -> None:
        try:
            os.environ["NO_SUCH_VARIABLE"]
        except KeyError as exc:
            raise LookupError("outer") from exc

    async with bench() as b:
        executor = b.spawn()
        _, info = await b.failure(b.run(executor, b.define(executor, chained), ()))
        assert isinstance(codecs.decode_value(Codec.PICKLE, info.pickled), LookupError)
        assert codecs.decode_failure(info.cause).error_type == "builtins.KeyError"
        assert "direct cause" in info.traceback


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (b"cno_such_module_x\nrun\n.", "'no_such_module_x' is missing"),
        (b"garbage", "cannot be unpickled"),
        (cloudpickle.dumps(42), "cannot be called"),
    ],
)
async def test_a_function_that_cannot_be_had_fails_each_of_its_tasks(
    kind: ExecutorKind, code: bytes, message: str
) -> None:
    """The failure names function and reason, and later tasks of the class get it too."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        lease = b.run(executor, b.define(executor, code), (1,), (2,))
        for index in range(2):
            state, info = await b.failure(lease, index)
            assert (state, info.code) == (TaskState.FAILED, "PAYLOAD")
            assert message in info.message
            assert "'job'" in info.message


@pytest.mark.parametrize("kind", KINDS)
async def test_arguments_that_do_not_decode_fail_their_task_only(kind: ExecutorKind) -> None:
    """Garbage as payload, a missing module and a wrong shape are told apart from user errors."""
    async with bench() as b:
        executor = b.spawn(kind, 2)
        good = codecs.encode_call(Codec.PICKLE, (5,), {})
        payloads = [b"garbage", b"cno_such_mod\nX\n.", b"", good]
        lease = b.run_payloads(executor, b.define(executor, double), payloads)
        states = await b.ended(lease, 4)
        assert [states[i] is TaskState.SUCCEEDED for i in range(4)] == [False, False, False, True]
        for index in range(3):
            _, info = await b.failure(lease, index)
            assert info.code == "PAYLOAD"
            assert "was not called" in info.message


FUNCTIONS = '''
import asyncio, os, threading
import rustray.task.functions as f

barrier = threading.Barrier(3, timeout=20)
rendezvous = []

@f.function
def add(a: int, b: float = 0.5, flag: bool = False) -> list:
    """Adds."""
    return [a + b, flag]

@f.function("rest")
def rest_(*values: int, **named: float):
    return [sum(values), sum(named.values())]

@f.function
def keep(text: str, anything):
    return [text, anything]

@f.function(executor="thread")
def meet():
    return barrier.wait() >= 0

@f.function
async def gather_three():
    rendezvous.append(1)
    while len(rendezvous) < 3:
        await asyncio.sleep(0.001)
    return len(rendezvous)

class Resize(f.TaskExecutor):
    function_name = "resize"
    def __init__(self): self.calls = 0
    async def execute(self, by: int = 1):
        self.calls += by
        return self.calls
'''


@pytest.fixture
def module(tmp_path: Path) -> dict[str, Any]:
    """Write a module of registered functions; return the options that make a pool load it."""
    (tmp_path / "executor_test_functions.py").write_text(FUNCTIONS)
    return {
        "function_modules": ["executor_test_functions"],
        "sys_path": [str(tmp_path), *sys.path],
    }


async def test_registered_functions_are_announced_with_signature_and_doc(
    module: dict[str, Any],
) -> None:
    """`start` returns what the modules registered, and this process has not imported them."""
    async with bench(**module) as b:
        infos = {info.name: info for info in b.functions}
    assert sorted(infos) == ["add", "gather_three", "keep", "meet", "resize", "rest"]
    assert infos["add"].signature == "add(a: int, b: float = 0.5, flag: bool = False) -> list"
    assert infos["add"].doc == "Adds."
    assert infos["meet"].executor is ExecutorKind.THREAD
    assert infos["resize"].executor is ExecutorKind.ASYNC
    assert infos["add"].check_call(0, []) == "argument 'a' is missing"
    assert "executor_test_functions" not in sys.modules


CONVERSIONS: list[tuple[str, list[Any], dict[str, Any], Any]] = [
    ("add", ["2", "1.5"], {}, [3.5, False]),
    ("add", [2], {"flag": "YES"}, [2.5, True]),
    ("add", ["7"], {"flag": "0", "b": "1"}, [8.0, False]),
    ("rest", ["1", 2, "3"], {"x": "0.5", "y": 1}, [6, 1.5]),
    ("keep", ["5", "6"], {}, ["5", "6"]),
    ("add", ["x"], {}, "argument a='x' is not an int"),
    ("add", [1, "x"], {}, "argument b='x' is not a float"),
    ("add", [1], {"flag": "maybe"}, "argument flag='maybe' is not a bool (true, false"),
    ("rest", [1, "z"], {}, "argument values='z' is not an int"),
    ("add", [1], {"b": "y" * 200}, f"argument b='{'y' * 80}...' is not a float"),
]


@pytest.mark.parametrize("codec", [Codec.JSON, Codec.MSGPACK])
async def test_texts_become_what_the_signature_wants(module: dict[str, Any], codec: Codec) -> None:
    """Users submit from shells: "3" is 3 where an int is annotated, and what is not one fails."""
    async with bench(**module) as b:
        executor = b.spawn()
        for name, args, kwargs, expected in CONVERSIONS:
            number = b.define_name(executor, name, codec)
            payload = codecs.encode_call(codec, tuple(args), kwargs)
            lease = b.run_payloads(executor, number, [payload])
            if isinstance(expected, str):
                _, info = await b.failure(lease)
                assert info.code == "PAYLOAD"
                assert expected in info.message
            else:
                assert await b.values(lease, 1) == [expected]


async def test_an_unknown_name_fails_with_near_ones(module: dict[str, Any]) -> None:
    """The failure has the code FUNCTION_NOT_FOUND."""
    async with bench(**module) as b:
        executor = b.spawn()
        _, info = await b.failure(b.run(executor, b.define_name(executor, "resise"), ()))
        assert info.code == "FUNCTION_NOT_FOUND"
        assert "resize" in info.message


async def test_the_class_form_keeps_one_instance_per_process(module: dict[str, Any]) -> None:
    """What `__init__` prepared is there at the next task."""
    async with bench(**module) as b:
        executor = b.spawn(ExecutorKind.ASYNC, 1)
        number = b.define_name(executor, "resize")
        assert await b.values(b.run(executor, number, (1,), (2,), (3,)), 3) == [1, 3, 6]


@pytest.mark.parametrize(
    ("name", "kind"), [("meet", ExecutorKind.THREAD), ("gather_three", ExecutorKind.ASYNC)]
)
async def test_shared_executors_run_several_tasks_at_once(
    module: dict[str, Any], name: str, kind: ExecutorKind
) -> None:
    """Three tasks that wait for each other all end, in one process."""
    async with bench(**module) as b:
        executor = b.spawn(kind, 3)
        values = await b.values(b.run(executor, b.define_name(executor, name), (), (), ()), 3)
        assert len(values) == 3


async def test_coroutines_go_on_while_another_ones_input_is_fetched() -> None:
    """Bug: the one event loop of them all stood still until it had come from the other node."""
    other_has_ended = asyncio.Event()

    class SlowNode:
        """Has the object once the other task has ended."""

        def in_memory(self, place: bytes) -> Segment | None:
            return None

        @contextlib.asynccontextmanager
        async def hold_at(self, place: bytes, token: str) -> AsyncIterator[Segment]:
            await other_has_ended.wait()
            yield Segment.write([codecs.encode_value(Codec.PICKLE, b"far away", "value")])

        async def put_in(self, object_id: str, segment: Segment) -> bytes:
            raise ResourceExhausted("not here")

    size = len(codecs.encode_value(Codec.PICKLE, b"far away", "value"))
    place = PlacedColumn.of_item(Place("a-1", size, "w-2").pack())
    call = codecs.encode_call(Codec.PICKLE, (Slot(0),), {})
    payload = join_call(call, [InputValue(int(Codec.PICKLE), place, WHOLE, "token")])
    name = new_name()
    port = ObjectPort(asyncio.get_running_loop(), name, SlowNode())
    async with bench(object_port=name) as b:
        executor = b.spawn(ExecutorKind.ASYNC, 4)
        code = cloudpickle.dumps(double_later)
        taking = TaskClass("job", code_hash=b"1" * 32, codec=Codec.PICKLE, has_inputs=True)
        slow = b.run_payloads(executor, b.define_class(executor, taking, code), [payload])
        quick = b.run(executor, b.define(executor, double_later), (4,))
        assert await b.values(quick, 1) == [8]
        assert not b.states(slow)
        other_has_ended.set()
        assert await b.values(slow, 1) == [b"far away" * 2]
    port.close()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import no_such_module_y", "No module named 'no_such_module_y'"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("def broken(:", "SyntaxError"),
        ("import os; os._exit(9)", "exit code 9"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
async def test_a_module_that_cannot_be_imported_is_a_config_error(
    tmp_path: Path, source: str, expected: str
) -> None:
    """The error names the module and the cause, whatever the import does."""
    (tmp_path / "executor_bad_module.py").write_text(source)
    with pytest.raises(ConfigError) as caught:
        async with bench(
            function_modules=["executor_bad_module"], sys_path=[str(tmp_path), *sys.path]
        ):
            pass
    assert "executor_bad_module" in str(caught.value)
    assert expected in str(caught.value)


def surroundings() -> dict[str, Any]:
    """Describe the process that a task runs in."""
    heavy = ("grpc", "rustray.rpc", "rustray.proto", "rustray.security")
    return {
        "heavy": [name for name in heavy if name in sys.modules],
        "asyncio": "asyncio" in sys.modules,
        "stdin": sys.stdin.read(),
        "threads": os.environ["OMP_NUM_THREADS"],
        "is_leader": os.getpgid(0) == os.getpid() == os.getsid(0),
        "random": random.random(),
    }


async def test_an_executor_is_a_clean_small_process() -> None:
    """No gRPC, no asyncio unless needed, empty stdin, one numeric thread, its own group."""
    async with bench() as b:
        found = [await b.value(b.spawn(), surroundings) for _ in range(2)]
    for each in found:
        assert each["heavy"] == []
        assert each["asyncio"] is False
        assert each["stdin"] == ""
        assert each["threads"] == "1"
        assert each["is_leader"] is True
    assert found[0]["random"] != found[1]["random"]


def numpy_random() -> float:
    """Return a number of numpy's global generator."""
    import numpy as np

    return float(np.random.random())


async def test_numpy_differs_between_executors_that_inherit_it(tmp_path: Path) -> None:
    """A module that loaded numpy into the zygote does not give all executors one sequence."""
    (tmp_path / "executor_numpy_module.py").write_text("import numpy; numpy.random.random()")
    async with bench(
        function_modules=["executor_numpy_module"], sys_path=[str(tmp_path), *sys.path]
    ) as b:
        first, second = [await b.value(b.spawn(), numpy_random) for _ in range(2)]
    assert first != second


def chatter(count: int) -> int:
    """Print a lot to both streams."""
    for _ in range(count):
        print("o" * 999)
        print("e" * 999, file=sys.stderr)
    return count


@pytest.mark.parametrize("kind", KINDS)
async def test_a_task_that_prints_megabytes_blocks_nothing(kind: ExecutorKind) -> None:
    """Output does not mix with results, however much it is."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        assert await b.value(executor, chatter, 3_000) == 3_000


def fork_and_return() -> int:
    """Fork, and let both processes return from the task."""
    return os.fork()


@pytest.mark.parametrize("kind", [ExecutorKind.PROCESS, ExecutorKind.THREAD])
async def test_a_copy_that_a_task_forked_never_answers(kind: ExecutorKind) -> None:
    """Each task has one outcome although two processes returned from it."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        number = b.define(executor, fork_and_return)
        pids = await b.values(b.run(executor, number, (), ()), 2)
        assert all(pid > 0 for pid in pids)
        assert await b.value(executor, double, 4) == 8
        assert not b.seen.exits


def wait_for(path: str) -> str:
    """Return as soon as the file is there."""
    while not os.path.exists(path):
        time.sleep(0.002)  # the task's work
    return path


async def start_blocked(b: Bench, executor: int, path: Path, count: int = 1) -> int:
    """Run ``count`` tasks that wait for a file, and wait until the first one runs."""
    lease = b.run(executor, b.define(executor, wait_for), *[(str(path),)] * count)
    await aeventually(lambda: b.pool.running(executor) == (lease, 100))
    return lease


async def test_results_do_not_wait_for_a_long_task_of_their_chunk(tmp_path: Path) -> None:
    """What quick tasks returned arrives while the one after them still runs."""
    here, later = tmp_path / "here", tmp_path / "later"
    here.touch()
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, wait_for)
        lease = b.run(executor, number, (str(here),), (str(here),), (str(later),))
        assert sorted(await b.ended(lease, 2)) == [0, 1]
        await aeventually(lambda: b.pool.running(executor) == (lease, 102))
        later.touch()
        await b.values(lease, 3)


@pytest.mark.parametrize("kind", KINDS)
async def test_reclaim_gives_back_exactly_what_has_not_started(
    kind: ExecutorKind, tmp_path: Path
) -> None:
    """Neither lost nor run: the rest of the current chunk, and all chunks behind it."""
    async with bench() as b:
        executor = b.spawn(kind, 1)
        first = await start_blocked(b, executor, tmp_path / "go", 5)
        number = b.define(executor, double)
        second = b.run(executor, number, *[(i,) for i in range(7)])
        b.pool.reclaim(executor)
        await aeventually(lambda: b.seen.returned)
        ranges = {(r.lease, r.offset, r.count) for r in b.seen.returned[0]}
        assert ranges == {(first, 101, 4), (second, 100, 7)}
        third = b.run(executor, number, (21,))
        (tmp_path / "go").touch()
        assert await b.values(third, 1) == [42]
        assert len(b.states(first)) == 1
        assert b.states(second) == {}


async def test_reclaim_of_an_idle_executor_returns_nothing() -> None:
    """The answer comes all the same."""
    async with bench() as b:
        executor = b.spawn()
        assert await b.value(executor, double, 1) == 2
        b.pool.reclaim(executor)
        await aeventually(lambda: b.seen.returned == [[]])


async def test_reclaim_while_tasks_flow_loses_and_doubles_nothing() -> None:
    """Under a stream of chunks every task is either reported once or returned once."""
    async with bench() as b:
        executor = b.spawn()
        number = b.define(executor, double)
        leases = []
        for round_ in range(60):
            leases.append(b.run(executor, number, *[(i,) for i in range(50)]))
            if round_ % 3 == 0:
                b.pool.reclaim(executor)
            await asyncio.sleep(0)
        b.pool.reclaim(executor)
        await aeventually(lambda: len(b.seen.returned) == 21)
        back = {
            (r.lease, r.offset - 100 + step)
            for ranges in b.seen.returned
            for r in ranges
            for step in range(r.count)
        }
        await aeventually(lambda: sum(len(b.states(x)) for x in leases) + len(back) == 3_000)
        done = {(lease, index) for lease in leases for index in b.states(lease)}
        assert not done & back


async def test_the_same_executor_number_twice_is_refused() -> None:
    """So is work for an executor that does not exist."""
    async with bench() as b:
        executor = b.spawn()
        with pytest.raises(InvariantError):
            b.pool.spawn(executor, ExecutorKind.PROCESS, 1)
        with pytest.raises(InvariantError):
            b.pool.reclaim(99)
