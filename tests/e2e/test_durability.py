"""A head that is killed, again and again: what it has acked is there, and runs once."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from random import Random

import pytest

import rustray
from e2e import functions
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually, eventually

pytestmark = pytest.mark.slow

_mark = rustray.remote(functions.mark)
_TASKS = 1500
_KILLS = 4


def _have_run(marks: Path, count: int) -> bool:
    return len(functions.executions(marks)) >= count


def test_a_head_killed_under_load_loses_and_repeats_nothing(tmp_path: Path) -> None:
    """The client only sees pauses: every result arrives, and each task ran exactly once."""
    random = Random(7)
    marks = tmp_path / "marks"
    marks.mkdir()
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = [_mark.remote(str(marks), i, 0.004) for i in range(_TASKS)]
            for kill in range(1, _KILLS + 1):
                ran = partial(
                    _have_run, marks, kill * _TASKS // (_KILLS + 2) + random.randrange(20)
                )
                eventually(ran, 60)
                cluster.restart_head()
            assert rustray.get(refs, timeout=120) == list(range(_TASKS))
        assert functions.executions(marks) == dict.fromkeys(range(_TASKS), 1)
        assert cluster.json("status")["head"]["durability"] == "full"


async def test_what_a_unary_call_was_told_survives(tmp_path: Path) -> None:
    """Ids that were returned are known after kill -9, with their results, also without a worker."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        worker = cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                done = await head.submit_task(rustray.TaskSpec("add", [40, 2]))
                result = await head.get_task_result(done, 20)
                assert result is not None
                assert result.unwrap() == 42
                worker.end()
                await aeventually(lambda: joined(head, 0), 20)
                waiting = await head.submit_tasks_batch(
                    [rustray.TaskSpec("add", [i, 1]) for i in range(50)]
                )
                cancelled = await head.submit_task(rustray.TaskSpec("add", [0, 0]))
                await head.cancel_task(cancelled)
            cluster.restart_head()
            cluster.start_worker("b")
            async with cluster.head_node() as head:
                again = await head.get_task_result(done, 20)
                assert again is not None
                assert (again.unwrap(), again.attempts) == (42, 1)
                stopped = await head.get_task_result(cancelled, 20)
                assert stopped is not None
                assert stopped.state is rustray.TaskState.CANCELLED
                results = [await head.get_task_result(task_id, 40) for task_id in waiting]
                assert [r and r.unwrap() for r in results] == [i + 1 for i in range(50)]


async def test_what_has_expired_is_not_what_never_was(tmp_path: Path) -> None:
    """P15: who asks too late is told that there was something, also by a later head."""
    with Cluster(tmp_path, {"SCHEDULER__RESULT_TTL_S": "1"}) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                task_id = await head.submit_task(rustray.TaskSpec("add", [40, 2]))
                assert await head.get_task_result(task_id, 20) is not None
            eventually(lambda: cluster.run("tasks", "get", task_id).returncode == 5, 20)
            cluster.restart_head()
            other = cluster.run("token", "create", "--role", "submit").stdout.split()[-1]
            async with cluster.head_node(other) as stranger:
                with pytest.raises(rustray.TaskNotFound) as hidden:
                    await stranger.cancel_task(task_id)
                assert type(hidden.value) is rustray.TaskNotFound
            async with cluster.head_node() as head:
                assert await head.get_task_result(task_id, 0) is None
                with pytest.raises(rustray.TaskExpired, match="has expired"):
                    await head.cancel_task(task_id)
                with pytest.raises(rustray.TaskNotFound) as unknown:
                    await head.cancel_task("0" * 32)
                assert type(unknown.value) is rustray.TaskNotFound


def test_a_damaged_journal_is_not_replaced(tmp_path: Path) -> None:
    """The head refuses to start, names the file and what to do, and leaves it as it is."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        assert cluster.head is not None
        cluster.head.end()
        journal = cluster.state_dir / "journal.db"
        journal.write_bytes(b"garbage" * 1000)
        answer = cluster.run("head", "--port", "0")
        assert answer.returncode == 2
        assert "journal.db" in answer.stderr
        assert "Traceback" not in answer.stderr
        assert journal.read_bytes() == b"garbage" * 1000


def test_memory_is_a_choice(tmp_path: Path) -> None:
    """--durability memory keeps nothing on disk, and says so."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head("--durability", "memory")
        assert cluster.json("status")["head"]["durability"] == "memory"
        assert not (cluster.state_dir / "journal.db").exists()


def test_more_than_memory_is_refused_where_there_is_no_journal(tmp_path: Path) -> None:
    """The error says what to do; an unknown level is a usage error that names the three."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head("--durability", "memory")
        submit = ("submit", "--wait-for-resources", "add", "40", "2", "--durability")
        refused = cluster.run(*submit, "full")
        assert refused.returncode == 2
        assert "--durability full" in refused.stderr
        assert "Traceback" not in refused.stderr
        unknown = cluster.run(*submit, "disk")
        assert unknown.returncode == 2
        assert all(name in unknown.stderr for name in ("'full'", "'process'", "'memory'"))
        assert cluster.json(*submit, "memory")["durability"] == "memory"
        assert cluster.json(*submit[:-1])["durability"] == "memory"


@pytest.mark.parametrize("level", ["full", "process"])
def test_each_level_survives_what_it_promises(tmp_path: Path, level: str) -> None:
    """Acked at process or full, killed at once, and there again; each at the level it asked for."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head("--durability", level)
        submit = ("submit", "--wait-for-resources", "add", "40", "2")
        key = ("--idempotency-key", "raised")
        asked = {"process": "process", "full": "full", "": level}
        accepted = {}
        for name, expected in asked.items():
            flags = ("--durability", name) if name else ()
            answer = cluster.json(*submit, *flags)
            assert answer["durability"] == expected
            accepted[answer["task_id"]] = expected
        first = cluster.json(*submit, *key, "--durability", "memory")
        again = cluster.json(*submit, *key, "--durability", "full")
        assert (first["durability"], again["durability"]) == ("memory", "full")
        assert (again["task_id"], again["deduplicated"]) == (first["task_id"], True)
        accepted[first["task_id"]] = "full"
        cluster.restart_head()
        listed = cluster.json("tasks", "list")["tasks"]
        assert {one["task_id"]: one["durability"] for one in listed} == accepted
        one = next(iter(accepted))
        assert cluster.json("tasks", "explain", one)["durability"] == accepted[one]
        cluster.start_worker("a")
        eventually(lambda: cluster.json("status")["tasks"]["SUCCEEDED"] == len(accepted), 60)


def test_a_session_hands_in_again_what_a_killed_head_had_in_memory_only(tmp_path: Path) -> None:
    """Acked at once, killed in the midst of it, several times: every result arrives."""
    marks = tmp_path / "marks"
    marks.mkdir()
    mark = _mark.options(durability="memory")
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        refs: list[rustray.TaskRef[int]] = []
        with cluster.session():
            for _ in range(3):
                start = len(refs)
                refs += [mark.remote(str(marks), start + i, 0.002) for i in range(300)]
                eventually(partial(_have_run, marks, start + 10), 60)
                cluster.restart_head()
            assert rustray.get(refs, timeout=120) == list(range(len(refs)))
        assert sorted(functions.executions(marks)) == list(range(len(refs)))


def test_a_backup_brings_the_tasks_back(tmp_path: Path) -> None:
    """Copied under a running head, restored after the journal was damaged, run by a new worker."""
    copy = str(tmp_path / "copy.db")
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.json("submit", "--wait-for-resources", "add", "40", "2")
        assert cluster.json("state", "backup", copy)["tasks"] == 1
        refused = cluster.run("state", "restore", copy)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert cluster.head is not None
        cluster.head.end()
        (cluster.state_dir / "journal.db").write_bytes(b"garbage" * 1000)
        assert cluster.run("state", "check").returncode == 2
        assert cluster.json("state", "restore", copy)["tasks"] == 1
        cluster.start_head()
        cluster.start_worker("a")
        eventually(lambda: cluster.json("status")["tasks"]["SUCCEEDED"] == 1, 60)


async def test_large_results_outlive_the_head_and_a_damaged_one_is_never_handed_out(
    tmp_path: Path,
) -> None:
    """They are files beside the journal; a damaged one gives a typed error, and fails the check."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        files = cluster.state_dir / "journal.db.results"
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                specs = [rustray.TaskSpec("repeat", [f"{n} ", 200_000]) for n in range(3)]
                tasks = await head.submit_tasks_batch(specs)
                for number, task in enumerate(tasks):
                    result = await head.get_task_result(task, 30)
                    assert result is not None
                    assert result.unwrap() == f"{number} " * 200_000
            cluster.restart_head()
            damaged = _damage(files, b"1 1 1 ")
            async with cluster.head_node() as head:
                for number in (0, 2):
                    result = await head.get_task_result(tasks[number], 30)
                    assert result is not None
                    assert result.unwrap() == f"{number} " * 200_000
                with pytest.raises(rustray.ObjectLost, match="run the task again"):
                    await head.get_task_result(tasks[1], 30)
        answer = cluster.run("state", "check")
        assert (answer.returncode, damaged in answer.stderr) == (2, True)
        assert cluster.json("status")["counters"]["results_lost"] == 1


def _damage(directory: Path, what: bytes) -> str:
    """Flip a bit of the one file that has something in it, and return its name."""
    (path,) = (one for one in directory.iterdir() if what in one.read_bytes())
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    return path.name


async def test_a_subscriber_misses_nothing_over_a_restart(tmp_path: Path) -> None:
    """Its cursor works with the next head: what it had not read comes first, each event once."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                specs = [rustray.TaskSpec("add", [i, 1]) for i in range(40)]
                ids = await head.submit_tasks_batch(specs)
                for name in ids:
                    assert await head.get_task_result(name, 20)
                everything = await _events_until(head, ids, 0)
            middle = everything[len(everything) // 3].revision
            cluster.restart_head()
            async with cluster.head_node() as head:
                again = await _events_until(head, ids, 0)
                assert again == everything
                rest = [event for event in everything if event.revision > middle]
                assert await _events_until(head, ids, middle) == rest
                [later] = await head.submit_tasks_batch([rustray.TaskSpec("add", [1, 1])])
                fresh = await _events_until(head, [later], everything[-1].revision)
                assert {event.task_id for event in fresh} == {later}
                assert fresh[0].revision > everything[-1].revision


async def _events_until(
    head: rustray.HeadNode, ids: Sequence[str], cursor: int
) -> list[rustray.TaskEvent]:
    """Read events after the cursor until all these tasks have ended."""
    missing = set(ids)
    found: list[rustray.TaskEvent] = []
    async with contextlib.aclosing(head.subscribe(cursor=cursor)) as events:  # type: ignore[type-var]
        async with asyncio.timeout(30):
            async for event in events:
                found.append(event)
                if event.state.is_terminal:
                    missing.discard(event.task_id)
                if not missing:
                    break
    return found


def test_a_head_that_was_frozen_takes_no_work_away(tmp_path: Path) -> None:
    """It thaws after the leases' time, and hears its workers before it judges them."""
    marks = tmp_path / "marks"
    marks.mkdir()
    with Cluster(tmp_path) as cluster:
        head = cluster.start_head()
        cluster.start_worker("a", cpus=2)
        eventually(lambda: cluster.json("workers", "list")["workers"], 20)
        with cluster.session():
            refs = [_mark.remote(str(marks), i, 13.0) for i in range(2)]
            eventually(lambda: _have_run(marks, 2), 20)
            cluster.start_worker("b", cpus=2)
            eventually(lambda: len(cluster.json("workers", "list")["workers"]) == 2, 20)
            begin = time.monotonic()
            head.signal(signal.SIGSTOP)
            try:
                eventually(lambda: time.monotonic() - begin > 11.0, 20)
            finally:
                head.signal(signal.SIGCONT)
            assert rustray.get(refs, timeout=60) == [0, 1]
        assert functions.executions(marks) == {0: 1, 1: 1}


def test_what_is_known_of_tokens_survives(tmp_path: Path) -> None:
    """The next head lists the tokens that the killed one had handed out, and not the tokens."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        made = cluster.json("token", "create", "--role", "submit", "--allow-code", "--ttl", "8h")
        cluster.restart_head()
        answer = cluster.json("token", "list")
    [found] = answer["tokens"]
    assert (found["role"], found["scopes"], found["audience"]) == ("submit", "code", "head")
    assert found["created_by"] == "user:local-admin"
    assert found["expires_unix_s"] - found["issued_unix_s"] == 8 * 3600
    assert made["token"] not in str(answer)
