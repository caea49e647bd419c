"""What a task may know and say of itself, through real heads and workers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import rustray
from helpers.cluster import Cluster, joined
from helpers.waiting import aeventually
from rustray.task.state import TaskState

pytestmark = pytest.mark.slow


async def _events(
    head: rustray.HeadNode, found: list[rustray.TaskEvent], is_open: asyncio.Event
) -> None:
    events: AsyncIterator[rustray.TaskEvent] = head.subscribe(functions=["speak"], cursor=0)
    is_open.set()
    async for event in events:
        found.append(event)
        if event.state.is_terminal:
            return


async def test_a_task_says_how_far_it_is(tmp_path: Path) -> None:
    """Subscribers, ``tasks get``, ``list`` and ``explain`` know it; after the end nobody does."""
    with Cluster(tmp_path) as cluster:
        cluster.start_head()
        cluster.start_worker("a")
        with cluster.as_own():
            async with cluster.head_node() as head:
                await aeventually(lambda: joined(head, 1), 20)
                found: list[rustray.TaskEvent] = []
                is_open = asyncio.Event()
                following = asyncio.create_task(_events(head, found, is_open))
                await is_open.wait()
                before = time.time()
                spec = rustray.TaskSpec("speak", [str(tmp_path)], total_timeout_s=600.0)
                task_id = await head.submit_task(spec)

                async def is_a_quarter() -> bool:
                    views = await head.list_tasks(states=[TaskState.RUNNING])
                    return [(view.progress, view.message) for view in views] == [
                        (0.25, "a quarter")
                    ]

                await aeventually(is_a_quarter, 20)
                assert "25% done: a quarter" in (await head.explain(task_id)).summary
                shown = await asyncio.to_thread(cluster.run, "tasks", "get", task_id)
                assert shown.stdout == f"{task_id} RUNNING 25% a quarter\n"
                (tmp_path / "go").touch()
                result = await head.get_task_result(task_id, 20)
                assert result is not None
                said = result.unwrap()
                await asyncio.wait_for(following, 20)
                assert [view.progress for view in await head.list_tasks()] == [None]
    assert (said["task_id"], said["attempt"]) == (task_id, 1)
    assert said["fence"] > before * 1000  # it counts from the head's start on, in milliseconds
    assert before + 590 < said["deadline"] < time.time() + 600
    assert [event.kind for event in found if event.state is TaskState.QUEUED] == ["state"]
    heard = [(e.kind, e.progress, e.message, e.name, e.value) for e in found[-5:]]
    assert heard == [
        ("state", None, "", "", None),
        ("progress", 0.25, "a quarter", "", None),
        ("emit", None, "", "loss", {"train": 0.5}),
        ("progress", 1.0, "", "", None),
        ("state", None, "", "", None),
    ]
    revisions = [event.revision for event in found]
    assert revisions == sorted(set(revisions))


@rustray.remote(max_retries=2)
def die_twice(folder: str) -> tuple[int, list[int]]:
    """Note the fence, and kill the executor in the first two attempts."""
    task = rustray.context()
    with Path(folder, "fences").open("a") as fences:
        fences.write(f"{task.fence}\n")
    if task.attempt < 3:
        os._exit(1)
    return task.attempt, [int(line) for line in Path(folder, "fences").read_text().split()]


def test_the_fence_grows_with_every_attempt_and_the_embedded_cluster_has_it(
    tmp_path: Path,
) -> None:
    """A system outside that keeps the largest fence refuses what an earlier attempt sends."""
    with rustray.init(num_cpus=1):
        attempt, fences = rustray.get(die_twice.remote(str(tmp_path)), timeout=30)
    assert attempt == 3
    assert len(fences) == 3
    assert fences == sorted(set(fences))
